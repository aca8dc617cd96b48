"""Evaluations with model servers that are not there, refuse, die, or offer chat completions alone."""

import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from evaluation_stack import WORDS, ModelServer, corpus_rows, say, write_questions
from evaluation_stack import evaluate as run
from flask import Flask, Response, jsonify, request
from loopback import serving
from retriever_process import build_index
from retriever_process import serving as serving_index

from research import model_server
from research.episode.tokens import TokenProtocol
from research.evaluation.outputs.predictions import Predictions, read_predictions
from research.evaluation.runner import Runner


@pytest.fixture(scope="module")
def tokenizer(tag_tokens: TokenProtocol, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tokenizer")
    tag_tokens.tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def retriever(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("evaluation") / "index"
    build_index(folder, corpus_rows(), kind="bm25")
    with serving_index(folder) as (_, url):
        yield url


@pytest.fixture
def questions(tmp_path: Path) -> Path:
    return write_questions(tmp_path / "land.questions.jsonl", 6)


def test_a_model_server_that_is_not_there_is_said_soon(
    tmp_path: Path, tokenizer: Path, questions: Path, retriever: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(model_server, "UNREACHABLE_S", 1.0)
    began = time.monotonic()
    result = run(tmp_path, tokenizer, questions, "http://127.0.0.1:1", retriever)
    assert result.exit_code == 1 and time.monotonic() - began < 10
    warning, error = result.stderr.splitlines()
    assert warning.startswith("WARNING: http://127.0.0.1:1/v1/models: Cannot connect")
    assert error.startswith("Error: no OpenAI-compatible server at http://127.0.0.1:1")


class Refusing(ModelServer):
    """Knows no model after the first ten calls."""

    async def completions(self, request: web.Request) -> web.StreamResponse:
        if self.calls < 10:
            return await super().completions(request)
        return web.Response(status=404, text="The model `scripted` does not exist.")


def test_refusals_in_the_middle_cost_their_questions_alone(
    tmp_path: Path, tag_tokens: TokenProtocol, tokenizer: Path, retriever: str
) -> None:
    questions = write_questions(tmp_path / "land.questions.jsonl", 20)
    with Refusing(tag_tokens).running() as url:
        result = run(tmp_path, tokenizer, questions, url, retriever, "concurrency=1")
    assert result.exit_code == 0
    assert "16 of 20 questions failed: land research q4 (EngineError: " in result.stderr
    done = Predictions(tmp_path / "out").done
    assert sorted(key.id for key in done) == ["q0", "q1", "q2", "q3"]  # the others are asked again


def test_a_model_server_that_dies_ends_the_evaluation(
    tmp_path: Path,
    tag_tokens: TokenProtocol,
    tokenizer: Path,
    retriever: str,
    questions: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(model_server, "UNREACHABLE_S", 1.0)
    runner = Runner.run

    async def dead_when_asked(self: Runner, *arguments: Any) -> None:
        stop.close()
        await runner(self, *arguments)

    with ExitStack() as stop:
        url = stop.enter_context(ModelServer(tag_tokens).running())
        monkeypatch.setattr(Runner, "run", dead_when_asked)
        result = run(tmp_path, tokenizer, questions, url, retriever)
    assert result.exit_code == 1 and "Error: the model's server has gone" in result.stderr
    assert not Predictions(tmp_path / "out").done


@pytest.mark.parametrize(
    ("status", "text", "message"),
    [
        (401, "no key", "HTTP 401 (the key is taken from OPENAI_API_KEY: it is not set): no key"),
        (404, "The model `default` does not exist", "HTTP 404: The model `default` does not exist"),
        (302, "", "HTTP 302, redirected to http://127.0.0.1:9/login"),
        (200, "<html>Open WebUI</html>", "an HTML page that is not JSON"),
        (200, "[]", "not a list of models: []"),
    ],
)
def test_a_server_that_takes_no_call_is_one_error(
    tmp_path: Path,
    tokenizer: Path,
    questions: Path,
    retriever: str,
    status: int,
    text: str,
    message: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    app = Flask("other")
    app.register_error_handler(
        404, lambda _: Response(text, status, headers={"Location": "http://127.0.0.1:9/login"})
    )
    with serving(app) as url:
        result = run(tmp_path, tokenizer, questions, url, retriever)
    assert result.exit_code == 1 and message in result.stderr.splitlines()[-1]


def chat_only(calls: list[dict[str, Any]], refused: str = "") -> Flask:
    """A server of chat completions alone, whose model follows the script of `say` from the question on."""
    app = Flask("chat")

    @app.post("/v1/chat/completions")
    def chat() -> Any:
        body = request.get_json()
        calls.append(body)
        unknown = refused and "continue_final_message" in body
        if unknown or (refused == "assistant last" and body["messages"][-1]["role"] == "assistant"):
            return jsonify(error="refused"), 400
        text = "".join(each["content"] for each in body["messages"] if each["role"] != "system")
        said = say(text) if any(word in text for word in WORDS) else "?"
        for stop in body["stop"] or ():
            said = said.partition(stop)[0]
        message = {"role": "assistant", "content": said}
        return jsonify({"choices": [{"message": message, "finish_reason": "stop"}]})

    return app


@pytest.mark.parametrize("kind", ["tag_tokens", "text_tokens"])
@pytest.mark.parametrize(
    ("refused", "said", "roles"),
    [
        ("", "continue_final_message", ["user", "assistant"]),
        ("unknown keys", "after a final assistant message", ["user", "assistant"]),
        ("assistant last", "at a user's request", ["user", "assistant", "user"]),
    ],
)
def test_a_server_of_chats_alone_answers_with_searches(
    tmp_path: Path,
    kind: str,
    questions: Path,
    retriever: str,
    refused: str,
    said: str,
    roles: list[str],
    request: pytest.FixtureRequest,
) -> None:
    request.getfixturevalue(kind).tokenizer.save_pretrained(tmp_path / "tokenizer")
    calls: list[dict[str, Any]] = []
    with serving(chat_only(calls, refused)) as url:
        words = ("prompt=research_instruct_own", "limits.response_tokens=1500")
        result = run(tmp_path, tmp_path / "tokenizer", questions, url, retriever, *words)
    assert result.exit_code == 0, result.output
    assert result.stderr.count("is tokenized again") == 1 and said in result.stderr
    predictions = list(read_predictions(tmp_path / "out"))
    assert [each.metrics["em"] for each in predictions] == [1.0] * 6
    assert all(each.metrics["searches"] == each.metrics["format_valid"] == 1.0 for each in predictions)
    first, second = ([each["role"] for each in body["messages"]] for body in calls[-12::11])
    assert first[-1] == "user" and second[-len(roles) :] == roles
    prompt = calls[-12]["messages"]
    assert "</search>" in calls[-1]["stop"] and not any("<|" in each["content"] for each in prompt)
