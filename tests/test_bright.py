"""BRIGHT from end to end over a real BM25 service: questions as they stand, a file, a scripted model;
exclusions, failures, resume, refusals.
"""

import json
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from click.testing import CliRunner, Result
from evaluation_stack import ModelServer
from flask import Flask
from loopback import serving as serving_app
from retriever_process import serving

from research.episode.tokens import TokenProtocol
from research.evaluation.bright import run as bright_run
from research.evaluation.bright.__main__ import main
from research.evaluation.bright.trec import read_run
from research.tools import service
from retriever_server.building.build import BuildOptions, create_index

DOCUMENTS = {
    "crown": "The king wears a crown of gold.",
    "queen": "The queen wears a crown, too; a crown of silver.",
    "river": "The river flows to the sea.",
    "old crown": "Once a crown was a crown was a crown.",
}
QUESTIONS = [
    {"id": "0", "query": "What crown?", "gold_ids": ["crown"], "excluded_ids": ["old crown", "queen"]},
    {"id": "1", "query": "Where does the water go?", "gold_ids": ["river"], "excluded_ids": ["N/A"]},
    {"id": "2", "query": "A fault in the crown of silver?", "gold_ids": ["queen"], "excluded_ids": ["N/A"]},
]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bright")
    documents = [{"id": name, "content": text} for name, text in DOCUMENTS.items()]
    for name, rows in (("examples", QUESTIONS), ("documents", documents)):
        for task in ("court", "land"):
            kept = rows[:2] if name == "examples" and task == "land" else rows
            (folder / f"{task}.{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in kept))
    return folder


@pytest.fixture(autouse=True)
def caches(monkeypatch: pytest.MonkeyPatch, data: Path) -> None:
    monkeypatch.setattr(service, "INDEXES", data / "indexes")
    monkeypatch.setattr(bright_run, "CACHE", data / "cache")


@pytest.fixture(scope="module")
def court(data: Path) -> Iterator[str]:
    """The service over the documents, for tests that need not see it started."""
    corpus = data / "court.jsonl"
    rows = ({"id": name, "contents": text} for name, text in DOCUMENTS.items())
    corpus.write_text("".join(json.dumps(row) + "\n" for row in rows))
    create_index(BuildOptions(corpus=corpus, target=data / "court", encoder="", kind="bm25"))
    with serving(data / "court") as (_, url):
        yield url


@pytest.fixture
def served(court: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bright_run, "serving", lambda _: nullcontext(court))


@pytest.fixture
def no_service(monkeypatch: pytest.MonkeyPatch) -> Any:
    """To be called when from now on no retriever may be asked."""

    def refuse(*_: object) -> None:
        raise AssertionError("the retriever was asked again")

    return lambda: monkeypatch.setattr(bright_run, "serving", refuse)


def invoke(data: Path, out: Path, *words: str) -> Result:
    return CliRunner().invoke(main, ["run", "--data", str(data), "--out", str(out), *words])


def evaluate(data: Path, out: Path, *words: str) -> tuple[dict[str, Any], Result]:
    """The rows of metrics.json by task, and what was shown."""
    result = invoke(data, out, *words)
    assert result.exit_code == 0, result.output
    rows = json.loads((out / "metrics.json").read_text())["results"]
    return {row["task"]: row for row in rows}, result


def ndcg(row: dict[str, Any]) -> float:
    return row["ndcg@10"]["mean"]


def write_texts(path: Path, texts: dict[str, Any]) -> Path:
    path.write_text("".join(json.dumps({"id": key, "queries": text}) + "\n" for key, text in texts.items()))
    return path


def test_questions_as_they_stand_with_exclusions_and_resume(
    data: Path, tmp_path: Path, no_service: Any
) -> None:
    words = ("--queries", "original", "--tasks", "court", "--retriever", "bm25")
    out = tmp_path / "out"
    rows, result = evaluate(data, out, *words)
    assert ndcg(rows["court"]) == pytest.approx(2 / 3, abs=1e-6) and "| court" in result.stdout
    run = read_run(out / "runs" / "court.trec")
    assert list(run["0"]) == ["crown"] and list(run["2"])[0] == "queen" and "old%20crown" in run["2"]
    assert "1" not in run, "no word of it is in a passage"
    assert rows["court"]["retriever"]["options"] == ["k1=0.9", "b=0.4"]
    before = {path: path.read_bytes() for path in out.rglob("*.*") if path.is_file()}
    no_service()
    evaluate(data, out, *words)
    assert {path: path.read_bytes() for path in before} == before
    refused = invoke(data, out, *words, "retriever.k1=1.2")
    assert refused.exit_code == 1 and "another retriever.k1: choose another --out" in refused.stderr


def test_several_tasks_have_a_plain_mean_and_a_killed_run_goes_on(
    data: Path, tmp_path: Path, served: None, no_service: Any
) -> None:
    words = ("--queries", "original", "--tasks", "court,land", "--retriever", "bm25")
    out = tmp_path / "out"
    rows, _ = evaluate(data, out, *words)
    assert ndcg(rows["land"]) == 0.5
    assert (
        ndcg(rows["mean"]) == pytest.approx((2 / 3 + 1 / 2) / 2, abs=1e-6) and rows["mean"]["questions"] == 5
    )
    expected = (out / "metrics.json").read_bytes()
    (out / "metrics.json").unlink()
    (out / "runs" / "land.trec").unlink()
    evaluate(data, out, *words)
    assert (out / "metrics.json").read_bytes() == expected
    (out / "metrics.json").unlink()
    no_service()
    evaluate(data, out, *words)
    assert (out / "metrics.json").read_bytes() == expected


def test_texts_of_a_file_by_mode_and_fusion(
    data: Path, tmp_path: Path, served: None, no_service: Any
) -> None:
    texts = {"0": "gold", "1": ["sea", "river sea"], "2": "silver"}
    words = (
        "--queries",
        str(write_texts(tmp_path / "t.jsonl", texts)),
        "--tasks",
        "court",
        "--retriever",
        "bm25",
    )
    rows, _ = evaluate(data, tmp_path / "replace", *words)
    assert ndcg(rows["court"]) == 1.0
    single = read_run(tmp_path / "replace" / "runs" / "court.trec")
    rows, _ = evaluate(data, tmp_path / "joined", *words, "--mode", "concatenate", "--weight", "2")
    joined = read_run(tmp_path / "joined" / "runs" / "court.trec")
    assert joined["2"]["queen"] > single["2"]["queen"] and "old%20crown" in joined["2"]
    rows, _ = evaluate(data, tmp_path / "fused", *words, "--mode", "fuse", "--weight", "2", "--fusion", "rrf")
    fused = read_run(tmp_path / "fused" / "runs" / "court.trec")
    assert fused["0"] == {"crown": pytest.approx(3 / 61)}
    assert fused["1"] == {"river": pytest.approx(2 / 61)}
    no_service()
    write_texts(tmp_path / "t.jsonl", texts | {"0": "other"})
    refused = invoke(data, tmp_path / "replace", *words)
    assert refused.exit_code == 1 and "was begun with" in refused.stderr


def test_missing_texts_are_an_error_or_named_and_count_as_nothing(
    data: Path, tmp_path: Path, served: None
) -> None:
    path = write_texts(tmp_path / "t.jsonl", {"0": "gold", "1": " "})
    words = ("--queries", str(path), "--tasks", "court", "--retriever", "bm25")
    refused = invoke(data, tmp_path / "out", *words)
    assert refused.exit_code == 1
    assert "has no texts for 1 questions of court: 2. With --allow-missing they count as 0" in refused.stderr
    rows, result = evaluate(data, tmp_path / "out2", *words, "--allow-missing")
    assert ndcg(rows["court"]) == pytest.approx(1 / 3, abs=1e-6)
    assert rows["court"]["without_text"] == ["2"] and rows["court"]["blank"] == 1
    assert "WARNING" in result.stderr


class Rewriter(ModelServer):
    """Writes a text by a word of the question; refuses the question with a fault."""

    async def completions(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        if "fault" in self._tokens.decode(body["prompt"]):
            return web.json_response({"error": "not this one"}, status=400)
        return await super().completions(request)

    def _choice(self, body: dict[str, Any]) -> dict[str, Any]:
        said = "the sea" if "water" in self._tokens.decode(body["prompt"]) else "gold"
        ids = [*self._tokens.encode(said), self._tokens.tokenizer.eos_token_id]
        return {"text": said, "token_ids": ids[: body["max_tokens"]], "finish_reason": "stop"}


def test_a_model_is_asked_once_and_its_failures_count_as_nothing(
    data: Path, tmp_path: Path, tag_tokens: TokenProtocol, served: None, no_service: Any
) -> None:
    tag_tokens.tokenizer.save_pretrained(tmp_path / "tokenizer")
    server, out = Rewriter(tag_tokens), tmp_path / "out"
    with server.running() as url:
        words = ("--model", url, "--tokenizer", str(tmp_path / "tokenizer"), "--tasks", "court")
        words = (*words, "--retriever", "bm25", "--samples", "2", "--mode", "concatenate")
        rows, result = evaluate(data, out, *words)
        assert ndcg(rows["court"]) == pytest.approx(2 / 3, abs=1e-6)
        assert rows["court"]["without_text"] == ["2"]
        assert "2 of 6 texts failed and count as 0: court 2, court 2; first: EngineError" in result.stderr
        made = [json.loads(line) for line in (out / "rewrites.jsonl").open()]
        assert sorted((row["id"], row["text"]) for row in made if row["error"] is None) == [
            *[("0", "gold")] * 2,
            *[("1", "the sea")] * 2,
        ]
        sampling = {
            name: server.bodies[-1][name] for name in ("temperature", "top_p", "top_k", "repetition_penalty")
        }
        assert list(sampling.values()) == [0.7, 0.8, 20, 1.05] and server.bodies[-1]["max_tokens"] == 500
        assert len({body["seed"] for body in server.bodies[1:]}) == 4
        no_service()
        calls = server.calls
        whole = (out / "rewrites.jsonl").read_bytes()
        evaluate(data, out, *words)
        assert server.calls == calls
        # As a kill leaves it: the last line half written, which is asked for again.
        (out / "rewrites.jsonl").write_bytes(whole[:-10])
        evaluate(data, out, *words)
        assert len((out / "rewrites.jsonl").read_bytes().splitlines()) == 6
        refused = invoke(data, out, *words, "sampling.seed=1")
    assert refused.exit_code == 1 and "another sampling.seed" in refused.stderr


class Thinker(Rewriter):
    """Thinks first, in the form that the prompt rqr_think describes."""

    def _choice(self, body: dict[str, Any]) -> dict[str, Any]:
        said = "<think>what is it</think><answer>the sea</answer>"
        return {"text": said, "token_ids": self._tokens.encode(said), "finish_reason": "stop"}


def test_a_model_that_thinks_is_read_in_the_form_of_its_prompt(
    data: Path, tmp_path: Path, tag_tokens: TokenProtocol, served: None
) -> None:
    tag_tokens.tokenizer.save_pretrained(tmp_path / "tokenizer")
    with Thinker(tag_tokens).running() as url:
        words = ("--model", url, "--tokenizer", str(tmp_path / "tokenizer"), "--tasks", "court")
        rows, _ = evaluate(data, tmp_path / "out", *words, "--retriever", "bm25", "--prompt", "rqr_think")
    made = [json.loads(line) for line in (tmp_path / "out" / "rewrites.jsonl").open()]
    assert {row["text"] for row in made if row["error"] is None} == {"the sea"}
    assert rows["court"]["blank"] == 0


def test_a_model_that_never_writes_is_an_error(data: Path, tmp_path: Path, tag_tokens: TokenProtocol) -> None:
    result = invoke(
        data, tmp_path / "out", "--model", "http://127.0.0.1:9", "--tasks", "court", "engine.deadline=1"
    )
    assert result.exit_code == 1 and "no OpenAI-compatible server at http://127.0.0.1:9" in result.stderr
    both = invoke(data, tmp_path / "out", "--model", "x", "--queries", "original")
    assert both.exit_code == 1 and "give either --queries or --model" in both.stderr


def test_a_token_in_the_environment_is_the_services_and_ours(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RETRIEVER_TOKEN", "secret")
    rows, _ = evaluate(
        data, tmp_path / "out", "--queries", "original", "--tasks", "court", "--retriever", "bm25"
    )
    assert ndcg(rows["court"]) == pytest.approx(2 / 3, abs=1e-6)


@pytest.mark.parametrize("answer", [[[{"id": None}], [1.0]], [[]], {"documents": []}, "<p>Sign in</p>"])
def test_searches_that_all_fail_are_an_error(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, answer: Any
) -> None:
    app = Flask("other")
    text = answer if isinstance(answer, str) else json.dumps(answer)
    app.add_url_rule("/search", "search", lambda: text, methods=["POST"])
    app.add_url_rule("/health", "health", lambda: "{}")
    with serving_app(app) as url:
        monkeypatch.setattr(bright_run, "serving", lambda _: nullcontext(url))
        out = tmp_path / "out"
        result = invoke(data, out, "--queries", "original", "--tasks", "court", "--retriever", "bm25")
    assert result.exit_code == 1 and "Error: the retriever failed: " in result.stderr.splitlines()[-1]


class Refuser(ModelServer):
    """Refuses every question, until it writes."""

    writes = False

    async def completions(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        if body["max_tokens"] > 1 and not self.writes:
            return web.json_response({"error": "not this one"}, status=400)
        ids = [*self._tokens.encode("gold"), self._tokens.tokenizer.eos_token_id]
        return web.json_response({"choices": [{"token_ids": ids}]})


def test_texts_that_all_failed_are_an_error_and_asked_for_again(
    data: Path, tmp_path: Path, tag_tokens: TokenProtocol, served: None
) -> None:
    tag_tokens.tokenizer.save_pretrained(tmp_path / "tokenizer")
    server = Refuser(tag_tokens)
    with server.running() as url:
        words = ("--model", url, "--tokenizer", str(tmp_path / "tokenizer"), "--tasks", "court")
        failed = invoke(data, tmp_path / "out", *words, "--retriever", "bm25")
        assert failed.exit_code == 1 and "all 3 texts failed" in failed.stderr
        server.writes = True
        rows, _ = evaluate(data, tmp_path / "out", *words, "--retriever", "bm25")
    assert rows["court"]["without_text"] == []


def test_a_folder_that_is_no_evaluation_is_refused(data: Path, tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("mine")
    result = invoke(data, tmp_path, "--queries", "original", "--tasks", "court")
    assert result.exit_code == 1 and "is not an evaluation, and holds thesis.tex" in result.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_paths_are_those_of_the_users_folder(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[1]))
    monkeypatch.setattr(bright_run, "CACHE", tmp_path / "cache")
    monkeypatch.setattr(service, "INDEXES", tmp_path / "indexes")
    monkeypatch.chdir(data.parent)
    words = ("--queries", "original", "--tasks", "court", "--retriever", "bm25")
    rows, _ = evaluate(Path(data.name), tmp_path / "out", *words)
    assert ndcg(rows["court"]) == pytest.approx(2 / 3, abs=1e-6)
