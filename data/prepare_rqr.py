"""Training tasks for query reasoners out of Stack Exchange's dumps: `python data/prepare_rqr.py --help`."""

import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[1])

from research.datasets.stack_exchange.prepare import main

if __name__ == "__main__":
    main()
