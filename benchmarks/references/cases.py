"""Episodes that came out equal, as facts for a test that needs no checkout (tests/fidelity/*.jsonl).

Prompts and notices are the references' wording: a notice is kept as the word NOTICE, a prompt not at all.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict
from itertools import groupby
from pathlib import Path
from typing import Any

from benchmarks.references.model import Outcome
from benchmarks.references.scripts import Script

NOTICE = "NOTICE"
LONGEST = 4000  # characters of a response that is worth keeping


def write_cases(
    path: Path, system: str, episodes: Sequence[tuple[Script, Outcome]], tokenizer: Any, notice: str
) -> None:
    """Write a line per episode: the script, the response's parts as [author, text], answer and reward.

    Of an evaluation it is the response as one text, and the metrics.
    """
    with path.open("w", encoding="utf-8") as file:
        for script, outcome in episodes:
            parts = _parts(outcome, tokenizer, notice)
            if sum(len(text) for _, text in parts) <= LONGEST:
                turns = [asdict(turn) for turn in script.turns[: len(outcome.contexts)]]
                row = {"system": system, **asdict(script), "turns": turns, "answer": outcome.answer}
                if outcome.scores:
                    row |= {"response": "".join(text for _, text in parts), **outcome.scores}
                else:
                    row |= {"parts": parts, "reward": outcome.reward}
                file.write(json.dumps(row, ensure_ascii=False) + "\n")


def _parts(outcome: Outcome, tokenizer: Any, notice: str) -> list[list[str]]:
    pairs = zip(outcome.response_ids, outcome.mask, strict=True)
    parts = []
    for trained, run in groupby(pairs, key=lambda pair: pair[1]):
        text = tokenizer.decode([token for token, _ in run])
        parts.append(["model" if trained else "environment", NOTICE if text == notice else text])
    return parts
