"""HTML pages in one file: no request leaves them, and text of a dataset in them is shown and never run."""

import base64
import hashlib
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from trl_plus.errors import DataError
from trl_plus.ui.console import printable

_TEMPLATES = Path(__file__).with_name("templates")


def render(template: str, *sheets: str, **context: Any) -> str:
    """A page of the package's templates, with page.css and page.js and the further sheets (`run.css`, `compare.js`).

    Every text is escaped, and what no page can show is written out (`printable`). The page's own style and script are
    allowed by their hashes in its Content-Security-Policy, so that nothing else could run even if it were not escaped.
    """
    style, script = (_source(f"page{end}", *(name for name in sheets if name.endswith(end))) for end in (".css", ".js"))
    policy = (
        f"default-src 'none'; style-src '{_hash(style)}'; script-src '{_hash(script)}'; img-src data:; "
        "base-uri 'none'; form-action 'none'; require-trusted-types-for 'script'; trusted-types 'none'"
    )
    own = {"policy": policy, "style": Markup(style), "script": Markup(script)}
    return _environment().get_template(template).render(**context, **own)


@cache
def _environment() -> Environment:
    return Environment(
        loader=FileSystemLoader(_TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=_finalize,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )


def write_page(page: str, path: Path) -> None:
    """Write a page; the file is whole or as it was."""
    part = path.with_name(f"{path.name}.part")
    part.write_text(page, encoding="utf-8", newline="\n")
    part.replace(path)


def check_writable(path: Path, option: str) -> None:
    """Before a file is worth minutes: it can be written. Folders that it lies in are made.

    Raises:
        DataError: it is a folder, or cannot be written.
    """
    if path.is_dir():
        raise DataError(f"{option}: {path} is a folder: name a file in it.")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path.parent):
            pass
    except OSError as error:
        raise DataError(f"{option}: {path} cannot be written ({error.strerror}): name another file.") from error


def _source(*names: str) -> str:
    """Files as they stand between their tags, surrounding line breaks included: the hash is taken over all of it."""
    return "".join("\n" + (_TEMPLATES / name).read_text(encoding="utf-8") for name in names)


def _hash(source: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(source.encode()).digest()).decode()


def _finalize(value: Any) -> Any:
    return printable(value) if isinstance(value, str) and not isinstance(value, Markup) else value
