"""What the pages say is run: README's five commands as a user would, others of the quickstart in this process."""

import json
import re
import shlex
import shutil
import subprocess
import sys

import pytest
from typer.testing import CliRunner

from tests.docs.pages import ROOT, all_code, blocks, commands, marked_block
from trl_plus.cli import app
from trl_plus.cli.arguments import normalise

pytestmark = pytest.mark.timeout(600)
README = (ROOT / "README.md").read_text(encoding="utf-8")
FIVE = marked_block(README, "five-commands")


# -- five commands ----------------------------------------------------------------------------------------------------


def test_the_five_commands_begin_with_the_install_line_of_the_main_command():
    """Which `.ci/run` installs with. Here the rest is run."""
    (main,) = marked_block(README, "main-command")
    assert main == f"{FIVE[0]} && {shlex.join(shlex.split(FIVE[1], comments=True))}"
    assert len(FIVE) == 5


@pytest.fixture(scope="module")
def five(quickstart):
    """What each command printed, by its words. The session's quickstart is the second; the others run in its folder."""
    train, *others = [shlex.split(line, comments=True) for line in FIVE[1:]]
    assert train == ["trl-plus", *quickstart.words]
    outputs = {tuple(train): quickstart.output}
    for program, *words in others:
        assert program == "trl-plus"
        command = [sys.executable, "-m", "trl_plus.cli", *words]
        done = subprocess.run(command, cwd=folder_of(quickstart), capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{words}\n{done.stderr[-2000:]}"
        outputs[("trl-plus", *words)] = done.stdout
    return outputs


def folder_of(quickstart):
    """The working directory that the quickstart was run in."""
    return quickstart.folder.parents[1]


def test_five_commands(quickstart, five):
    """From a model that is right about two thirds of the pairs to a merged one that is right about most and says so."""
    evaluated, compared, merged = list(five.values())[1:]
    accuracies = [float(x) for x in re.findall(r"^ *(?:base|tuned) +(\d\.\d+) \[", evaluated, re.MULTILINE)[:2]]
    assert accuracies[0] < 0.8 < accuracies[1]
    alike = int(re.search(r"(\d+) of 20 prompts answered alike", compared)[1])
    assert 0 < alike < 20  # half of the training data corrects answers, the other half confirms them
    assert (folder_of(quickstart) / "answers.html").read_text().count('<article class="sample"') == 20
    assert "Wrote merged" in merged
    changed = [
        g
        for g in json.loads((quickstart.folder / "metrics.json").read_text())["generations"]
        if g["before"] != g["after"]
    ]
    assert changed
    for generation in changed:
        assert answer(folder_of(quickstart) / "merged", generation["prompt"]) == generation["after"]


def answer(folder, prompt):
    """What a model folder answers, greedily, to a conversation written as lines `role: text`."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    turns = [line.partition(": ") for line in prompt.splitlines()]
    messages = [{"role": role, "content": text} for role, _, text in turns]
    inputs = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    out = model.generate(**inputs, max_new_tokens=40, do_sample=False)
    return tokenizer.decode(out[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True).strip()


# -- the other commands -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(quickstart, tmp_path_factory):
    """A working directory with a finished quickstart in it, which commands may write into."""
    work = tmp_path_factory.mktemp("docs")
    shutil.copytree(quickstart.folder, work / "runs" / "quickstart")
    return work


def run(words, folder, monkeypatch):
    """The result of a command, run in this process in a terminal of 80 columns."""
    monkeypatch.chdir(folder)
    monkeypatch.setenv("COLUMNS", "80")
    return CliRunner().invoke(app, normalise(words[1:]))


EXAMPLES = blocks("console")
ELSEWHERE = [shlex.split(line, comments=True) for line in FIVE]
ELSEWHERE += [words for code in EXAMPLES for words in commands(code, "trl-plus")]


def runs_here(words):
    """Whether a command needs nothing but the quickstart and seconds, and no other test of this file runs it."""
    if words in ELSEWHERE or words[1:2] == ["train"] or "--prompts" in words:
        return False
    return len(words) > 1 and (
        words[1] in ("schema", "env", "--version")
        or (len(words) > 2 and (words[1] == "recipes" or "quickstart" in words[2]))
    )


def unique(calls):
    """Each of the calls once, with a mark on those that take long."""
    for words in dict.fromkeys(map(tuple, calls)):
        marks = [pytest.mark.slow] if "100" in words or words[1] == "sweep" else []
        yield pytest.param(list(words), id=" ".join(words[1:]), marks=marks)


RUN = list(unique(words for code in all_code() for words in commands(code, "trl-plus") if runs_here(words)))


def test_every_command_is_run():
    ran = {words[1] for words in (*ELSEWHERE, *(param.values[0] for param in RUN if not param.marks))}
    ran.add("sweep")  # nine runs here; tests/sweep runs it on a tiny model
    assert ran >= {command.name or command.callback.__name__ for command in app.registered_commands}
    assert {"list", "show", "copy"} <= {param.values[0][2] for param in RUN if param.values[0][1] == "recipes"}


@pytest.mark.parametrize("words", RUN)
def test_command_runs(words, folder, monkeypatch):
    shutil.rmtree(folder / "merged", ignore_errors=True)
    (folder / "my.yaml").unlink(missing_ok=True)
    done = run(words, folder, monkeypatch)
    assert done.exit_code == 0, done.output
    if "--json" in words:
        assert json.loads(done.stdout)
    for option in ("--html", "--out", "--blind"):
        if option in words:
            assert (folder / words[words.index(option) + 1]).stat().st_size > 0


# -- what commands print ----------------------------------------------------------------------------------------------


NUMBER = re.compile(r"[+-]?\d+(?:\.\d+)?(?:e[+-]?\d+)?")


def plain(line):
    """A line without the widths of its columns, which follow from the numbers in it."""
    return re.sub(r"\s+", " ", re.sub(r"([━─┳╇┼┴])\1*", r"\1", line)).strip()


def same_line(printed, shown, cut):
    """True if two lines differ only in measured numbers, which are those with a fraction or an exponent.

    Integers are counts of rows, steps and options, and are compared. `cut`: the shown line may end early.
    """
    texts, wanted = NUMBER.split(printed), NUMBER.split(shown)
    if cut:
        texts = [*texts[: len(wanted) - 1], *(text[: len(wanted[-1])] for text in texts[len(wanted) - 1 : len(wanted)])]
    pairs = zip(NUMBER.findall(printed), NUMBER.findall(shown), strict=False)
    return texts == wanted and all(a == b or not (a + b).isdigit() for a, b in pairs)


def missing_lines(shown, printed):
    """The first run of lines between two `...` of an example that was not printed in this order, or None."""
    lines = [plain(line) for line in re.split(r"[\n\r]", printed)]
    position = 0
    for part in re.split(r"^\.\.\.$", shown, flags=re.MULTILINE):
        wanted = [plain(line.removesuffix("...")) for line in part.strip("\n").splitlines()]
        for start in range(position, len(lines) - len(wanted) + 1):
            here = lines[start : start + len(wanted)]
            cut = [line.endswith("...") for line in part.strip("\n").splitlines()]
            if all(map(same_line, here, wanted, cut)):
                position = start + len(wanted)
                break
        else:
            return part.strip("\n")
    return None


def test_there_are_examples():
    assert len(EXAMPLES) >= 7


@pytest.mark.parametrize("code", EXAMPLES, ids=lambda code: code.id)
def test_example_prints_what_the_page_shows(code, five, folder, monkeypatch):
    (words,) = commands(code, "trl-plus")
    printed = five.get(tuple(words))
    if printed is None:
        done = run(words, folder, monkeypatch)
        assert done.exit_code == (2 if code.is_refused else 0), done.output
        printed = done.stderr if code.is_refused else done.stdout
    assert missing_lines(code.shown, printed) is None


def test_a_wrong_example_is_found():
    printed = "one 1.5\ntwo   ━━━━\nthree 3\nfour"
    assert missing_lines("one 2.5\n...\nthree 3", printed) is None
    assert missing_lines("one 1.5\n...\nthree 7", printed) == "three 7"
    assert missing_lines("one 2\n...\nthree 3.5", printed) is None  # a measured number may be whole
    assert missing_lines("two ━━\nthr...\nfour", printed) is None
    assert missing_lines("three 3\n...\none 1", printed) == "one 1"
    assert missing_lines("one 1.5\nthree 3", printed) == "one 1.5\nthree 3"
    assert missing_lines("on", printed) == "on"


# -- data of one's own ------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_sequence_for_data_of_one_s_own(folder, monkeypatch):
    """As printed, with a file of pairs that has no test split. The model is on the hub, so `train` is a dry run, and
    `preflight` and `estimate` take the package's model instead."""
    (code,) = [code for code in all_code() if code.page == "quickstart.md" and "dataset_name=pairs.jsonl" in code.text]
    calls = commands(code, "trl-plus")
    assert [words[1] for words in calls] == ["recipes", "preflight", "estimate", "train"]
    rows = (ROOT / "trl_plus" / "quickstart" / "pairs_train.jsonl").read_text(encoding="utf-8").splitlines()
    (folder / "pairs.jsonl").write_text("\n".join(rows[:60]) + "\n", encoding="utf-8")
    (folder / "my.yaml").unlink(missing_ok=True)
    for words in calls:
        here = {"train": ["--dry-run"], "recipes": []}.get(words[1], ["model_name_or_path=bundled:quickstart/model"])
        done = run([*words, *here], folder, monkeypatch)
        assert done.exit_code == 0, f"{words}\n{done.output}"


def test_from_a_table_to_a_compared_run(tmp_path, monkeypatch):
    """Files and commands of the page are used as printed, and its line of messages is accepted."""
    page = (ROOT / "docs" / "quickstart.md").read_text(encoding="utf-8")
    for mark, name in (("csv", "answers.csv"), ("recipe", "mine.yaml")):
        (tmp_path / name).write_text("\n".join(marked_block(page, mark)) + "\n", encoding="utf-8")
    calls = [shlex.split(line, comments=True) for line in marked_block(page, "walk")]
    assert [words[1] for words in calls] == ["preflight", "preview", "train", "evaluate", "compare"]
    printed = {}
    for words in calls:
        done = run(words, tmp_path, monkeypatch)
        assert done.exit_code == 0, f"{words}\n{done.output}"
        printed[words[1]] = done.stdout
    assert "No errors and no warnings." in printed["preflight"]
    assert "‹<|im_start|>›assistant" in printed["preview"]
    assert (tmp_path / "runs" / "mine" / "adapter_config.json").is_file()
    assert (tmp_path / "mine.html").is_file()
    (row,) = [code for code in blocks("json") if code.page == "quickstart.md"]
    (tmp_path / "rows.jsonl").write_text(row.text, encoding="utf-8")
    done = run(
        ["trl-plus", "preflight", "mine.yaml", "dataset_name=rows.jsonl", "columns=null", "converter=null",
         "eval_fraction=null"], tmp_path, monkeypatch,
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    assert "No errors and no warnings." in done.stdout
