"""Training tasks for query reasoners from Stack Exchange's dumps: `python data/prepare_rqr.py --help`."""

import runpy
import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[1])
runpy.run_module("research.datasets.stack_exchange.prepare", run_name="__main__")
