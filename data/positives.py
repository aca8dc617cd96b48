"""A corpus of the positives of rewriting tasks that have none: `python data/positives.py --help`."""

import runpy
import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[1])
runpy.run_module("research.datasets.stack_exchange.positives", run_name="__main__")
