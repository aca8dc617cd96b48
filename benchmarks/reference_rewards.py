"""Rewards to the letter beside the references' own, on real responses.

    python -m benchmarks.reference_rewards trajectories.jsonl --search-r1 ../Search-R1 --research ../ReSearch

The file has a response of Search-R1's protocol per line, {"query", "final_response", "golden_answers"}.
Search-R1's reward gets each with its own golden answers and with others; ReSearch's gets each in its tags,
with and without a box, ended and cut off. Exits 1 if a reward differs.
"""

import contextlib
import io
import json
import re
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import click

from benchmarks.references import research, search_r1
from benchmarks.references.model import byte_tokenizer
from benchmarks.references.ours import preset
from research.episode.protocol import Protocol
from research.episode.trajectory import FinishReason, Segment, Trajectory
from research.rewards import DOOR, Reference

OTHERS = (["Beijing"], ["Rome"])


@cache
def _protocol(reward: str) -> Protocol:
    return preset("search_r1" if reward.startswith("search") else "research_instruct").protocol


def _ours(reward: str, text: str, golden: list[str], ended: FinishReason) -> float:
    trajectory = Trajectory([1], [Segment("model", [], [], text)], finish_reason=ended)
    return float(DOOR.load(reward)(trajectory, Reference("", tuple(golden), _protocol(reward))).score)


def _pairs_of_search_r1(row: dict[str, Any], checkout: Path) -> Iterator[tuple[float, float]]:
    reward = search_r1.parts_of(checkout).reward
    for golden in (row["golden_answers"], *OTHERS):
        with contextlib.redirect_stdout(io.StringIO()):
            text = row["query"] + row["final_response"]
            theirs = reward.compute_score_em(text, {"target": golden}, **search_r1.REWARD)
        yield float(theirs), _ours("search_r1_reference", row["final_response"], golden, "eos")


def _pairs_of_research(row: dict[str, Any], checkout: Path) -> Iterator[tuple[float, float]]:
    reward, golden = research.parts_of(checkout).reward, row["golden_answers"]
    plain = row["final_response"].replace("information>", "result>")
    boxed = re.sub(r"<answer>(.*?)</answer>", _in_a_box, plain, flags=re.DOTALL)
    for text in (plain, boxed, boxed + "\n"):
        for ended, end in (("eos", "<|im_end|>"), ("length", "")):
            whole = f"<|im_start|>assistant\n{text}{end}"
            theirs, _ = reward.compute_score(byte_tokenizer(), whole, golden)
            yield float(theirs), _ours("research_reference", text, golden, ended)


def _in_a_box(answer: re.Match[str]) -> str:
    return f"<answer> \\boxed{{{answer[1].strip()}}} </answer>"


@click.command()
@click.argument("responses", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--search-r1", "first", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--research", "second", type=click.Path(exists=True, file_okay=False, path_type=Path))
def main(responses: Path, first: Path | None, second: Path | None) -> None:
    """See the top of this file."""
    rows = [json.loads(line) for line in responses.open(encoding="utf-8")]
    failed = False
    for name, checkout, pairs_of in (
        ("Search-R1", first, _pairs_of_search_r1),
        ("ReSearch", second, _pairs_of_research),
    ):
        if checkout is not None:
            pairs = [pair for row in rows for pair in pairs_of(row, checkout)]
            different = sum(abs(theirs - mine) > 1e-6 for theirs, mine in pairs)
            print(f"{name}: {len(pairs)} rewards of {len(rows)} responses, {different} differ")
            failed = failed or different > 0
    sys.exit(failed)


if __name__ == "__main__":
    main()
