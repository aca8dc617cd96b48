"""Run a peer's server script, as it is, on a machine without a GPU and on a port of our choice.

    PEER_VENV/bin/python benchmarks/peer_shim.py PORT SCRIPT [ARGUMENTS OF THE SCRIPT]

Nothing of a script is changed; what it calls is, before it starts:
- `.cuda()` of modules and tensors does nothing where there is no GPU; both peers call it unconditionally.
- `.half()` of modules does nothing, so that all servers compute the same; with PEER_HALF=1 it converts.
- `uvicorn.run` listens on 127.0.0.1 and PORT, whatever was asked for. Search-R1 has port 8000 built in.
"""

import os
import runpy
import sys
from collections.abc import Callable
from typing import Any

import torch
import uvicorn


def unchanged(self: Any, *arguments: Any, **options: Any) -> Any:
    """In place of a method that would move or convert."""
    return self


def listening_on(port: int, run: Callable[..., None]) -> Callable[..., None]:
    """uvicorn.run with its address replaced."""

    def run_here(*arguments: Any, **options: Any) -> None:
        run(*arguments, **{**options, "host": "127.0.0.1", "port": port})

    return run_here


def main() -> None:
    """See the top of this file."""
    port, script, *arguments = sys.argv[1:]
    if not torch.cuda.is_available():
        torch.nn.Module.cuda, torch.Tensor.cuda = unchanged, unchanged  # type: ignore[method-assign]
    if "PEER_HALF" not in os.environ:
        torch.nn.Module.half = unchanged  # type: ignore[method-assign]
    uvicorn.run = listening_on(int(port), uvicorn.run)
    sys.argv = [script, *arguments]
    runpy.run_path(script, run_name="__main__")


if __name__ == "__main__":
    main()
