"""MuSiQue's questions: `python data/musique.py --help`."""

import runpy
import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[1])
runpy.run_module("research.datasets.musique", run_name="__main__")
