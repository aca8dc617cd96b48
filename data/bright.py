"""BRIGHT's tasks and passages: `python data/bright.py --help`."""

import runpy
import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[1])
runpy.run_module("research.datasets.bright", run_name="__main__")
