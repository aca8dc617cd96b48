"""The LLM judge: a model behind an OpenAI-compatible server says whether an answer is right, and why.

Verdicts are cached by content in a JSONL file, so nothing is judged twice. A failure is a verdict too, marked
`failed`; it is never cached, so the next call tries again.
"""

import asyncio
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, ValidationError

from research.episode.prompts import fill, load_prompt
from research.episode.trajectory import well_formed
from research.model_server import ModelServer, ServerError
from research.values import ABOVE_0, ANY_TEXT, TEXT, URL, integer, or_null

PROMPT = "judge"


@dataclass(frozen=True)
class JudgeConfig:
    """How to reach the judge: `model` at `url`, times in seconds; without a `url` nothing is judged."""

    url: Annotated[str | None, or_null(URL)]
    model: Annotated[str | None, or_null(TEXT)]
    api_key_variable: Annotated[str | None, or_null(ANY_TEXT)] = "JUDGE_API_KEY"
    concurrency: Annotated[int, integer(1)] = 32
    timeout: Annotated[float, ABOVE_0] = 60.0
    deadline: Annotated[float, ABOVE_0] = 300.0


@dataclass(frozen=True)
class Verdict:
    """Whether an answer is right, and the judge's `reason`.

    If `failed`, there is no verdict and `reason` says why; `lasting`: every other request would fail as well.
    """

    right: bool
    reason: str
    failed: bool = False
    lasting: bool = False


class _Reply(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    reason: str
    right: bool


RESPONSE_FORMAT = {
    "type": "json_schema",
    "json_schema": {"name": "verdict", "strict": True, "schema": _Reply.model_json_schema()},
}


def content_key(model: str | None, question: str, golden_answers: Sequence[str], answer: str) -> str:
    """A hash of everything that a verdict depends on: model, prompt, question, accepted answers, answer."""
    parts = [model, load_prompt(PROMPT)[:2], question, list(golden_answers), answer]
    return hashlib.sha256(json.dumps(parts, ensure_ascii=False).encode()).hexdigest()


def read_verdicts(cache: Path) -> dict[str, Verdict]:
    """The cached verdicts by content key; a line that a kill cut short is left out."""
    verdicts = {}
    for line in cache.read_text(encoding="utf-8", errors="replace").split("\n") if cache.exists() else ():
        try:
            row = json.loads(line)
        except ValueError:
            continue
        verdicts[row["key"]] = Verdict(row["right"], row["reason"])
    return verdicts


class Judge:
    """One judge with its cache, a JSONL file that several processes may append to.

    Open connections belong to the event loop of the first call.
    """

    def __init__(self, config: JudgeConfig, cache: Path) -> None:
        """Raises ValueError for a configuration without a server or a model."""
        if config.url is None or config.model is None:
            raise ValueError("a judge needs the url of a server and the name of a model there")
        self._model, self._cache = config.model, cache
        self._server = ModelServer(config.url, config.api_key_variable, config.timeout, config.deadline)
        self._verdicts = read_verdicts(cache)
        self._in_flight: dict[str, asyncio.Task[Verdict]] = {}
        self._turns = asyncio.Semaphore(config.concurrency)

    async def judge(self, question: str, golden_answers: Sequence[str], answer: str) -> Verdict:
        """The verdict on an answer: from the cache, else from the model. An empty answer is wrong."""
        if not answer.strip():
            return Verdict(False, "no answer")
        key = content_key(self._model, question, golden_answers, answer)
        if key in self._verdicts:
            return self._verdicts[key]
        if key not in self._in_flight:
            task = asyncio.ensure_future(self._verdict(key, question, golden_answers, answer))
            task.add_done_callback(lambda _: self._in_flight.pop(key, None))
            self._in_flight[key] = task
        # One cancelled caller must not cancel the request that others wait for.
        return await asyncio.shield(self._in_flight[key])

    async def close(self) -> None:
        """Cancel what is in flight, and close the connections."""
        tasks = [*self._in_flight.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._server.close()

    async def _verdict(self, key: str, question: str, golden_answers: Sequence[str], answer: str) -> Verdict:
        async with self._turns:
            try:
                reply = await self._request(question, golden_answers, answer)
            except ServerError as error:
                return Verdict(False, str(error), failed=True, lasting=error.lasting)
        line = json.dumps({"key": key, **reply.model_dump()}, ensure_ascii=False)
        _append_line(self._cache, line.encode())
        verdict = self._verdicts[key] = Verdict(reply.right, reply.reason)
        return verdict

    async def _request(self, question: str, golden_answers: Sequence[str], answer: str) -> _Reply:
        """The model's reply. Raises ServerError, also for a reply that is no verdict."""
        system, user, _ = load_prompt(PROMPT)
        fields = {"question": question, "golden": "; ".join(golden_answers), "prediction": answer}
        body = {
            "model": self._model,
            # One message: some chat templates refuse a system message, or leave it out.
            "messages": [{"role": "user", "content": f"{system}\n\n{fill(user, fields)}"}],
            "temperature": 0,
            "response_format": RESPONSE_FORMAT,
        }
        reply = await self._server.call("/chat/completions", body)
        try:
            return _Reply.model_validate_json(well_formed(reply["choices"][0]["message"]["content"]))
        except (KeyError, IndexError, TypeError, AttributeError, ValidationError) as error:
            raise ServerError(f"not a verdict: {' '.join(str(error).split())[:200]}") from error


def _append_line(path: Path, line: bytes) -> None:
    """Append in one write, so lines of several processes do not mix; after half a line, start a new one."""
    with path.open("ab+", buffering=0) as file:
        end = file.seek(0, 2)
        file.seek(max(0, end - 1))
        file.write((b"" if file.read(1) in (b"", b"\n") else b"\n") + line + b"\n")
