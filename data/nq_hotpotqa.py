"""The questions of Search-R1, NQ and HotpotQA: `python data/nq_hotpotqa.py --help`."""

import runpy
import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[1])
runpy.run_module("research.datasets.nq_hotpotqa", run_name="__main__")
