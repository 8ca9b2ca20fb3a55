"""A run of a bundled recipe connects to nothing, with the hub allowed."""

import os
import subprocess
import sys

# every way out of the process is noted down and refused
GUARD = """
import socket, sys
def refuse(*args, **kwargs):
    open("connected", "a").write(repr(args) + chr(10))
    raise OSError("no network in this test")
socket.socket.connect = socket.socket.connect_ex = socket.getaddrinfo = socket.create_connection = refuse
from trl_plus.cli import main
sys.argv = ["trl-plus", "train", "quickstart", "output_dir=out", "max_steps=2", "save_strategy=no",
            "max_eval_rows=2", "report_generations=0"]
main()
"""


def test_the_quickstart_connects_to_nothing(tmp_path):
    online = {name: value for name, value in os.environ.items() if not name.endswith("_OFFLINE")}
    done = subprocess.run(
        [sys.executable, "-c", GUARD],
        cwd=tmp_path,
        env=online,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert (tmp_path / "out" / "README.md").is_file()  # the model card is written without asking the hub
    connected = tmp_path / "connected"
    assert not connected.exists(), connected.read_text()
