"""Rewards to the letter beside the references' own, on real responses.

    python -m benchmarks.reference_rewards trajectories.jsonl --search-r1 ../Search-R1 --research ../ReSearch

The file has a response of Search-R1's protocol per line, {"query", "final_response", "golden_answers"}.
Search-R1's reward gets each with its own golden answers and with others; ReSearch's gets each in its tags,
with and without a box, ended and cut off, and ReCall's each in its turns, likewise. Exits 1 if a reward
differs.
"""

import contextlib
import io
import json
import re
import sys
from collections.abc import Iterator
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any

import click

from benchmarks.references import recall, research, search_r1
from benchmarks.references.model import byte_tokenizer
from benchmarks.references.ours import preset
from research.episode.protocol import Protocol
from research.episode.trajectory import FinishReason, Segment, Trajectory
from research.rewards import DOOR, Reference

OTHERS = (["Beijing"], ["Rome"])


@cache
def _protocol(reward: str) -> Protocol:
    name = reward.removesuffix("_reference")
    return preset("research_instruct" if name == "research" else name).protocol


def _ours(reward: str, text: str | list[Segment], golden: list[str], ended: FinishReason) -> float:
    segments = [_said(text)] if isinstance(text, str) else text
    trajectory = Trajectory([1], segments, finish_reason=ended)
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


def _pairs_of_recall(row: dict[str, Any], checkout: Path) -> Iterator[tuple[float, float]]:
    reward = recall.parts_of(checkout).reward
    boxed = re.sub(r"<answer>(.*?)</answer>", _in_a_box, row["final_response"], flags=re.DOTALL)
    cases = product((row["final_response"], boxed), (("eos", "<|im_end|>"), ("length", "")))
    for (text, (ended, end)), golden in product(cases, (row["golden_answers"], *OTHERS)):
        segments = _turns_of_recall(text)
        inner = [each.text + "<|im_end|>" * (each.author == "model") for each in segments[:-1]]
        whole = f"<|im_start|>assistant\n<think>{''.join(inner)}{segments[-1].text}{end}"
        theirs, _ = reward.compute_score_with_format(byte_tokenizer(), whole, golden)
        yield float(theirs), _ours("recall_reference", segments, golden, ended)


def _turns_of_recall(text: str) -> list[Segment]:
    """A response of Search-R1's in ReCall's turns: searches as its calls, results as its user's."""
    texts = re.split(r"\s*<information>(.*?)</information>\s*", text, flags=re.DOTALL)
    frame = _protocol("recall_reference").turn_template
    segments = []
    for place, part in enumerate(texts):
        said = re.sub(r"<search>(.*?)</search>", _as_a_call, part, flags=re.DOTALL).strip()
        block = frame.replace("{results}", f"<tool_response>\nresult: \n{part}\n</tool_response>\n")
        segments.append(
            Segment("environment", [], [], block) if place % 2 else _said(said.removeprefix("<think>"))
        )
    return segments


def _said(text: str) -> Segment:
    return Segment("model", [], [], text)


def _as_a_call(search: re.Match[str]) -> str:
    call = {"name": "wikipedia_search", "arguments": {"query": search[1].strip()}}
    return f"<tool_call>{json.dumps(call, ensure_ascii=False)}</tool_call>"


def _in_a_box(answer: re.Match[str]) -> str:
    return f"<answer> \\boxed{{{answer[1].strip()}}} </answer>"


@click.command()
@click.argument("responses", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--search-r1", "first", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--research", "second", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--recall", "third", type=click.Path(exists=True, file_okay=False, path_type=Path))
def main(responses: Path, first: Path | None, second: Path | None, third: Path | None) -> None:
    """See the top of this file."""
    rows = [json.loads(line) for line in responses.open(encoding="utf-8")]
    failed = False
    for name, checkout, pairs_of in (
        ("Search-R1", first, _pairs_of_search_r1),
        ("ReSearch", second, _pairs_of_research),
        ("ReCall", third, _pairs_of_recall),
    ):
        if checkout is not None:
            pairs = [pair for row in rows for pair in pairs_of(row, checkout)]
            different = sum(abs(theirs - mine) > 1e-6 for theirs, mine in pairs)
            print(f"{name}: {len(pairs)} rewards of {len(rows)} responses, {different} differ")
            failed = failed or different > 0
    sys.exit(failed)


if __name__ == "__main__":
    main()
