"""Evaluations with retrievers that refuse, or are of another kind, and evaluations that end early."""

import json
import os
import resource
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from click.testing import CliRunner
from evaluation_stack import WORDS, ModelServer, corpus_rows, write_questions
from evaluation_stack import evaluate as run
from flask import Flask, Response, jsonify, request
from loopback import answering, serving, speaking
from retriever_process import build_index
from retriever_process import serving as serving_index

from research.episode.tokens import TokenProtocol
from research.evaluation.__main__ import main
from research.evaluation.outputs.predictions import read_predictions
from research.processes import alone_in
from research.tools import service

ROOT = Path(__file__).parents[1]
SEARCHING = ["research", "naive_rag", "ircot", "iter_retgen"]


@pytest.fixture(scope="module")
def tokenizer(tag_tokens: TokenProtocol, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tokenizer")
    tag_tokens.tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("evaluation") / "index"
    build_index(folder, corpus_rows(), kind="bm25")
    return folder


@pytest.fixture(scope="module")
def retriever(index: Path) -> Iterator[str]:
    with serving_index(index) as (_, url):
        yield url


@pytest.fixture
def questions(tmp_path: Path) -> Path:
    return write_questions(tmp_path / "land.questions.jsonl", 6)


# ---------------------------------------------------------------------------------------------- retrievers


def test_the_token_of_the_environment_is_the_servers_and_the_clients(
    tmp_path: Path,
    tag_tokens: TokenProtocol,
    tokenizer: Path,
    index: Path,
    questions: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("RETRIEVER_TOKEN", "secret")
    with ModelServer(tag_tokens).running() as url, serving_index(index) as (_, retriever):
        result = run(tmp_path, tokenizer, questions, url, retriever)
        assert result.exit_code == 0, result.output
        searches = [search for each in read_predictions(tmp_path / "out") for search in each.searches]
        assert searches and all(search.error is None for search in searches)
        monkeypatch.delenv("RETRIEVER_TOKEN")
        refused = run(tmp_path / "other", tokenizer, questions, url, retriever)
    assert refused.exit_code == 1 and "the key is taken from RETRIEVER_TOKEN: it is not set" in refused.stderr


@pytest.mark.parametrize("method", SEARCHING)
def test_an_evaluation_whose_searches_all_failed_says_so(
    tmp_path: Path,
    tag_tokens: TokenProtocol,
    tokenizer: Path,
    questions: Path,
    method: str,
) -> None:
    foreign = answering([[{"id": "1", "contents": None}], [1.0]])
    words = (f"methods=[{method}]",)
    with ModelServer(tag_tokens).running() as url, serving(foreign) as broken:
        result = run(tmp_path, tokenizer, questions, url, broken, *words)
    assert result.exit_code == 1 and f"| {method}" in result.stdout
    count = {"research": 6, "naive_rag": 6, "ircot": 30, "iter_retgen": 18}[method]
    assert f"{count} of {count} searches failed: land {method} q0" in result.stderr
    assert """"contents" of passage '1' must be a text, not None""" in result.stderr


def test_a_few_failed_searches_are_a_warning_and_asked_again(
    tmp_path: Path, tag_tokens: TokenProtocol, tokenizer: Path, questions: Path
) -> None:
    app, broken = Flask("retriever"), {"river"}

    @app.post("/search")
    def search() -> Response:
        name = next(word for word in WORDS if word in request.get_json()["query"])
        contents = None if name in broken else f"{WORDS[name]}\nThe {name}."
        return jsonify([[{"id": name, "contents": contents}], [1.0]])

    with ModelServer(tag_tokens).running() as url, serving(app) as foreign:
        result = run(tmp_path, tokenizer, questions, url, foreign)
        assert result.exit_code == 0 and "WARNING: 2 of 6 searches failed: land research q1" in result.stderr
        broken.clear()
        again = run(tmp_path, tokenizer, questions, url, foreign)
    assert again.exit_code == 0 and "searches failed" not in again.stderr
    assert "2 questions in" in again.stderr
    assert [each.metadata["id"] for each in read_predictions(tmp_path / "out")] == [f"q{n}" for n in range(6)]


@pytest.mark.parametrize(
    ("body", "status", "message"),
    [("<html>Sign in</html>", 200, "an HTML page that is not JSON"), ("no such route", 404, "HTTP 404")],
)
def test_a_retriever_of_another_kind_ends_the_evaluation_before_it_begins(
    tmp_path: Path, tokenizer: Path, questions: Path, body: str, status: int, message: str
) -> None:
    with serving(answering(body, status)) as foreign:
        result = run(tmp_path, tokenizer, questions, "http://127.0.0.1:1", foreign)
    assert result.exit_code == 1 and len(result.stderr.splitlines()) == 1
    assert "every search would fail" in result.stderr and message in result.stderr


def test_a_retriever_that_is_no_http_is_one_line(tmp_path: Path, tokenizer: Path, questions: Path) -> None:
    with speaking(b"SSH-2.0-OpenSSH_9.6\r\n") as address:
        result = run(tmp_path, tokenizer, questions, "http://127.0.0.1:1", f"http://{address}")
    assert result.exit_code == 1 and len(result.stderr.splitlines()) == 1
    assert "no retriever answers" in result.stderr and "no HTTP" in result.stderr


# -------------------------------------------------------------------------------------------- early ends


def test_a_folder_that_is_no_evaluation_is_refused(
    tmp_path: Path, tokenizer: Path, questions: Path, retriever: str
) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.tex").write_text("mine")
    (tmp_path / "out" / "config.yaml").write_text("mine: 1")
    result = run(tmp_path, tokenizer, questions, "http://127.0.0.1:1", retriever)
    message = f"Error: {tmp_path / 'out'} is not an evaluation, and holds config.yaml: choose another --out"
    assert result.exit_code == 1 and result.stderr.strip() == message
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["config.yaml", "thesis.tex"]


def test_one_process_at_a_time_in_a_folder(
    tmp_path: Path, tokenizer: Path, questions: Path, retriever: str
) -> None:
    with alone_in(tmp_path / "out", RuntimeError):
        result = run(tmp_path, tokenizer, questions, "http://127.0.0.1:1", retriever)
    assert result.exit_code == 1 and "another process works in" in result.stderr


def test_a_full_disk_is_one_line_and_what_was_written_is_kept(
    tmp_path: Path, tag_tokens: TokenProtocol, tokenizer: Path, retriever: str
) -> None:
    questions = write_questions(tmp_path / "land.questions.jsonl", 60)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    with ModelServer(tag_tokens).running() as url:
        resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, hard))
        try:
            full = run(tmp_path, tokenizer, questions, url, retriever)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        assert full.exit_code == 1 and "File too large" in full.stderr.splitlines()[-1]
        kept = (tmp_path / "out" / "predictions.jsonl").read_bytes().count(b"\n")
        result = run(tmp_path, tokenizer, questions, url, retriever)
    assert 0 < kept < 60 and f"{60 - kept} questions in" in result.stderr
    assert result.exit_code == 0 and len(list(read_predictions(tmp_path / "out"))) == 60


def test_a_damaged_file_of_the_folder_is_named(
    tmp_path: Path, tag_tokens: TokenProtocol, tokenizer: Path, questions: Path, retriever: str
) -> None:
    out = tmp_path / "out"
    with ModelServer(tag_tokens).running() as url:
        run(tmp_path, tokenizer, questions, url, retriever)
        for name, content in (
            ("predictions.jsonl", '{"a": 1}\n'),
            ("identity.json", "{"),
            ("identity.json", "5"),
            ("config.yaml", "["),
        ):
            whole = (out / name).read_text()
            (out / name).write_text(content)
            result = run(tmp_path, tokenizer, questions, url, retriever)
            assert result.exit_code == 1 and len(result.stderr.splitlines()) == 1
            assert str(out / name) in result.stderr
            (out / name).write_text(whole)


@pytest.mark.parametrize(
    "change",
    [
        {"question": "What is the river called?"},
        {"golden_answers": ["Danube"]},
        {"golden_answers": ["Paris", "Lutetia"]},
        {"metadata": {"supporting_titles": ["Paris"]}},
        {"metadata": {"supporting_ids": ["capital"]}},
    ],
)
def test_figures_of_other_questions_with_the_same_ids_are_not_shown(
    tmp_path: Path, tag_tokens: TokenProtocol, tokenizer: Path, questions: Path, change: dict[str, Any]
) -> None:
    with ModelServer(tag_tokens).running() as url:
        words = (tmp_path, tokenizer, questions, url, "http://127.0.0.1:1", "methods=[direct]")
        assert run(*words).exit_code == 0
        first, *others = questions.read_text().splitlines(keepends=True)
        questions.write_text("".join([json.dumps(json.loads(first) | change) + "\n", *others]))
        refused = run(*words)
        questions.write_text("".join([first, *others]))
        assert run(*words).exit_code == 0
    assert refused.exit_code == 1 and "| direct" not in refused.stdout
    assert refused.stderr.startswith(
        f"Error: {tmp_path / 'out'} was begun with another questions_sha256.land"
    )
    assert len(refused.stderr.splitlines()) == 1


def test_a_folder_that_does_not_say_its_questions_is_refused_in_one_line(
    tmp_path: Path, tag_tokens: TokenProtocol, tokenizer: Path, questions: Path
) -> None:
    path = tmp_path / "out" / "identity.json"
    with ModelServer(tag_tokens).running() as url:
        words = (tmp_path, tokenizer, questions, url, "http://127.0.0.1:1", "methods=[direct]")
        assert run(*words).exit_code == 0
        counts = json.loads(path.read_text())
        del counts["questions_sha256"]
        path.write_text(json.dumps(counts))
        result = run(*words)
    assert result.exit_code == 1 and len(result.stderr.splitlines()) == 1
    assert f"{path} does not record questions_sha256.land" in result.stderr


def test_a_model_folder_with_other_files_begins_another_evaluation(
    tmp_path: Path, tag_tokens: TokenProtocol, tokenizer: Path, questions: Path
) -> None:
    mine = shutil.copytree(tokenizer, tmp_path / "mine")
    with ModelServer(tag_tokens).running() as url:
        words = (tmp_path, mine, questions, url, "http://127.0.0.1:1", "methods=[direct]")
        assert run(*words).exit_code == 0 and run(*words).exit_code == 0
        (mine / "chat_template.jinja").write_text("{{ messages[0].content }}")
        result = run(*words)
    assert result.exit_code == 1 and len(result.stderr.splitlines()) == 1
    assert f"{tmp_path / 'out'} was begun with another tokenizer_sha256" in result.stderr


class Interrupting(ModelServer):
    """Has ctrl-C pressed at the tenth call."""

    async def completions(self, request: web.Request) -> web.StreamResponse:
        if self.calls == 10:
            os.kill(os.getpid(), signal.SIGINT)
        return await super().completions(request)


def test_ctrl_c_says_how_to_go_on(
    tmp_path: Path, tag_tokens: TokenProtocol, tokenizer: Path, retriever: str
) -> None:
    questions = write_questions(tmp_path / "land.questions.jsonl", 60)
    with Interrupting(tag_tokens).running() as url:
        stopped = run(tmp_path, tokenizer, questions, url, retriever, "concurrency=2")
        assert stopped.exit_code == 130
        assert f"what is finished is kept. Resume with --out {tmp_path / 'out'}" in stopped.stderr
        kept = len(list(read_predictions(tmp_path / "out")))
        result = run(tmp_path, tokenizer, questions, url, retriever, "concurrency=2")
    assert 0 < kept < 60 and f"{60 - kept} questions in" in result.stderr and result.exit_code == 0


def test_paths_are_those_of_the_users_folder(
    tmp_path: Path,
    tag_tokens: TokenProtocol,
    tokenizer: Path,
    questions: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(service, "INDEXES", tmp_path / "indexes")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.chdir(tmp_path)
    Path("my.jsonl").write_text("".join(json.dumps(row) + "\n" for row in corpus_rows()))
    words = ["--corpus", "my.jsonl", "--index", "bm25", "--datasets", questions.name, "--out", "mine"]
    with ModelServer(tag_tokens).running() as url:
        command = ["run", "--model", url, "--tokenizer", str(tokenizer), *words, "prompt=question"]
        result = CliRunner().invoke(main, [*command, "limits.response_tokens=600"])
    assert result.exit_code == 0, result.output
    assert [each.metrics["em"] for each in read_predictions(tmp_path / "mine")] == [1.0] * 6
