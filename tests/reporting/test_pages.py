"""The pages without a browser: no text changes their structure, nothing leaves them, and writing is all or nothing."""

import importlib.util
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from trl_plus.preflight.page import preflight_page
from trl_plus.preflight.preview_shown import preview_page
from trl_plus.ui.pages import write_page

ROOT = Path(__file__).parents[2]
# Line breaks and backticks are drawn with elements of ours
TEXTS = st.text(st.one_of(st.characters(exclude_characters="\n`"), st.sampled_from("<>&\"'/=!-{}%#")), min_size=1)


class Structure(HTMLParser):
    """Tags and names of attributes, in order; scripts and styles are left alone as a browser would."""

    def __init__(self, page):
        super().__init__()
        self.tags = []
        self.feed(page)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, *(name for name, _ in attrs)))

    def handle_endtag(self, tag):
        self.tags.append(f"/{tag}")

    def handle_comment(self, data):
        self.tags.append("comment")


def pages(hostile):
    return preflight_page(hostile) + preview_page(hostile.previews, hostile.source)


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=TEXTS)
def test_no_text_changes_the_structure(text, everywhere):
    page = pages(everywhere(text))
    assert Structure(page).tags == Structure(pages(everywhere("x"))).tags
    page.encode()


def test_nothing_is_loaded_from_elsewhere(result):
    page = preflight_page(result())
    assert not re.findall(r"""https?:|(?:src|href|action)\s*=\s*["'](?!data:,")|url\(|@import""", page)


def test_the_same_result_gives_the_same_page(result):
    assert preflight_page(result()) == preflight_page(result())


def test_code_in_sentences_is_set_as_code(result, finding):
    page = preflight_page(result(findings=[finding(sentence="Set `a <b>` or `c`.", cure="An odd ` stays.")]))
    assert "Set <code>a &lt;b&gt;</code> or <code>c</code>." in page
    assert "An odd ` stays." in page


def test_a_page_is_written_whole_or_not_at_all(tmp_path):
    path = tmp_path / "page.html"
    path.write_text("old")
    with pytest.raises(UnicodeEncodeError):
        write_page("\ud800", path)
    assert path.read_text() == "old"
    write_page("new\n", path)
    assert path.read_bytes() == b"new\n"
    assert list(tmp_path.iterdir()) == [path]


def test_the_faces_do_not_import_torch():
    code = (
        "import sys\n"
        "from trl_plus.preflight import as_json, page, preview_shown, table\n"
        "heavy = {'torch', 'trl', 'transformers', 'datasets', 'numpy'} & set(sys.modules)\n"
        "sys.exit(f'imported {heavy}' if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_pictures(result, browser, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    spec = importlib.util.spec_from_file_location("preflight_pictures", ROOT / "scripts" / "preflight_pictures.py")
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    script.pictures(result(), tmp_path / "images")
    assert (tmp_path / "images" / "preflight.png").read_bytes().startswith(b"\x89PNG")
    svg = (tmp_path / "images" / "preflight_terminal.svg").read_text()
    assert "Errors" in svg
    assert "url(https" not in svg.replace('"', "")
