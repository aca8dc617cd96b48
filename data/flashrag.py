"""Question sets in FlashRAG's form: `python data/flashrag.py --help`."""

import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[1])

from research.datasets.flashrag import main

if __name__ == "__main__":
    main()
