"""Question sets in FlashRAG's form: `python data/flashrag.py --help`."""

import runpy
import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[1])
runpy.run_module("research.datasets.flashrag", run_name="__main__")
