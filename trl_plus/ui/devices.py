"""The devices a run can use. The only part of `trl-plus env` that imports torch."""

import os
import platform


def devices() -> dict[str, str]:
    """Description by kind of device."""
    import torch

    found = {"platform": platform.platform(), "cpu": f"{platform.machine()}, {os.cpu_count()} cores"}
    for index in range(torch.cuda.device_count()):
        memory = torch.cuda.get_device_properties(index).total_memory / 2**30
        found[f"gpu {index}"] = f"{torch.cuda.get_device_name(index)}, {memory:.0f} GiB"
    if not torch.cuda.is_available():
        found["gpu"] = "Apple (MPS)" if torch.backends.mps.is_available() else "none"
    return found
