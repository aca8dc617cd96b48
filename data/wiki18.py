"""The 2018 Wikipedia with its E5 index: `python data/wiki18.py --help`."""

import runpy
import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[1])
runpy.run_module("research.datasets.wiki18", run_name="__main__")
