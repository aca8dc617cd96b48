"""The generated world that CPUs train in: `python data/mini_world.py --help`."""

import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[1])

from research.datasets.mini.world import main

if __name__ == "__main__":
    main()
