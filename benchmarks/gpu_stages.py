"""The stages of `benchmarks/gpu.py`, each in a process of its own."""

import argparse
import gc
import importlib.util
import statistics
import time
from collections.abc import Callable
from itertools import pairwise

import torch
from datasets import disable_progress_bars
from gpu import write
from gpu_trainers import SHAPES, attention_seen, gradient, layout_of, make_trainer, rows, tokens
from transformers import TrainerCallback

from trl_plus.forward.attention import cuda, plain
from trl_plus.forward.attention.plain import Options
from trl_plus.forward.layouts import Plan, make_plan

# Largest relative error of a kernel's output and gradients against float64, and of a step's gradient
KERNEL_ERROR = {torch.bfloat16: 2e-2, torch.float16: 1e-2, torch.float32: 1e-4}
STEP_ERROR = {torch.bfloat16: 5e-2, torch.float32: 1e-3}


class Stage:
    """What the stages share."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.out, self.tiny = options.out, options.tiny
        self.device = torch.device("cpu" if options.tiny else "cuda")

    def say(self, **cell) -> None:
        write(self.out, **cell)

    def sync(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def seconds(self, function: Callable, times: int = 8) -> float:
        """Median time of a call."""
        found = []
        for _ in range(times):
            self.sync()
            start = time.perf_counter()
            function()
            self.sync()
            found.append(time.perf_counter() - start)
        return statistics.median(found)

    def peak(self) -> float:
        """FLOPs per second of a bf16 matrix product."""
        size = 256 if self.tiny else 8192
        a = torch.randn(size, size, device=self.device, dtype=torch.bfloat16)
        a @ a
        return 2 * size**3 / self.seconds(lambda: a @ a)

    # -- facts and kernels --------------------------------------------------------------------------------------------

    def facts(self) -> None:
        import transformers
        import trl

        name = torch.cuda.get_device_name() if self.device.type == "cuda" else "cpu"
        self.say(
            ok=True, facts=name, torch=torch.__version__, transformers=transformers.__version__, trl=trl.__version__,
            varlen=sorted(cuda.varlen_parameters()), tflops=round(self.peak() / 1e12, 1),
            flash_attn=importlib.util.find_spec("flash_attn") is not None,
            bitsandbytes=importlib.util.find_spec("bitsandbytes") is not None,
        )  # fmt: skip

    def kernels(self) -> None:
        """Output and gradients of each kernel against a loop in float64, and milliseconds."""
        longest = 60 if self.tiny else 1024
        shapes = [(4, 2, 16)] if self.tiny else [(28, 4, 128), (14, 2, 64), (8, 4, 256)]
        for heads in shapes:
            for options in (Options(), Options(window=longest // 4), Options(softcap=30.0)):
                for dtype in (torch.bfloat16, torch.float32, torch.float16):
                    self._kernels(self.plan(4, longest, 0), heads, options, dtype)
        if self.device.type == "cuda":
            self._compiles()

    def plan(self, pairs: int, longest: int, seed: int) -> Plan:
        generator = torch.Generator().manual_seed(seed)
        lengths = torch.randint(longest // 4, longest, (2 * pairs,), generator=generator)
        return make_plan(lengths, lengths.view(2, -1).amin(0) // 2, int(lengths.max()), "packed").to(self.device)

    def _kernels(self, plan: Plan, heads: tuple[int, int, int], options: Options, dtype: torch.dtype) -> None:
        many, few, size = heads
        given = [
            torch.randn(1, n, plan.computed, size, device=self.device, dtype=dtype) for n in (many, few, few, many)
        ]

        def outcome(attend: Callable, cast: torch.dtype) -> list[torch.Tensor]:
            inputs = [x.to(cast).requires_grad_() for x in given[:3]]
            output = attend(*inputs, plan, options)
            return [output, *torch.autograd.grad(output, inputs, given[3].to(cast))]

        right = outcome(plain.by_branch, torch.float64)
        named = {"varlen": cuda.varlen, "flex": cuda.flex, "dense": plain.by_mask}
        if not cuda.takes_varlen(given[0], given[2], plan, options) or self.tiny:
            del named["varlen"]  # torch has no such kernel on a CPU
        if self.tiny:
            del named["flex"]  # nor a gradient of flex_attention
        for name, attend in named.items():
            cell = {"kernel": name, "heads": heads, "dtype": str(dtype)[6:], "options": str(options)}
            plan.cache.clear()
            try:
                start = time.perf_counter()
                found = outcome(attend, dtype)
                self.sync()
                first = time.perf_counter() - start
                errors = [float((a.double() - b).norm() / b.norm()) for a, b in zip(found, right, strict=True)]
                self.say(
                    ok=max(errors) < KERNEL_ERROR[dtype], **cell, errors=[f"{error:.1e}" for error in errors],
                    first_s=round(first, 2), ms=round(1e3 * self.seconds(lambda f=attend: outcome(f, dtype)), 3),
                )  # fmt: skip
            except Exception as error:
                self.say(ok=False, **cell, error=f"{type(error).__name__}: {str(error)[:200]}")

    def _compiles(self) -> None:
        """Ragged batches of two kinds of layer: which calls of flex_attention take the time of a compilation."""
        for seed in range(8):
            plan = self.plan(2 + seed % 4, 1500, seed)
            for window in (None, 256):
                for grad in (True, False):
                    inputs = [
                        torch.randn(
                            1, n, plan.computed, 64, device=self.device, dtype=torch.bfloat16, requires_grad=grad
                        )
                        for n in (8, 4, 4)
                    ]
                    start = time.perf_counter()
                    with torch.set_grad_enabled(grad):
                        cuda.flex(*inputs, plan, Options(window=window))
                    self.sync()
                    ms = round(1e3 * (time.perf_counter() - start), 1)
                    self.say(ok=True, flex=seed, tokens=plan.computed, window=window, grad=grad, ms=ms)

    # -- trainers -----------------------------------------------------------------------------------------------------

    def steps(self, shape: str) -> None:
        """The gradient of a step, ours and TRL's, against ours on plain rows. DPO decides: it is the same loss."""
        for dtype in (torch.float32, torch.bfloat16):
            for method in ("DPO", "SimPO"):
                cell = {"step": method, "shape": shape, "dtype": str(dtype)[6:]}
                try:
                    self._steps(shape, method, dtype, cell)
                except Exception as error:
                    self.say(ok=False, **cell, error=f"{type(error).__name__}: {str(error)[:300]}")

    def _steps(self, shape: str, method: str, dtype: torch.dtype, cell: dict) -> None:
        found = {}
        for side in ("rows", "ours", "trl"):
            with attention_seen() as seen:
                trainer = make_trainer(
                    method, side, shape, "lora", 4, 64 if self.tiny else 512, 0.5, 2, dtype, self.device
                )
                found[side] = (*gradient(trainer), layout_of(trainer), " ".join(sorted(seen)) or "sdpa")
            del trainer
            gc.collect()
        loss, right, *_ = found["rows"]
        for side in ("ours", "trl"):
            other_loss, other, layout, attention = found[side]
            gap = float((other - right).norm() / right.norm())
            self.say(
                ok=gap < STEP_ERROR[dtype] if method == "DPO" else None, **cell, side=side, layout=layout,
                attention=attention, loss=other_loss, loss_gap=abs(other_loss - loss), gradient_gap=gap,
            )  # fmt: skip

    def speed(self, shape: str, mode: str, batch: str, length: str, share: str, methods: str) -> None:
        if mode == "qlora" and importlib.util.find_spec("bitsandbytes") is None:
            self.say(speed=f"{shape} {mode}", skipped="bitsandbytes is not installed")
            return
        peak = self.peak()
        for method in methods.split(","):
            for side in ("ours", "trl"):
                try:
                    self._speed(shape, mode, int(batch), int(length), float(share), method, side, peak)
                except Exception as error:
                    self.say(ok=False, speed=f"{shape} {mode} {batch}x{length} {share}", method=method, side=side,
                             error=f"{type(error).__name__}: {str(error)[:300]}")  # fmt: skip
                gc.collect()
                if self.device.type == "cuda":
                    torch.cuda.empty_cache()

    def _speed(self, shape, mode, batch, length, share, method, side, peak) -> None:
        steps, times = 4 if self.tiny else 7, []
        sync = self.sync

        class Clock(TrainerCallback):
            def on_step_end(self, *args, **kwargs):
                sync()
                times.append(time.perf_counter())

        each = 2 * batch if method == "KTO" else batch
        with attention_seen() as seen:
            trainer = make_trainer(
                method, side, shape, mode, each, length, share, steps, torch.bfloat16, self.device, [Clock()]
            )
            if self.device.type == "cuda":
                torch.cuda.reset_peak_memory_stats()
            trainer.train()
        seconds = statistics.median(b - a for a, b in pairwise(times[1:]))
        twice, once = (count / steps for count in tokens(rows(each * steps, length, share, method), method))
        hidden, inner, layers, heads, few = SHAPES[shape]
        flops = 2 * layers * (2 * hidden**2 + 2 * hidden**2 * few // heads + 3 * hidden * inner)
        passes = (3 if mode == "full" else 2) + (method in ("DPO", "KTO"))
        memory = torch.cuda.max_memory_allocated() / 2**30 if self.device.type == "cuda" else 0.0
        dtypes = sorted({str(p.dtype)[6:] for p in trainer.model.parameters()})
        self.say(
            cell=f"{shape} {mode} {batch}x{length} prompt {share}", method=method, side=side, layout=layout_of(trainer),
            attention=" ".join(sorted(seen)) or "sdpa", dtype=" ".join(dtypes), s_per_step=round(seconds, 4),
            tokens_per_s=round(twice / seconds), mfu=round(flops * passes * once / seconds / peak, 3),
            GB=round(memory, 1),
        )  # fmt: skip

    def profile(self, shape: str) -> None:
        """How often a step waits, copies and launches."""
        from torch.profiler import ProfilerActivity, profile

        for side in ("ours", "trl"):
            trainer = make_trainer("DPO", side, shape, "lora", 8, 1024, 0.5, 4, torch.bfloat16, self.device)
            gradient(trainer)
            with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as seen:
                gradient(trainer)
            wanted = (
                "cudaStreamSynchronize",
                "cudaMemcpyAsync",
                "cudaLaunchKernel",
                "aten::index_put",
                "aten::nonzero",
            )
            counts = {event.key: event.count for event in seen.key_averages() if event.key.startswith(wanted)}
            self.say(ok=True, profile=side, layout=layout_of(trainer), counts=counts)
            (self.out / f"profile_{side}.txt").write_text(
                seen.key_averages().table(sort_by="cuda_time_total", row_limit=40), encoding="utf-8"
            )


def run(options: argparse.Namespace) -> None:
    disable_progress_bars()
    name, *rest = options.stage.split(":")
    getattr(Stage(options), name)(*rest)
