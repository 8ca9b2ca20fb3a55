"""What the pages hold: code, commands, links and headings, read by the rules of CommonMark as GitHub reads them."""

import re
import shlex
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from markdown_it import MarkdownIt

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
_READER = MarkdownIt("commonmark").enable("table")
# What ends a command of a shell: the next one, a redirection
_ENDS = {"|", "||", "&", "&&", ";", ">", ">>", "<", "(", ")"}


@dataclass(frozen=True)
class Code:
    """Code of a page. `language` is a fence's, "" for an indented block, None for code within a line."""

    page: str
    line: int
    language: str | None
    text: str

    @property
    def id(self):
        return f"{self.page}:{self.line}"

    @property
    def shown(self):
        """What the command of a `console` block prints."""
        return self.text.split("\n", 1)[1]

    @property
    def is_refused(self):
        """Whether it is the example of a command that is refused."""
        return self.language == "console" and self.shown.startswith("error: ")


def code_of(text, page):
    """Every piece of code of a page, blocks and spans."""
    found = []
    for token in _READER.parse(text):
        line = token.map[0] + 1 if token.map else 0
        if token.type in ("fence", "code_block"):
            found.append(Code(page, line, token.info.strip(), token.content))
        for child in token.children or []:
            if child.type == "code_inline":
                found.append(Code(page, line, None, child.content))
    return found


def all_code():
    return [code for page in PAGES for code in code_of(page.read_text(encoding="utf-8"), page.name)]


def blocks(language):
    """The fenced blocks of a language in all pages."""
    return [code for code in all_code() if code.language == language]


def commands(code, program):
    """The word lists of each call of a program in a piece of code, without redirections and comments.

    `program` is one word such as `trl-plus`, or the beginning of a path behind `python`, such as `python benchmarks/`.
    In a block of language `console` only lines that begin with `$ ` are commands, the others are what they print.
    """
    if code.language in ("python", "json"):
        return []
    lines = code.text.replace("\\\n", " ").splitlines()
    if code.language == "console":
        lines = [line.removeprefix("$ ") for line in lines if line.startswith("$ ")]
    calls = []
    for line in lines:
        start = r"(?:^|[;&|('\"]|\b\w+=\S*)\s*" if code.language is not None else "^"
        for match in re.finditer(rf"{start}({re.escape(program)}\S*(?: .*)?)$", line):
            calls.append(_words(match[1]))
    return calls


def _words(text):
    """The words of the first command of a line."""
    quotes = text.count("'")
    lexer = shlex.shlex(text.rstrip("'") if quotes % 2 else text, posix=True, punctuation_chars="|&;<>()")
    lexer.whitespace_split = True
    words = []
    for word in lexer:
        if word in _ENDS:
            break
        words.append(word)
    return words


def links_of(text):
    """(line, target) of every link and picture of a page."""
    found = []
    for token in _READER.parse(text):
        for child in token.children or []:
            target = child.attrGet("href") or child.attrGet("src")
            if target:
                found.append((token.map[0] + 1 if token.map else 0, str(target)))
    return found


def anchors_of(text):
    """GitHub's anchors of a page's headings; one that comes again gets a number."""
    tokens = _READER.parse(text)
    found = []
    for before, token in pairwise(tokens):
        if before.type == "heading_open":
            title = "".join(child.content for child in token.children)
            slug = re.sub(r"[^\w\- ]", "", title.lower()).strip().replace(" ", "-")
            times = sum(name == slug or re.fullmatch(rf"{re.escape(slug)}-\d+", name) is not None for name in found)
            found.append(f"{slug}-{times}" if times else slug)
    return set(found)


def marked_block(text, mark):
    """The lines of the code block after `<!-- mark -->`; exactly one is so marked."""
    (block,) = re.findall(rf"<!-- {mark} -->\n```\w+\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    return block.splitlines()
