"""Texts of a model, each stored in rewrites.jsonl when it is finished.

A failed text is stored as failed, and not asked for again in this folder, unless all failed there.
"""

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

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


@dataclass(frozen=True)
class Rewrite:
    """One text, a row of rewrites.jsonl; `key` is a hash of all that it depends on.

    `error` says why there is none.
    """

    task: str
    id: str
    sample: int
    key: str
    text: str = ""
    tokens: int = 0
    finish_reason: str | None = None
    error: str | None = None


def wanted(tasks: Iterable[BrightTask], config: BrightConfig, model: dict[str, Any]) -> dict[Rewrite, str]:
    """The rows that the configuration asks for, in order, each with its question; `model` is its identity."""
    rewriting, engine = config.rewriting, config.engine
    settings = [
        model,
        load_prompt(rewriting.prompt)[:2],
        asdict(config.protocol),
        asdict(rewriting) | {"samples": None, "think": rewriting.thinks},
        asdict(config.sampling),
        [engine.tokenizer, engine.dtype, engine.max_model_len, engine.served_name],
    ]
    questions = {}
    for task in tasks:
        for each in task.questions:
            for sample in range(rewriting.samples):
                key = hash_of([settings, task.name, *asdict(each).values(), sample])[:16]
                questions[Rewrite(task.name, each.id, sample, key)] = each.question
    return questions


async def rewrite_all(questions: dict[Rewrite, str], path: Path, config: BrightConfig) -> list[Rewrite]:
    """The rows with their texts, generated if the file lacks them. Raises EvaluationError if none can be."""
    done, total = _read(path), len(questions)
    todo = [row for row in questions if row.key not in done]
    if todo:
        with Progress(total=total, initial=total - len(todo), unit="text", smoothing=0.05) as bar:
            async with opened(config.engine, config.sampling, config.protocol.template_options) as engine:
                tokens = tokens_of(engine, config.protocol, config.rewriting.prompt)

                async def rewrite(asked: Rewrite) -> None:
                    work = _rewrite(asked, questions[asked], engine, tokens, config)
                    row = await attempt(work, config.question_timeout, "text")
                    if isinstance(row, Failed):
                        row = replace(asked, error=row.reason)
                    append_line(path, well_formed(json.dumps(asdict(row), ensure_ascii=False)))
                    done[row.key] = row
                    bar.count(row.error)

                await at_once(todo, min(config.concurrency, len(todo)), rewrite)
    return [done[row.key] for row in questions]


def _read(path: Path) -> dict[str, Rewrite]:
    """The rows by key; a half line left by a kill is removed, and so are all rows if all failed."""
    cut_half_line(path)
    rows = {}
    for number, line in enumerate(whole_lines(path), start=1):
        try:
            row = Rewrite(**json.loads(line))
        except (ValueError, TypeError) as error:
            message = f"{path}:{number} is not a valid rewrite; remove the line to generate it again"
            raise EvaluationError(message) from error
        rows[row.key] = row
    if rows and all(row.error for row in rows.values()):
        path.unlink()
        return {}
    return rows


async def _rewrite(
    row: Rewrite, question: str, engine: Engine, tokens: TokenProtocol, config: BrightConfig
) -> Rewrite:
    rewriting = config.rewriting
    limits = Limits(0, rewriting.tokens, rewriting.tokens, passage_tokens=1)
    seed = seed_of(config.sampling.seed, row.task, row.id, row.sample)
    generate = turn_generator(sampler(engine, seed), tokens)
    prompt_ids = build_prompt(rewriting.prompt, question, tokens)
    trajectory = await run_rewriting(prompt_ids, generate, tokens, limits)
    text = rewritten_query(trajectory, tokens, rewriting.thinks, asks_for_boxed(rewriting.prompt))
    length, reason = trajectory.response_length, trajectory.finish_reason
    return replace(row, text=text, tokens=length, finish_reason=reason)
