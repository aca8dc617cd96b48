"""The generated world that CPUs train in: `python data/mini_world.py --help`."""

import runpy
import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[1])
runpy.run_module("research.datasets.mini.world", run_name="__main__")
