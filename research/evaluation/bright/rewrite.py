"""Texts of a model, each kept in rewrites.jsonl as it ends.

A failed one is kept as failed, and not asked for again in this folder, unless all failed there.
"""

import json
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
from research.evaluation.engines import Engine, sampler, seed_of, tokens_of, turn_generator
from research.evaluation.engines.identity import hash_of
from research.evaluation.engines.opening import opened
from research.files import append_line, cut_half_line, whole_lines


class Wanted(NamedTuple):
    """One text to ask for; `key` is a hash of all that it depends on."""

    task: str
    id: str
    sample: int
    key: str
    question: str


@dataclass(frozen=True)
class Rewrite:
    """One text, a row of rewrites.jsonl; `error` says why there is none."""

    task: str
    id: str
    sample: int
    key: str
    text: str = ""
    tokens: int = 0
    finish_reason: str | None = None
    error: str | None = None


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
                key = hash_of([settings, task.name, *asdict(each).values(), sample])[:16]
                texts.append(Wanted(task.name, each.id, sample, key, each.question))
    return texts


async def rewrite_all(texts: list[Wanted], path: Path, config: BrightConfig) -> list[Rewrite]:
    """The texts in their order, made if the file lacks them. Raises EvaluationError if none can be made."""
    done = _read(path)
    todo = [each for each in texts if each.key not in done]
    if todo:
        with Progress(total=len(texts), initial=len(texts) - len(todo), unit="text", smoothing=0.05) as bar:
            async with opened(config.engine, config.sampling) as engine:
                tokens = tokens_of(engine, config.protocol, config.rewriting.prompt)

                async def rewrite(each: Wanted) -> None:
                    work = _rewrite(each, engine, tokens, config)
                    row = await attempt(work, config.question_timeout, "text")
                    if isinstance(row, Failed):
                        row = Rewrite(*each[:4], error=row.reason)
                    append_line(path, well_formed(json.dumps(asdict(row), ensure_ascii=False)))
                    done[row.key] = row
                    bar.count(row.error)

                await at_once(todo, min(config.concurrency, len(todo)), rewrite)
    return [done[each.key] for each in texts]


def _read(path: Path) -> dict[str, Rewrite]:
    """The rows by key; a half line, left by a kill, is cut off, and so is all if all failed."""
    cut_half_line(path)
    rows = {}
    for number, line in enumerate(whole_lines(path), start=1):
        try:
            row = Rewrite(**json.loads(line))
        except (ValueError, TypeError) as error:
            message = f"{path}:{number} is no text; remove the line, and it is asked for again"
            raise EvaluationError(message) from error
        rows[row.key] = row
    if rows and all(row.error for row in rows.values()):
        path.unlink()
        return {}
    return rows


async def _rewrite(each: Wanted, engine: Engine, tokens: TokenProtocol, config: BrightConfig) -> Rewrite:
    rewriting = config.rewriting
    limits = Limits(0, rewriting.tokens, rewriting.tokens, passage_tokens=1)
    generate = turn_generator(sampler(engine, seed_of(config.sampling.seed, *each[:3])), tokens)
    prompt_ids = build_prompt(rewriting.prompt, each.question, tokens)
    trajectory = await run_rewriting(prompt_ids, generate, tokens, limits)
    text = rewritten_query(trajectory, tokens, rewriting.thinks, asks_for_boxed(rewriting.prompt))
    return Rewrite(*each[:4], text, trajectory.response_length, trajectory.finish_reason)
