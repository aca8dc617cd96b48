"""For tests of the evaluation: questions, an engine that follows a script, and a loopback model server."""

import asyncio
import json
import random
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from aiohttp import web
from click.testing import CliRunner, Result

from research.episode.tokens import TokenProtocol
from research.evaluation.__main__ import main
from research.evaluation.engines import Stops

WORDS = {"capital": "Paris", "river": "Rhine", "king": "Arthur"}


def say(text: str) -> str:
    """What the model below goes on with behind `text`: one search, then an answer that the question names."""
    if "<result>" not in text:
        return " <think> I search. </think> <search> " + _wanted(text) + " </search>"
    return " <think> I know. </think> <answer> \\boxed{" + WORDS[_wanted(text)] + "} </answer>"


def _wanted(text: str) -> str:
    return min((word for word in WORDS if word in text), key=text.index)  # the question comes first


def corpus_rows() -> list[dict[str, Any]]:
    """Passages that name the answers."""
    return [
        {"id": name, "contents": f"{answer}\nThe {name} is called {answer}."}
        for name, answer in WORDS.items()
    ]


def write_questions(path: Path, count: int) -> Path:
    """Questions about one of WORDS each, which the scripted models answer rightly."""
    names = list(WORDS)
    rows = (
        {
            "id": f"q{number}",
            "question": f"What is the {names[number % 3]} of land {number}?",
            "golden_answers": [WORDS[names[number % 3]]],
        }
        for number in range(count)
    )
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def evaluate(
    tmp_path: Path, tokenizer: Path, questions: Path, model: str, retriever: str, *words: str
) -> Result:
    """The command line, with tmp_path/out as its folder."""
    options = {"--model": model, "--tokenizer": tokenizer, "--retriever": retriever, "--datasets": questions}
    command = ["run", *(str(word) for pair in options.items() for word in pair)]
    limits = ["limits.response_tokens=600", "limits.passage_tokens=40", "prompt=question"]
    return CliRunner().invoke(main, [*command, "--out", str(tmp_path / "out"), *limits, *words])


class SayingEngine:
    """An engine that computes what it says from the text so far, `delay()` seconds later."""

    max_model_len = 4096

    def __init__(
        self,
        tokens: TokenProtocol,
        speak: Callable[[str], str] = say,
        delay: Callable[[], float] = lambda: 0.0,
    ) -> None:
        self.tokenizer, self._tokens, self._speak, self._delay = tokens.tokenizer, tokens, speak, delay
        self.calls = 0

    async def generate(self, token_ids: list[int], max_tokens: int, stops: Stops, seed: int) -> list[int]:
        self.calls += 1
        await asyncio.sleep(self._delay())
        said = self._tokens.encode(self._speak(self._tokens.decode(token_ids)))
        ends_itself = any(token in stops.token_ids for token in said) or stops.strings
        return (said if ends_itself else [*said, self.tokenizer.eos_token_id])[:max_tokens]

    async def close(self) -> None:
        pass


class ModelServer:
    """Speaks as `SayingEngine` does, over OpenAI's completions; a share of the calls fails in one of three
    ways.
    """

    def __init__(
        self, tokens: TokenProtocol, faults: float = 0.0, by_ids: bool = True, stall_s: float = 2.0
    ) -> None:
        self._tokens, self._faults, self._by_ids, self._stall_s = tokens, faults, by_ids, stall_s
        self._draw = random.Random(0)
        self.calls, self.failed, self.verdicts = 0, 0, 0
        self.bodies: list[dict[str, Any]] = []

    async def models(self, request: web.Request) -> web.Response:
        return web.json_response({"data": [{"id": "scripted", "max_model_len": 4096}]})

    async def completions(self, request: web.Request) -> web.StreamResponse:
        self.calls += 1
        body = await request.json()
        if len(self.bodies) < 10:
            self.bodies.append(body)
        if self._draw.random() < self._faults and self.calls > 2:  # not while it is found out what we can
            self.failed += 1
            return await self._fail(request)
        if not self._by_ids and isinstance(body["prompt"], list):
            return web.json_response({"error": "prompt must be a text"}, status=400)
        return web.json_response({"choices": [self._choice(body)]})

    def _choice(self, body: dict[str, Any]) -> dict[str, Any]:
        prompt = body["prompt"]
        text = prompt if isinstance(prompt, str) else self._tokens.decode(prompt)
        said = say(text) if any(word in text for word in WORDS) else "?"
        if self._by_ids:
            return {
                "text": said,
                "token_ids": self._tokens.encode(said)[: body["max_tokens"]],
                "finish_reason": "stop",
            }
        for stop in body["stop"] or ():  # kept to itself, as OpenAI does
            said = said.partition(stop)[0]
        return {"text": said, "finish_reason": "stop"}

    async def _fail(self, request: web.Request) -> web.StreamResponse:
        kind = self._draw.choice(["status", "reset", "stall"])
        if kind == "reset":
            assert request.transport is not None
            request.transport.abort()
        if kind == "stall":
            await asyncio.sleep(self._stall_s)
        return web.Response(status=500, text="a fault")

    async def chat(self, request: web.Request) -> web.Response:
        """The judge: right if the prediction stands among the accepted answers; no verdict on "Arthur"."""
        self.verdicts += 1
        content = (await request.json())["messages"][-1]["content"]
        accepted, _, prediction = content.partition("Answer to judge: ")
        if prediction == "Arthur":
            return web.json_response({"choices": [{"message": {"content": '{"right": "perhaps"}'}}]})
        verdict = {"reason": "as accepted", "right": f"Accepted answers: {prediction}" in accepted}
        return web.json_response({"choices": [{"message": {"content": json.dumps(verdict)}}]})

    @contextmanager
    def running(self) -> Iterator[str]:
        """The server in a thread, and its address."""
        loop, ready = asyncio.new_event_loop(), threading.Event()
        stop, address = asyncio.Event(), ""

        async def serve() -> None:
            nonlocal address
            app = web.Application()
            app.router.add_get("/v1/models", self.models)
            app.router.add_post("/v1/completions", self.completions)
            app.router.add_post("/v1/chat/completions", self.chat)
            runner = web.AppRunner(app, shutdown_timeout=0.1)
            await runner.setup()
            site = web.TCPSite(runner, "127.0.0.1", 0)
            await site.start()
            address = f"http://127.0.0.1:{runner.addresses[0][1]}"
            ready.set()
            await stop.wait()
            await runner.cleanup()

        thread = threading.Thread(target=lambda: loop.run_until_complete(serve()))
        thread.start()
        try:
            assert ready.wait(120)
            yield address
        finally:
            loop.call_soon_threadsafe(stop.set)
            thread.join()
