"""Texts of a model: all questions at once, as far as `concurrency` allows, each kept in rewrites.jsonl as it
ends. One that failed is kept as failed, and never asked again in this folder, unless none was made there.
"""

import asyncio
import hashlib
import json
import os
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

from tqdm import tqdm

from research.datasets.bright import BrightTask
from research.episode.loop import Generation, Limits
from research.episode.prompts import asks_for_boxed, build_prompt, load_prompt
from research.episode.rewriting import rewritten_query, run_rewriting
from research.episode.tokens import TokenProtocol
from research.episode.trajectory import well_formed
from research.evaluation.bright.config import BrightConfig
from research.evaluation.config import EvaluationError
from research.evaluation.engines import Engine, Stops, opened, tokens_of

REWRITES = "rewrites.jsonl"
HOPELESS = 32  # texts in a row from the start that all failed: something is wrong with all of them


class Wanted(NamedTuple):
    """One text to be made. `key` says all that it hangs on."""

    task: str
    id: str
    sample: int
    question: str
    key: str


@dataclass(frozen=True)
class Rewrite:
    """One text that was made, a row of rewrites.jsonl; `error` says why there is none."""

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
        """Goes on with the file that is there; a half-written last line, left by a kill, is taken off.

        Raises EvaluationError.
        """
        self._path = run_dir / REWRITES
        self.done: dict[str, Rewrite] = {}
        if self._path.exists():
            content = self._path.read_bytes()
            whole = content[: content.rfind(b"\n") + 1]
            rows = [self._row(number, line) for number, line in enumerate(whole.splitlines(), start=1)]
            any_made = any(row.error is None for row in rows)
            os.truncate(self._path, len(whole) if any_made else 0)
            self.done = {row.key: row for row in rows} if any_made else {}

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
    rewriting = config.rewriting
    made_by = [
        model,
        load_prompt(rewriting.prompt)[:2],
        asdict(config.protocol),
        asdict(rewriting) | {"samples": None, "think": rewriting.thinks},
        asdict(config.sampling),
        [
            config.engine.tokenizer,
            config.engine.dtype,
            config.engine.max_model_len,
            config.engine.served_name,
        ],
    ]
    return [
        Wanted(
            task.name,
            each.id,
            sample,
            each.question,
            _key([made_by, task.name, *asdict(each).values(), sample]),
        )
        for task in tasks
        for each in task.questions
        for sample in range(rewriting.samples)
    ]


def rewrite_all(asked: list[Wanted], rewrites: Rewrites, config: BrightConfig) -> None:
    """Make the texts that are not there yet. Raises EvaluationError where none can be made."""
    todo = [each for each in asked if each.key not in rewrites.done]
    if not todo:
        return
    try:
        asyncio.run(_Rewriter(config, rewrites, len(asked), len(asked) - len(todo)).run(todo))
    except* (EvaluationError, OSError) as group:  # OSError: of a full disk, say
        error: BaseException = group
        while isinstance(error, BaseExceptionGroup):
            error = error.exceptions[0]
        raise error from None


class _Rewriter:
    def __init__(self, config: BrightConfig, rewrites: Rewrites, total: int, done: int) -> None:
        self._config, self._rewrites = config, rewrites
        self._seen, self._failed = 0, 0
        tokens = config.rewriting.tokens
        self._limits = Limits(searches=0, turn_tokens=tokens, response_tokens=tokens, passage_tokens=1)
        self._bar = tqdm(total=total, initial=done, unit="text", smoothing=0.05)

    async def run(self, todo: list[Wanted]) -> None:
        waiting = iter(todo)
        with self._bar:
            async with opened(self._config.engine, self._config.sampling) as engine:
                tokens = tokens_of(engine, self._config.protocol, self._config.rewriting.prompt)
                async with asyncio.TaskGroup() as group:
                    for _ in range(min(self._config.concurrency, len(todo))):
                        group.create_task(self._worker(waiting, engine, tokens))

    async def _worker(self, waiting: Iterator[Wanted], engine: Engine, tokens: TokenProtocol) -> None:
        for each in waiting:  # shared: each worker takes the next
            self._finished(await self._made(each, engine, tokens))

    async def _made(self, each: Wanted, engine: Engine, tokens: TokenProtocol) -> Rewrite:
        place = (each.task, each.id, each.sample, each.key)
        try:
            async with asyncio.timeout(self._config.question_timeout):
                return await self._asked(each, engine, tokens)
        except TimeoutError:
            return Rewrite(*place, "", error=f"no text in {self._config.question_timeout} s")
        except EvaluationError:
            raise
        except Exception as error:  # whatever it is, it is this text's alone: the others go on
            return Rewrite(*place, "", error=" ".join(f"{type(error).__name__}: {error}".split())[:500])

    async def _asked(self, each: Wanted, engine: Engine, tokens: TokenProtocol) -> Rewrite:
        stops = Stops(tuple(tokens.stop_token_ids), tuple(tokens.stop_strings))
        seed = zlib.crc32(repr((self._config.sampling.seed, *each[:3])).encode())

        async def generate(token_ids: list[int], max_tokens: int) -> Generation:
            sampled = await engine.generate(token_ids, max_tokens, stops, seed)
            return Generation(sampled, [0.0] * len(sampled))  # nothing is trained on them

        prompt_ids = build_prompt(self._config.rewriting.prompt, each.question, tokens)
        trajectory = await run_rewriting(prompt_ids, generate, tokens, self._limits)
        rewriting = self._config.rewriting
        boxed = asks_for_boxed(rewriting.prompt)
        text = rewritten_query(trajectory, tokens, rewriting.thinks, boxed)
        length, reason = trajectory.response_length, trajectory.finish_reason
        return Rewrite(each.task, each.id, each.sample, each.key, text, length, reason)

    def _finished(self, row: Rewrite) -> None:
        self._seen += 1
        self._failed += row.error is not None
        if self._failed == self._seen == HOPELESS:
            raise EvaluationError(f"the first {HOPELESS} texts all failed, the last by: {row.error}")
        self._rewrites.add(row)
        self._bar.set_postfix_str(f"{self._failed} failed", refresh=False)
        self._bar.update()


def _key(parts: Any) -> str:
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]
