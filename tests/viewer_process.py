"""The viewer as a process of its own."""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).parents[1]


@contextmanager
def viewing(*paths: Path) -> Iterator[str]:
    """The address of a viewer of these paths. In the end ctrl-C must stop it without a word."""
    command = [sys.executable, "-u", "-m", "research.viewer", *map(str, paths), "--port", "0"]
    pipe = subprocess.PIPE
    process = subprocess.Popen(command, cwd=ROOT, stdout=pipe, stderr=pipe, text=True)
    try:
        line = process.stdout.readline()
        assert line.startswith("trajectories at http://127.0.0.1:"), process.stderr.read()
        yield line.split()[2]
        process.send_signal(2)
        said = process.communicate(timeout=120)
        assert (said, process.returncode) == (("", ""), 0)
    finally:
        process.kill()
        process.wait()
