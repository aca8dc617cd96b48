"""The Wikipedia dump of 2018 with its E5 index: `python data/wiki18.py --help`."""

import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[1])

from research.datasets.wiki18 import main

if __name__ == "__main__":
    main()
