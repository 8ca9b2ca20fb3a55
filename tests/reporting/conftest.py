"""Results made by hand, and a Chromium that tests talk to over its DevTools pipe: no port, no driver, no library."""

import json
import os
import select
import shutil
import subprocess
import time

import pytest

from trl_plus.preflight.as_json import as_json
from trl_plus.preflight.findings import Example, Finding, Lengths, Preview, Result, Severity, Split, Token
from trl_plus.ui.pages import write_page

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "google-chrome"))), None)
PATIENCE = 60  # seconds a browser on a busy machine may take for one answer


def make_finding(code="D105", severity=Severity.ERROR, split="train", **changes):
    values = {
        "title": "Identical sides",
        "sentence": "In 4 rows both sides are the same text.",
        "count": 4,
        "checked": 200,
        "cure": "Remove these rows.",
        "examples": (Example(17, "Yes, of course."), Example(88, "No.")),
    }
    return Finding(code, severity, split, **{**values, **changes})


def make_preview(row=3, text="fine"):
    prompt = [Token("<s>", False, True, False), Token("Hello\n", False, False, False)]
    chosen = [Token(f" {text}", True, False, False), Token(" long", True, False, True), Token("</s>", True, True, True)]
    rejected = [Token(" bad", True, False, False), Token("</s>", True, True, False)]
    return Preview(row, "train", {"chosen": prompt + chosen, "rejected": prompt + rejected})


def make_result(**changes):
    """Every severity, two splits, a preview, and a field of every kind."""
    edges, counts = [0, 50, 100, 150, 200], [120, 60, 20, 0]
    quantiles = {"0.5": 41.0, "0.95": 120.5, "1.0": 149.0}
    parts = [Lengths(part, edges, counts, quantiles, 48.25) for part in ("prompt", "chosen", "rejected")]
    pairs = [(10, 5), (10, 5), (3, 9), (4, 4)]
    values = {
        "source": "recipes/my.yaml",
        "method": "simpo",
        "model": "org/model",
        "format": "conversational pairs",
        "max_length": 128,
        "splits": [
            Split("train", 200, 200, parts, pairs, dropped=3, cut={"chosen": 7, "rejected": 5}),
            Split("eval", None, 20, labels={"true": 15, "false": 5}),
        ],
        "findings": [
            make_finding("D701", Severity.INFO, title="Personal data", count=1, examples=(Example(5, "a@b.org"),)),
            make_finding(),
            make_finding("D501", Severity.WARNING, title="Length bias", count=0, examples=()),
            make_finding("D601", Severity.WARNING, "eval", title="Overlap", count=2, checked=20),
        ],
        "notes": ["80 rows begin with a system message."],
        "previews": [make_preview()],
        "seconds": 1.25,
    }
    return Result(**{**values, **changes})


def make_everywhere(text):
    """A result with the text wherever text of a user, a dataset or a tokenizer can stand."""
    row = make_preview(text=text)
    kinds = [(loss, special, cut) for loss in (False, True) for special in (False, True) for cut in (False, True)]
    row.sides[f"side {text}"] = [Token(text, *kind) for kind in kinds]
    found = make_finding(text, split=text, title=text, sentence=text, cure=text, examples=(Example(1, text),))
    lengths = Lengths(text, [0, 1, 2], [1, 1], {"0.5": 1.0}, 1.0)
    split = Split(text, 2, 2, [lengths], [(1, 2)], {text: 2}, 1, {text: 1})
    rows = [row, Preview(1, text, row.sides, True, text)]
    return make_result(
        source=text, method=text, model=text, format=text, notes=[text], findings=[found], splits=[split], previews=rows
    )


@pytest.fixture
def everywhere():
    return make_everywhere


@pytest.fixture
def finding():
    return make_finding


@pytest.fixture
def preview():
    return make_preview


@pytest.fixture
def result():
    return make_result


RECIPE = """\
# Resolved from my.yaml. Origin of each value: recipe, command line, preset or machine.
method: simpo
model_name_or_path: org/model  # recipe
dataset_name: org/data  # recipe
output_dir: out  # command line
beta: 2.0  # preset
learning_rate: 1.0e-06  # recipe
per_device_train_batch_size: 4  # recipe
gradient_accumulation_steps: 8  # recipe
token: hf_secret  # command line
"""


def make_log(steps=20, every=2, **more):
    """Lines of metrics.jsonl, evaluated every 10 steps."""
    lines = []
    for step in range(0, steps + 1, every):
        done = step / steps
        metrics = {"loss": 1.2 - done, "rewards/margins": done, "rewards/accuracies": 0.5 + 0.4 * done}
        metrics |= {"rewards/chosen": -done, "rewards/rejected": -2 * done, **more}
        if step:
            lines.append({"step": step, "epoch": 2 * done, "grad_norm": 3.0, "learning_rate": 1e-6 * done, **metrics})
        if step % 10 == 0:
            lines.append({"step": step, "epoch": 2 * done, **{f"eval_{name}": x for name, x in metrics.items()}})
    return lines


def make_journal(*events, command="trl-plus train my.yaml token=hf_secret beta=2.0", **begin):
    facts = {"command": command, "folder": "/work", "resumed_from": None, "processes": 2, "notes": []}
    facts |= {"versions": {"python": "3.11", "torch": "2.9"}, "devices": {"cpu": "x86, 8 cores"}}
    lines = [{"event": "begin", **facts, **begin}, {"event": "training", "steps": 20}, *events]
    return [{"time": "2026-01-02T03:04:05+00:00", "step": 0, **line} for line in lines]


FINISHED = {"event": "end", "outcome": "finished", "error": None, "step": 20}
WARNING = {"event": "warning", "step": 12, "text": "The model is not learning: raise `learning_rate`."}
NOTE = {"event": "note", "text": "Reference: none."}


@pytest.fixture
def make_run(tmp_path):
    """make_run("name", **files): a folder as `train` leaves it. None leaves a file out; text is written as it is."""

    def make(name="run", **changes):
        log = make_log()
        evals = [line for line in log if "eval_loss" in line]
        files = {
            "recipe": RECIPE,
            "log": log,
            "journal": make_journal(NOTE, WARNING, FINISHED),
            "preflight": as_json(make_result()),
            "summary": {
                "method": "simpo", "model": "org/model", "dataset": "org/data", "held_out_rows": 100,
                "before": evals[0], "after": evals[-1], "train": {"train_runtime": 83.0, "epoch": 2.0},
                "generations": [{"prompt": "user: Hello", "before": "Hi.", "after": "Hello, you."}],
                "versions": {"python": "3.11", "torch": "2.9", "bitsandbytes": None},
            },
            **changes,
        }  # fmt: skip
        folder = tmp_path / name
        folder.mkdir()
        names = {"recipe": "recipe.resolved.yaml", "log": "metrics.jsonl", "journal": "journal.jsonl"}
        names |= {"preflight": "preflight.json", "summary": "metrics.json"}
        for key, content in files.items():
            if isinstance(content, list):
                content = "".join(json.dumps(line) + "\n" for line in content)
            if content is not None:
                text = content if isinstance(content, str) else json.dumps(content)
                (folder / names[key]).write_text(text, encoding="utf-8")
        return folder

    make.log, make.journal = make_log, make_journal
    return make


class Browser:
    """Headless Chromium, driven by messages of its DevTools protocol that end in a NUL byte.

    `requests`, `problems` and `dialogs` hold what happened since the last `open`: URLs asked for, messages of the
    console and the security policy, and dialogs that a script has opened.
    """

    def __init__(self, folder):
        (from_us, self._to), (self._from, to_us) = os.pipe(), os.pipe()
        flags = "--headless --no-sandbox --disable-gpu --disable-dev-shm-usage --no-first-run --remote-debugging-pipe"
        # a shell puts the pipes where Chromium looks for them: 3 to read, 4 to write
        command = f'exec "$0" "$@" 3<&{from_us} 4>&{to_us}'
        words = [CHROMIUM, *flags.split(), f"--user-data-dir={folder}", "about:blank"]
        with open(os.path.join(folder, "log"), "wb") as log:
            self._process = subprocess.Popen(
                ["bash", "-c", command, *words], pass_fds=(from_us, to_us), stdout=log, stderr=log
            )
        os.close(from_us)
        os.close(to_us)
        self._buffer, self._number, self._session = b"", 0, None
        self._clear()
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")
        self.call("Page.setLifecycleEventsEnabled", enabled=True)

    def _clear(self):
        self.requests, self.problems, self.dialogs, self._loaded = [], [], [], set()

    def call(self, method, **params):
        """The result of one command; what happens meanwhile is noted."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": params}
        message |= {"sessionId": self._session} if self._session else {}
        data = json.dumps(message).encode() + b"\0"
        while data:
            data = data[os.write(self._to, data) :]
        while True:
            answer = self._receive()
            if answer.get("id") == message["id"]:
                assert "error" not in answer, answer
                return answer["result"]

    def _receive(self):
        deadline = time.monotonic() + PATIENCE
        while b"\0" not in self._buffer:
            ready, _, _ = select.select([self._from], [], [], max(0, deadline - time.monotonic()))
            assert ready, f"Chromium did not answer in {PATIENCE} s"
            data = os.read(self._from, 1 << 16)
            assert data, "Chromium has ended"
            self._buffer += data
        text, self._buffer = self._buffer.split(b"\0", 1)
        message = json.loads(text)
        self._note(message.get("method"), message.get("params", {}))
        return message

    def _note(self, event, params):
        if event == "Page.lifecycleEvent" and params["name"] == "load":
            self._loaded.add(params["loaderId"])
        elif event == "Network.requestWillBeSent":
            self.requests.append(params["request"]["url"])
        elif event == "Log.entryAdded":
            self.problems.append(params["entry"]["text"])
        elif event == "Runtime.exceptionThrown":
            self.problems.append(str(params["exceptionDetails"]))
        elif event == "Runtime.consoleAPICalled":
            self.problems.append(str(params["args"]))
        elif event == "Page.javascriptDialogOpening":
            self.dialogs.append(params["message"])

    def open(self, path, scripts=True):
        """Load a page, wait until all of it is there, and let timers that it may have set go off."""
        self._clear()
        self.call("Emulation.setScriptExecutionDisabled", value=not scripts)
        loader = self.call("Page.navigate", url=path.as_uri())["loaderId"]
        while loader not in self._loaded:
            self._receive()
        if scripts:
            self.evaluate("new Promise((done) => setTimeout(done, 50))")

    def evaluate(self, expression):
        """The value of a JavaScript expression, or of the promise it gives; the page's policy does not bind it."""
        answer = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def press(self, key, text=""):
        """One key, as a person presses it."""
        self.call("Input.dispatchKeyEvent", type="keyDown", key=key, text=text)
        self.call("Input.dispatchKeyEvent", type="keyUp", key=key)

    def close(self):
        os.close(self._to)  # ends it
        os.close(self._from)
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


@pytest.fixture
def show(browser, tmp_path):
    """show(page, **options) -> the browser, with the page loaded."""

    def show(page, **options):
        write_page(page, tmp_path / "page.html")
        browser.open(tmp_path / "page.html", **options)
        return browser

    return show


@pytest.fixture(scope="session")
def browser(tmp_path_factory):
    if CHROMIUM is None:
        pytest.skip("no Chromium on this machine: install the package `chromium` to test the pages")
    browser = Browser(tmp_path_factory.mktemp("chromium"))
    yield browser
    browser.close()
