"""What the scripts that take pictures share: a page in headless Chromium."""

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from trl_plus.ui.pages import write_page

WIDTH = 1200  # of a page's picture, in pixels


def page_picture(page: str, path: Path, height: int) -> None:
    """The top of a page as PNG."""
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if chromium is None:
        sys.exit("There is no Chromium on this machine: install the package `chromium`.")
    with tempfile.TemporaryDirectory() as folder:
        write_page(page, Path(folder) / "page.html")
        flags = [
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--hide-scrollbars",
            f"--user-data-dir={folder}/profile",
        ]
        subprocess.run(
            [chromium, *flags, f"--window-size={WIDTH},{height}", f"--screenshot={path}", f"{folder}/page.html"],
            check=True,
            capture_output=True,
        )
