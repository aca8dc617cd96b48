"""Question files of any published form as the training reads them: `python data/questions.py --help`."""

import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[1])

from research.datasets.questions import main

if __name__ == "__main__":
    main()
