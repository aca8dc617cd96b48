"""Where files are kept: in a checkout, beside the code; when installed, runs in the current folder."""

import os
from pathlib import Path

PACKAGE = Path(__file__).resolve().parent
CONFIG_DIR = PACKAGE / "config"
_IN_CHECKOUT = (PACKAGE.parent / "recipes").is_dir()
TRAIN = "bash recipes/train_{}.sh" if _IN_CHECKOUT else "research-train {}"
"""The command of a recipe, to be formatted with its name."""
RUNS = PACKAGE.parent / "runs" if _IN_CHECKOUT else Path("runs").absolute()
_CACHE_HOME = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
CACHE = PACKAGE.parent / "cache" if _IN_CHECKOUT else _CACHE_HOME / "research-rl"
"""What is downloaded, built and generated once, and may be deleted."""
