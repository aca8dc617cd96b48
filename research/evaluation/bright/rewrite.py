"""Texts of a model, each kept in rewrites.jsonl as it ends.

A failed one is kept as failed, and not asked for again in this folder, unless all failed there.
"""

import hashlib
import json
import zlib
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

from research.datasets.bright import BrightTask
from research.episode.loop import Limits
from research.episode.prompts import asks_for_boxed, build_prompt, load_prompt
from research.episode.rewriting import rewritten_query, run_rewriting
from research.episode.tokens import TokenProtocol
from research.episode.trajectory import well_formed
from research.evaluation.at_once import Failed, Progress, at_once, attempt
from research.evaluation.bright.config import BrightConfig
from research.evaluation.config import EvaluationError
from research.evaluation.engines import Engine, Stops, tokens_of, turn_generator
from research.evaluation.engines.opening import opened
from research.files import cut_half_line

REWRITES = "rewrites.jsonl"


class Wanted(NamedTuple):
    """One text to ask for; `key` is a hash of all that it depends on."""

    task: str
    id: str
    sample: int
    question: str
    key: str


@dataclass(frozen=True)
class Rewrite:
    """One text, a row of rewrites.jsonl; `error` says why there is none."""

    task: str
    id: str
    sample: int
    key: str
    text: str
    tokens: int = 0
    finish_reason: str | None = None
    error: str | None = None


class Rewrites:
    """rewrites.jsonl, to append to. One process at a time."""

    def __init__(self, run_dir: Path) -> None:
        """Resume from the file, without the half line that a kill may have left. Raises EvaluationError."""
        self._path = run_dir / REWRITES
        cut_half_line(self._path)
        lines = self._path.read_bytes().splitlines() if self._path.exists() else []
        rows = [self._row(number, line) for number, line in enumerate(lines, start=1)]
        if rows and all(row.error for row in rows):
            rows = []
            self._path.unlink()
        self.done = {row.key: row for row in rows}

    def _row(self, number: int, line: bytes) -> Rewrite:
        try:
            return Rewrite(**json.loads(line))
        except (ValueError, TypeError) as error:
            message = f"{self._path}:{number} is no text; remove the line, and it is asked for again"
            raise EvaluationError(message) from error

    def add(self, row: Rewrite) -> None:
        """Append a text."""
        with self._path.open("a", encoding="utf-8") as file:
            file.write(well_formed(json.dumps(asdict(row), ensure_ascii=False)) + "\n")
        self.done[row.key] = row


def wanted(tasks: Iterable[BrightTask], config: BrightConfig, model: dict[str, Any]) -> list[Wanted]:
    """All texts that the configuration asks for, in order; `model` is its identity."""
    rewriting, engine = config.rewriting, config.engine
    settings = [
        model,
        load_prompt(rewriting.prompt)[:2],
        asdict(config.protocol),
        asdict(rewriting) | {"samples": None, "think": rewriting.thinks},
        asdict(config.sampling),
        [engine.tokenizer, engine.dtype, engine.max_model_len, engine.served_name],
    ]
    texts = []
    for task in tasks:
        for each in task.questions:
            for sample in range(rewriting.samples):
                key = _key([settings, task.name, *asdict(each).values(), sample])
                texts.append(Wanted(task.name, each.id, sample, each.question, key))
    return texts


async def rewrite_all(texts: list[Wanted], rewrites: Rewrites, config: BrightConfig) -> None:
    """Make the texts that are not there yet. Raises EvaluationError if none can be made."""
    todo = [each for each in texts if each.key not in rewrites.done]
    if not todo:
        return
    done = len(texts) - len(todo)
    with Progress(total=len(texts), initial=done, unit="text", smoothing=0.05) as bar:
        async with opened(config.engine, config.sampling) as engine:
            tokens = tokens_of(engine, config.protocol, config.rewriting.prompt)

            async def rewrite(each: Wanted) -> None:
                place = (each.task, each.id, each.sample, each.key)
                row = await attempt(_rewrite(each, engine, tokens, config), config.question_timeout, "text")
                if isinstance(row, Failed):
                    row = Rewrite(*place, "", error=row.reason)
                rewrites.add(row)
                bar.count(row.error)

            await at_once(todo, min(config.concurrency, len(todo)), rewrite)


async def _rewrite(each: Wanted, engine: Engine, tokens: TokenProtocol, config: BrightConfig) -> Rewrite:
    rewriting = config.rewriting
    limits = Limits(0, rewriting.tokens, rewriting.tokens, passage_tokens=1)
    seed = zlib.crc32(repr((config.sampling.seed, *each[:3])).encode())

    async def sample(token_ids: list[int], max_tokens: int, stops: Stops) -> list[int]:
        return await engine.generate(token_ids, max_tokens, stops, seed)

    prompt_ids = build_prompt(rewriting.prompt, each.question, tokens)
    trajectory = await run_rewriting(prompt_ids, turn_generator(sample, tokens), tokens, limits)
    text = rewritten_query(trajectory, tokens, rewriting.thinks, asks_for_boxed(rewriting.prompt))
    length, reason = trajectory.response_length, trajectory.finish_reason
    return Rewrite(each.task, each.id, each.sample, each.key, text, length, reason)


def _key(parts: Any) -> str:
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]
