"""BRIGHT's tasks and passages: `python data/bright.py --help`."""

import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[1])

from research.datasets.bright import main

if __name__ == "__main__":
    main()
