"""The evaluation end to end over a loopback model server and a real retriever: faults, resume, figures,
judge.
"""

import json
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from conftest import SHARED
from evaluation_stack import WORDS, ModelServer
from retriever_process import build_index, serving

from research.environments.question_answering import Environment
from research.episode.tokens import TokenProtocol
from research.evaluation.__main__ import main
from research.evaluation.outputs.predictions import Predictions, read_predictions
from research.metrics.answers import score_answer

ROOT = Path(__file__).parents[1]
SMALL = ("engine.timeout=60", "engine.deadline=300", "limits.response_tokens=600", "limits.passage_tokens=40")
STALL_S = 4.0


@pytest.fixture(scope="module")
def retriever(tmp_path_factory: pytest.TempPathFactory) -> Any:
    rows = [
        {"id": name, "contents": f"{answer}\nThe {name} is called {answer}."}
        for name, answer in WORDS.items()
    ]
    folder = tmp_path_factory.mktemp("evaluation") / "index"
    build_index(folder, rows, kind="bm25")
    with serving(folder) as (_, url):
        yield url


@pytest.fixture(scope="module")
def tokenizer(tag_tokens: TokenProtocol, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tokenizer")
    tag_tokens.tokenizer.save_pretrained(folder)
    return folder


def write_questions(path: Path, count: int) -> Path:
    """Two of three are answered rightly; each has one gold passage."""
    names = list(WORDS)
    with path.open("w") as file:
        for number in range(count):
            name = names[number % 3]
            answer = WORDS[name] if number % 3 else "Berlin"
            metadata = {"hops": 1 + number % 2, "supporting_titles": [WORDS[name]]}
            row = {
                "id": f"q{number}",
                "question": f"What is the {name} of land {number}?",
                "metadata": metadata,
            }
            file.write(json.dumps({**row, "golden_answers": [answer]}) + "\n")
    return path


def evaluate(out: Path, url: str, retriever: str, tokenizer: Path, questions: Path, *words: str) -> str:
    options = [
        "run",
        "--model",
        url,
        "--tokenizer",
        str(tokenizer),
        "--retriever",
        retriever,
        "--out",
        str(out),
    ]
    command = [*options, "--datasets", str(questions), *SMALL, "prompt=question", *words]
    result = CliRunner().invoke(main, command)
    assert result.exit_code == 0, result.output
    return result.stdout


def results(out: Path) -> dict[str, Any]:
    [row] = json.loads((out / "metrics.json").read_text())["results"]
    return row


def contents(out: Path) -> list[bytes]:
    return [(out / name).read_bytes() for name in ("predictions.jsonl", "metrics.json")]


def test_faults_of_the_server_lose_nothing_and_change_nothing(
    tmp_path: Path, tag_tokens: TokenProtocol, retriever: str, tokenizer: Path
) -> None:
    questions = write_questions(tmp_path / "land.questions.jsonl", 1000)
    with ModelServer(tag_tokens).running() as url:
        evaluate(tmp_path / "plain", url, retriever, tokenizer, questions)
    server = ModelServer(tag_tokens, faults=0.1, stall_s=STALL_S)
    with server.running() as url:
        quick = f"engine.timeout={STALL_S / 2}"
        evaluate(tmp_path / "faulty", url, retriever, tokenizer, questions, quick)
    assert server.failed > 100
    assert contents(tmp_path / "faulty") != contents(tmp_path / "plain")  # the model's address stands in it
    rows = [list(read_predictions(tmp_path / name)) for name in ("plain", "faulty")]
    assert rows[0] == rows[1] and len(rows[0]) == 1000
    row = results(tmp_path / "faulty")
    assert row == results(tmp_path / "plain")
    assert (row["questions"], row["em"]["mean"], row["failed"]["mean"]) == (1000, 0.666, 0.0)
    assert row["support_recall"]["mean"] == row["format_valid"]["mean"] == row["searches"]["mean"] == 1.0
    assert row["em"]["low"] < 0.666 < row["em"]["high"]


def test_a_killed_run_goes_on_and_gives_the_same_bytes(
    tmp_path: Path, tag_tokens: TokenProtocol, retriever: str, tokenizer: Path
) -> None:
    questions = write_questions(tmp_path / "land.questions.jsonl", 60)
    server = ModelServer(tag_tokens)
    with server.running() as url:
        evaluate(tmp_path / "whole", url, retriever, tokenizer, questions)
        calls, expected = server.calls, contents(tmp_path / "whole")
        killed = tmp_path / "killed"
        shutil.copytree(tmp_path / "whole", killed)
        lines = (killed / "predictions.jsonl").read_bytes().splitlines(keepends=True)
        # As a kill leaves it: in the order in which they ended, the last line half written.
        (killed / "predictions.jsonl").write_bytes(b"".join(reversed(lines[20:])) + lines[0][:100])
        (killed / "metrics.json").unlink()
        evaluate(killed, url, retriever, tokenizer, questions)
        assert contents(killed) == expected
        assert server.calls - calls == 20 * 2 + 1  # two turns a question, and one to find out about token ids
        evaluate(killed, url, retriever, tokenizer, questions)
        assert contents(killed) == expected and server.calls - calls == 20 * 2 + 1
        options = ["--out", str(killed), "--retriever", retriever, "--datasets", str(questions)]
        changed = [*options, "--tokenizer", str(tokenizer), *SMALL, "prompt=question", "limits.searches=2"]
        result = CliRunner().invoke(main, ["run", "--model", url, *changed])
    assert result.exit_code == 1 and "another limits.searches: choose another --out" in result.stderr


def test_every_method_answers_and_the_table_compares(
    tmp_path: Path, tag_tokens: TokenProtocol, retriever: str, tokenizer: Path
) -> None:
    questions = write_questions(tmp_path / "land.questions.jsonl", 6)
    methods = ["direct", "ircot", "iter_retgen", "naive_rag", "research"]
    with ModelServer(tag_tokens).running() as url:
        out = tmp_path / "all"
        shown = evaluate(out, url, retriever, tokenizer, questions, f"methods=[{','.join(methods)}]")
    rows = list(read_predictions(out))
    assert Counter(row.metadata["method"] for row in rows) == dict.fromkeys(methods, 6)
    searches = {row.metadata["method"]: len(row.searches) for row in rows}
    assert searches == {"direct": 0, "naive_rag": 1, "ircot": 5, "iter_retgen": 3, "research": 1}
    assert all(f"| {method}" in shown for method in methods)
    page = (out / "report.html").read_text()
    assert "EM by hops" in page and "Searches per question" in page and "<script" not in page
    compared = CliRunner().invoke(main, ["compare", str(out), str(out)])
    assert compared.exit_code == 0 and "| land, research | em | 6 |" in compared.stdout


def test_an_environment_of_ones_own_plays_and_measures(
    tmp_path: Path,
    tag_tokens: TokenProtocol,
    retriever: str,
    tokenizer: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.syspath_prepend(ROOT / "examples" / "your_environment")
    monkeypatch.setitem(WORDS, "river", "B")
    played: list[str] = []
    monkeypatch.setattr(Environment, "play", told(Environment.play, played))
    choices = tmp_path / "choices.csv"
    choices.write_text("question,A,B,C,right\nThe river?,x,y,z,B\nThe king?,x,y,z,A\n")
    out, words = tmp_path / "out", ("environment=multiple_choice:MultipleChoice", "methods=[research,direct]")
    with ModelServer(tag_tokens).running() as url:
        shown = evaluate(out, url, retriever, tokenizer, choices, *words)
    own, direct = json.loads((out / "metrics.json").read_text())["results"]
    assert own["is_letter"]["mean"] == own["em"]["mean"] == 0.5 and "is_letter" not in direct
    assert "| is_letter |" in shown and "The river?\nA: x" in played[0] and len(played) == 2
    sys.modules.pop("multiple_choice")


def told(play: Any, played: list[str]) -> Any:
    """The same `play`, which tells the questions that it is called with."""

    async def told_play(environment: Environment, row: dict[str, Any], *rest: Any) -> Any:
        played.append(row["extra_info"]["question"])
        return await play(environment, row, *rest)

    return told_play


def test_the_judge_is_asked_once_and_its_failures_count_as_wrong(
    tmp_path: Path, tag_tokens: TokenProtocol, retriever: str, tokenizer: Path
) -> None:
    questions = write_questions(tmp_path / "land.questions.jsonl", 9)
    server = ModelServer(tag_tokens)
    with server.running() as url:
        judge = (f"judge.url={url}", "judge.model=scripted")
        evaluate(tmp_path / "out", url, retriever, tokenizer, questions, *judge)
        assert server.verdicts == 9
        row = results(tmp_path / "out")
        assert row["judge"]["mean"] == row["judge_failed"]["mean"] == pytest.approx(1 / 3, abs=1e-6)
        evaluate(tmp_path / "out", url, retriever, tokenizer, questions, *judge)
        assert server.verdicts == 9 + 3  # those that failed, once more
    reasons = [json.loads(line)["reason"] for line in (tmp_path / "out" / "judgements.jsonl").open()]
    assert len(reasons) == 6 and set(reasons) == {"as accepted"}


def test_a_server_without_token_ids_is_used_by_text_and_it_is_said(
    tmp_path: Path, text_tokens: TokenProtocol, retriever: str
) -> None:
    text_tokens.tokenizer.save_pretrained(tmp_path / "tokenizer")
    questions = write_questions(tmp_path / "land.questions.jsonl", 6)
    with ModelServer(text_tokens, by_ids=False).running() as url:
        shown = evaluate(tmp_path / "out", url, retriever, tmp_path / "tokenizer", questions)
    assert results(tmp_path / "out")["em"]["mean"] == pytest.approx(2 / 3, abs=1e-6), shown
    assert results(tmp_path / "out")["format_valid"]["mean"] == 1.0


def test_a_bad_question_costs_itself_alone(
    tmp_path: Path, tag_tokens: TokenProtocol, retriever: str, tokenizer: Path
) -> None:
    questions = write_questions(tmp_path / "land.questions.jsonl", 5)
    with questions.open("a") as file:
        file.write(
            json.dumps({"id": "long", "question": "king " * 5000, "golden_answers": ["Arthur"]}) + "\n"
        )
    with ModelServer(tag_tokens).running() as url:
        evaluate(tmp_path / "out", url, retriever, tokenizer, questions)
    [*_, bad] = read_predictions(tmp_path / "out")
    assert bad.metadata["id"] == "long" and "leaves no room" in bad.metadata["error"]
    assert results(tmp_path / "out")["questions"] == 6 and bad.metrics["em"] == 0.0


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--datasets", "nowhere.jsonl"], "nowhere.jsonl is neither a file nor one of hotpotqa"),
        (["--methods", "magic"], "no method is called magic; there are: direct, ircot"),
        (["limits.serches=2"], "limits.serches"),
        (["--preset", "nothing"], "nothing"),
        (["--retriever", "http://127.0.0.1:1"], "no retriever answers at http://127.0.0.1:1"),
        (
            ["--model", "runs/mine/polcy"],
            "there is no folder runs/mine/polcy, and it is not a name on the hub (NAME",
        ),
        (
            ["--model", str(ROOT / "docs")],
            "docs is not a folder with a Hugging Face model (config.json is missing)",
        ),
    ],
)
def test_mistakes_end_in_one_line(tmp_path: Path, words: list[str], message: str) -> None:
    questions = write_questions(tmp_path / "land.questions.jsonl", 3)
    start = ["run", "--model", "http://127.0.0.1:1", "--out", str(tmp_path / "out")]
    first = ["--retriever", "http://127.0.0.1:1"] if "--retriever" not in words else []
    data = ["--datasets", str(questions)] if "--datasets" not in words else []
    result = CliRunner().invoke(main, [*start, *first, *data, *words])
    assert result.exit_code == 1 and message in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--index", "bm25", "--encoder", "minilm"], "--encoder: an index of kind bm25 has none"),
        (["--index", "bm25"], "--index: only for an index of --corpus"),
    ],
)
def test_an_option_without_effect_is_refused(tmp_path: Path, words: list[str], message: str) -> None:
    corpus = ["--corpus", str(write_questions(tmp_path / "c.jsonl", 1))] if "--encoder" in words else []
    result = CliRunner().invoke(main, ["run", "--model", "http://127.0.0.1:1", *corpus, *words])
    assert result.exit_code == 2 and message in result.stderr


def test_a_file_of_several_data_sets_is_reported_by_data_set(
    tmp_path: Path, tag_tokens: TokenProtocol, retriever: str, tokenizer: Path
) -> None:
    path = write_questions(tmp_path / "land.questions.jsonl", 6)
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    for number, row in enumerate(rows):
        row["data_source"] = "first" if number < 4 else "second"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with ModelServer(tag_tokens).running() as url:
        evaluate(tmp_path / "out", url, retriever, tokenizer, path, "limit=3")
    table = json.loads((tmp_path / "out" / "metrics.json").read_text())["results"]
    parts = [(row["dataset"], row["questions"]) for row in table]
    assert parts == [("land_first", 3), ("land_second", 2), ("mean", 5)]


def test_files_may_have_commas_in_their_names(
    tmp_path: Path, tag_tokens: TokenProtocol, tokenizer: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("land.jsonl", "a,b.jsonl", "a", "it's, 'c'.jsonl"):
        write_questions(Path(name), 1)
    start = ["run", "--model", "http://127.0.0.1:1", "--methods", "direct", "--tokenizer", str(tokenizer)]
    names = ["--datasets", "land.jsonl,a,b.jsonl,it's, 'c'.jsonl,a", "--out", str(tmp_path / "out"), *SMALL]
    with ModelServer(tag_tokens).running() as url:
        result = CliRunner().invoke(main, ["run", "--model", url, *start[3:], *names])
    assert result.exit_code == 0, result.output
    asked = [row["dataset"] for row in json.loads((tmp_path / "out" / "metrics.json").read_text())["results"]]
    assert asked == ["land", "a,b", "it's, 'c'", "a", "mean"]
    missing = ["--datasets", "land.jsonl,b,c.jsonl", "--out", str(tmp_path / "none"), *SMALL]
    result = CliRunner().invoke(main, [*start, *missing])
    assert result.exit_code == 1 and "b is neither a file nor one of" in result.stderr


def test_help_teaches() -> None:
    wanted = {"": "Examples:", "run": "Ask all questions", "compare": "what changed", "report": "report.html"}
    for words, text in wanted.items():
        command = [sys.executable, "-m", "research.evaluation", *words.split(), "--help"]
        shown = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
        assert text in shown


def test_metrics_are_those_of_the_official_scripts(shared_rows: Path) -> None:
    path = shared_rows / "crosscheck" / "metric_cases.jsonl"
    cases = [json.loads(line) for line in path.open(encoding="utf-8")]
    assert len(cases) == (1784 if shared_rows == SHARED else 14)
    for case in cases:
        scores = score_answer(case["pred"], case["golden_answers"])
        official = case["scores"]
        assert scores.em == official["flashrag_em"] and scores.acc == official["flashrag_acc"], case
        assert scores.f1 == pytest.approx(official["flashrag_f1"], abs=1e-9), case


def test_metrics_are_those_stored_with_trajectories(shared_rows: Path) -> None:
    path = shared_rows / "crosscheck" / "bamboogle_trajectories.jsonl"
    rows = [json.loads(line) for line in path.open(encoding="utf-8")]
    assert len(rows) == (189 if shared_rows == SHARED else 14)
    for row in rows:
        scores = score_answer(row["pred"] or "", row["golden_answers"])._asdict()
        assert scores == pytest.approx(row["metric_score"], abs=1e-3), row["id"]


def test_predictions_survive_a_half_line(tmp_path: Path) -> None:
    (tmp_path / "predictions.jsonl").write_text('{"half')
    assert Predictions(tmp_path).done == {} and (tmp_path / "predictions.jsonl").read_text() == ""
