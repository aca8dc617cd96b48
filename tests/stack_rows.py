"""Made-up rows of StackExchange."""

import json
import random
from pathlib import Path
from typing import Any

VOCABULARY = [
    f"{first}{last}" for first in "kmnprst" for last in ("ano", "eli", "iro", "usta", "onde", "ari")
]


def prose(seed: Any, length: int = 40) -> str:
    """Words drawn by the seed: two seeds hardly share three words in a row."""
    draw = random.Random(str(seed))
    return " ".join(draw.choice(VOCABULARY) + str(draw.randrange(9)) for _ in range(length))


def row(number: int, **changes: Any) -> dict[str, Any]:
    """A row of the hub's form."""
    answers = [{"text": f"<p>{prose(('answer', number))}</p>", "pm_score": 5, "selected": True}]
    site = ("biology", "math")[number % 2]
    return {
        "qid": number,
        "question": f"<p>{prose(number)}</p>",
        "answers": answers,
        "metadata": [f"https://{site}.stackexchange.com/questions/{number}"],
        **changes,
    }


def jsonl(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join(json.dumps(each) + "\n" for each in rows))
    return path
