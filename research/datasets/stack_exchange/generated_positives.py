"""Texts that answer questions, asked of a model behind an OpenAI-compatible server.

Each answer is appended to a JSONL file as it comes, under a key of all that it depends on: model, prompt,
sampling, question. Killed and started again, what was answered is not asked again; a half last line goes.
"""

import asyncio
import hashlib
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from tqdm import tqdm

from research.datasets.hub import exclusive
from research.episode.prompts import fill, load_prompt
from research.episode.trajectory import well_formed
from research.errors import DataError
from research.model_server import ModelServer, ServerError

PROMPT = "positive"
KEY_VARIABLE = "OPENAI_API_KEY"
GREETING_S = 15.0
THINKING = re.compile(r"<think>.*?(?:</think>|\Z)", re.DOTALL)


@dataclass(frozen=True)
class Asking:
    """Whom to ask and how. `deadline` bounds, in seconds, one question with all its attempts."""

    url: str
    model: str
    tokens: int
    concurrency: int
    deadline: float

    def body(self, question: str) -> dict[str, Any]:
        """The request, of which an answer's key is made too."""
        system, user, _ = load_prompt(PROMPT)
        messages = [
            {"role": "system", "content": system},
            {"role": "user", "content": fill(user, {"question": question})},
        ]
        return {"model": self.model, "messages": messages, "max_tokens": self.tokens, "temperature": 0}

    def key(self, question: str) -> str:
        """What an answer is kept under."""
        text = json.dumps(self.body(question), ensure_ascii=False, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()


@dataclass
class Generated:
    """Texts and reasons of failure, both by question; `asked` of the model now, the rest was kept."""

    texts: dict[str, str] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)
    asked: int = 0


def generate(questions: Sequence[str], asking: Asking, kept: Path) -> Generated:
    """A text for each question, from the file `kept` or else the model, which is then appended there.

    Raises DataError: no server, or one that fails from question to question; another process has the file.
    """
    with exclusive(kept) as file:
        known = dict(_whole_rows(kept, file))
        generated = Generated()
        todo = []
        for question in dict.fromkeys(questions):
            text = known.get(asking.key(question))
            if text is None:
                todo.append(question)
            else:
                generated.texts[question] = text
        if todo:
            asyncio.run(_Asker(asking, file, generated).ask_all(todo))
    return generated


def _whole_rows(path: Path, file: BinaryIO) -> Iterator[tuple[str, str]]:
    """(key, text) of the rows so far; a last line that a kill left half-written is taken off."""
    content = path.read_bytes()
    file.truncate(content.rfind(b"\n") + 1)
    for number, line in enumerate(content.split(b"\n")[:-1], start=1):
        try:
            row = json.loads(line)
            yield str(row["key"]), str(row["text"])
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(f"{path}:{number}: is no kept answer; remove the line and run again") from error


class _Asker:
    """Asks questions, `concurrency` at a time, and gives up once as many fail in a row."""

    def __init__(self, asking: Asking, file: BinaryIO, generated: Generated) -> None:
        self._asking, self._file, self._generated = asking, file, generated
        self._server = ModelServer(asking.url, KEY_VARIABLE, asking.deadline / 2, asking.deadline)
        self._failed_in_a_row = 0

    async def ask_all(self, questions: Sequence[str]) -> None:
        await self._greet()
        waiting = iter(questions)
        try:
            with tqdm(total=len(questions), unit="question", desc="asking for positives") as bar:
                async with asyncio.TaskGroup() as group:
                    for _ in range(self._asking.concurrency):
                        group.create_task(self._worker(waiting, bar))
        except ExceptionGroup as errors:
            raise errors.exceptions[0] from errors
        finally:
            await self._server.close()

    async def _greet(self) -> None:
        """Find out within seconds, not at the deadline of a question, that nobody is there."""
        wait = min(GREETING_S, self._asking.deadline)
        greeted = ModelServer(self._asking.url, KEY_VARIABLE, wait, wait)
        try:
            await greeted.call("/models")
        except ServerError as error:
            raise DataError(f"no OpenAI-compatible server answers: {error}") from error
        finally:
            await greeted.close()

    async def _worker(self, waiting: Iterator[str], bar: "tqdm[Any]") -> None:
        for question in waiting:  # shared: each worker takes the next
            self._generated.asked += 1
            try:
                reply = await self._server.call("/chat/completions", self._asking.body(question))
                self._keep(question, _text(reply))
            except ServerError as error:
                self._fail(question, " ".join(str(error).split()))
            bar.update()

    def _keep(self, question: str, text: str) -> None:
        row = {"key": self._asking.key(question), "text": text}
        try:
            self._file.write(json.dumps(row, ensure_ascii=False).encode() + b"\n")
            self._file.flush()
        except OSError as error:
            raise DataError(f"{self._file.name}: cannot be written ({error.strerror or error})") from error
        self._generated.texts[question] = text
        self._failed_in_a_row = 0

    def _fail(self, question: str, reason: str) -> None:
        self._generated.failures[question] = reason
        self._failed_in_a_row += 1
        if self._failed_in_a_row >= max(self._asking.concurrency, 3):
            kept = f"{len(self._generated.texts)} answers are kept; run again to go on"
            raise DataError(f"the model fails from question to question: {reason} ({kept})")


def _text(reply: Any) -> str:
    """What the model wrote after its thinking. Raises ServerError for nothing."""
    try:
        choice = reply["choices"][0]
        content = choice["message"]["content"] or ""
        text = well_formed(THINKING.sub("", content, count=1)).strip()
    except (KeyError, IndexError, TypeError, AttributeError) as error:
        raise ServerError(f"not a chat completion: {error!r}") from error
    if not text:
        raise ServerError(f"an empty answer (finish_reason {choice.get('finish_reason')!r})")
    return text
