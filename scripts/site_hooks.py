"""What mkdocs does not do by itself; called by it (mkdocs.yml, `hooks`)."""

import html
import re
from collections import Counter
from typing import Any
from xml.etree import ElementTree

from latex2mathml.converter import convert
from markdown_it import MarkdownIt
from mkdocs.plugins import get_plugin_logger

log = get_plugin_logger("trl_plus")
FORMULA = re.compile(r'<(span|div) class="arithmatex">\\[(\[](.*?)\\[)\]]</\1>', re.DOTALL)
ARGUMENTS = {"mfrac": 2, "msub": 2, "msup": 2, "msubsup": 3, "mroot": 2, "mover": 2, "munder": 2, "munderover": 3}
COMPARED = ("h1", "h2", "h3", "table", "tr", "ul", "ol", "li", "pre", "img")


def on_page_content(page_html: str, page: Any, **_: Any) -> str:
    """The page with its formulas as MathML, which browsers show without scripts or fonts from elsewhere.

    A warning, which `--strict` makes an error, says where a formula cannot be converted and where Python-Markdown
    reads another structure than GitHub does.
    """
    path = page.file.src_uri
    for tag, github, here in differences(page.markdown, page_html):
        log.warning(f"{path}: {github} <{tag}> on GitHub and {here} here: leave a blank line before, indent by four")
    return FORMULA.sub(lambda match: mathml(path, match[1] == "div", html.unescape(match[2])), page_html)


def mathml(path: str, display: bool, formula: str) -> str:
    """A formula as MathML. One that cannot be converted is named in a warning and left as it is written."""
    try:
        converted = convert(formula, display="block" if display else "inline")
        parts = ElementTree.fromstring(converted).iter()
        short = [part.tag for part in parts if len(part) < ARGUMENTS.get(part.tag.rpartition("}")[2], 0)]
    except Exception as error:  # latex2mathml has one class for each mistake
        converted, short = "", [type(error).__name__]
    if short or "\\" in converted:
        log.warning(f"{path}: no MathML for {formula}")
        return html.escape(formula)
    return converted


def differences(markdown: str, page_html: str) -> list[tuple[str, int, int]]:
    """(tag, times on GitHub, times here) of each structural tag that the two readings have unequally often."""
    tokens = MarkdownIt("commonmark").enable("table").parse(markdown)
    blocks = [part for token in tokens for part in (token, *(token.children or []))]
    github = Counter(part.tag for part in blocks if part.nesting >= 0)
    github["pre"] = sum(part.type in ("fence", "code_block") for part in blocks)
    here = Counter(re.findall(r"<(\w+)[ >/]", page_html))
    return [(tag, github[tag], here[tag]) for tag in COMPARED if github[tag] != here[tag]]
