"""A corpus of the positives of rewriting tasks that have none: `python data/positives.py --help`."""

import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[1])

from research.datasets.stack_exchange.positives import main

if __name__ == "__main__":
    main()
