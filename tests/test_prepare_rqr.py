"""stack_exchange/prepare.py: from StackExchange rows to training tasks, dev tasks, corpus and report."""

import json
import os
import subprocess
import sys
import time
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import loopback
import pytest
from click.testing import CliRunner, Result
from conftest import SHARED
from flask import Flask, Response, jsonify, request
from hypothesis import given, settings
from hypothesis import strategies as st
from stack_rows import jsonl, prose, row

from research.datasets.rewriting_tasks import RewritingTask, read_tasks
from research.datasets.stack_exchange.dump import Post
from research.datasets.stack_exchange.generated_positives import _text as text_of
from research.datasets.stack_exchange.prepare import main
from research.datasets.stack_exchange.selection import Tally, draw, split_tasks
from research.model_server import ServerError
from retriever_server.corpus import read_documents

ROOT = Path(__file__).resolve().parents[1]


def prepare(*arguments: str | Path) -> Result:
    return CliRunner().invoke(main, [str(each) for each in arguments])


def prepared(folder: Path, rows: list[Any], *options: str | Path) -> dict[str, Any]:
    """The report of a run that ends well, into folder/out."""
    source = jsonl(folder / "rows.jsonl", rows)
    result = prepare(source, "--out", folder / "out", "--dev", "1", *options)
    assert result.exit_code == 0, result.output
    report: dict[str, Any] = json.loads((folder / "out" / "report.json").read_text())
    counts = report["counts"]
    assert counts["read"] == sum(counts["dropped"].values()) + counts["train"] + counts["dev"]
    return report


def all_tasks(folder: Path) -> dict[str, RewritingTask]:
    both = [*read_tasks(folder / "train.parquet"), *read_tasks(folder / "dev.parquet")]
    return {task.id: task for task in both}


# Filters, duplicates, draws


def test_each_filter_drops_and_counts(tmp_path):
    short_answer = [{"text": "<p>Yes.</p>", "pm_score": 5, "selected": True}]
    faults = {
        "image": [row(20, question=f'<p>{prose(20)} <img src="a.png"></p>'), row(21, question="![a](b.png)")],
        "too_long": [row(22, question=prose(22, 200))],
        "near_empty": [row(23, question="<p>Why this?</p>")],
        "no_positives": [row(24, answers=[]), row(25, answers=short_answer)],
    }
    rows = [row(number) for number in range(6)] + [each for rows in faults.values() for each in rows]
    report = prepared(tmp_path, rows, "--max-chars", "1000")
    assert report["counts"]["dropped"] == {name: len(rows) for name, rows in faults.items()}
    assert (
        report["sources"]["biology"] == {"read": 3 + 3, "train": 3, "dev": 0} or report["counts"]["dev"] == 1
    )


def test_duplicates_within_the_set_are_named_with_the_one_that_stays(tmp_path):
    edited = prose(1).split()
    edited[5] = "another"
    rows = [row(number) for number in range(6)]
    rows += [row(10, question=rows[0]["question"].upper()), row(11, question=rows[1]["question"])]
    rows += [row(12, question=" ".join(edited))]
    report = prepared(tmp_path, rows)
    told = {(each["id"], each["reason"], each["partner"]) for each in report["removed"]}
    assert told == {
        ("biology_10", "duplicate_exact", "biology_0"),
        ("math_11", "duplicate_exact", "math_1"),
        ("biology_12", "duplicate_near", "math_1"),  # across sites
    }
    assert 0.5 < min(each["similarity"] for each in report["removed"]) < 1
    assert report["removed"][0]["where"].endswith("rows.jsonl:7")


def test_a_source_gives_no_more_than_its_cap_whatever_the_order(tmp_path):
    posts = [Post(f"{n}", prose(n), (), "ab"[n % 2], "", False) for n in range(40)]
    drawn = []
    for order in (posts, posts[::-1], [*posts, *posts]):
        tally = Tally()
        drawn.append({post.id for post in draw(order, 5, seed=1, tally=tally)})
        assert tally.dropped.total() == len(order) - 10
    assert drawn[0] == drawn[1] == drawn[2] and len(drawn[0]) == 10
    assert {post.id for post in draw(posts, 5, seed=2, tally=Tally())} != drawn[0]


def test_an_id_that_two_questions_share_is_a_fault(tmp_path):
    rows = [row(number) for number in range(4)] + [row(0, question=prose("other"))]
    result = prepare(jsonl(tmp_path / "rows.jsonl", rows), "--out", tmp_path / "out", "--dev", "1")
    assert result.exit_code == 1 and "rows.jsonl:5: the id 'biology_0' was given already" in result.output


# BRIGHT


def bright_file(folder: Path, texts: dict[str, str]) -> Path:
    return jsonl(folder / "bright.jsonl", [{"id": name, "query": text} for name, text in texts.items()])


def test_questions_of_bright_are_removed_exact_near_quoted_and_cut(tmp_path):
    known = prose("bright", 60)
    edited = [f"new{place}" if place % 10 == 0 else word for place, word in enumerate(known.split())]
    changed = {
        "exact": known.replace(" ", "\n").upper(),
        "edited": " ".join(edited),
        "quoted": f"{prose('before', 100)} {known} {prose('after', 300)}",
        "cut": " ".join(known.split()[20:45]),
        "signed": f"A new title\n{known}\nThanks in advance for any help, Ann",
    }
    rows = [row(number) for number in range(4)]
    rows += [row(100, id=name, question=text) for name, text in changed.items()]
    report = prepared(tmp_path, rows, "--bright", bright_file(tmp_path, {"0": "unlike", "7": known}))
    assert report["counts"]["dropped"] == {"bright_exact": 1, "bright_near": 4}
    assert {(each["id"], each["partner"]) for each in report["removed"]} == {
        (f"biology_{name}", "7") for name in changed
    }
    assert report["bright"][0]["sha256"] and report["counts"]["train"] == 3


def test_without_bright_it_is_said_loudly_and_bad_rows_of_bright_are_placed(tmp_path):
    source = jsonl(tmp_path / "rows.jsonl", [row(number) for number in range(4)])
    result = prepare(source, "--out", tmp_path / "out", "--dev", "1")
    assert result.output.count("without --bright") == 1
    bad = jsonl(tmp_path / "bad.jsonl", [{"id": "1", "query": "q"}, {"id": "2"}])
    result = prepare(source, "--out", tmp_path / "other", "--bright", bad)
    assert result.exit_code == 1 and "bad.jsonl:2: a row of BRIGHT needs" in result.output


def test_several_files_of_bright_may_number_alike(tmp_path):
    folder = tmp_path / "bright"
    folder.mkdir()
    for task in ("biology", "pony"):
        jsonl(folder / f"{task}.jsonl", [{"id": "0", "query": prose(task)}])
    rows = [row(number) for number in range(4)] + [row(9, question=prose("pony"))]
    report = prepared(tmp_path, rows, "--bright", folder)
    assert [each["partner"] for each in report["removed"]] == ["pony/0"]


def test_rows_of_bright_never_come_through(tmp_path, shared_rows):
    bright = shared_rows / "bright.questions.jsonl"
    real = [json.loads(line)["question"] for line in bright.open()][:: 20 if shared_rows == SHARED else 1]
    rows = [row(number) for number in range(5)] + [row(100 + n, question=text) for n, text in enumerate(real)]
    dropped = prepared(tmp_path, rows, "--bright", bright, "--text", "plain")["counts"]["dropped"]
    assert dropped["bright_exact"] + dropped.get("image", 0) == len(real)


# The split and the files


@settings(max_examples=50)
@given(
    st.lists(st.lists(st.sampled_from("abcdefgh"), max_size=2), min_size=1, max_size=12), st.integers(0, 6)
)
def test_no_passage_is_gold_in_training_and_dev(golds, size):
    tasks = [RewritingTask(str(n), "q", gold_ids=tuple(gold)) for n, gold in enumerate(golds)]
    train, dev = split_tasks(tasks, size, seed=3)
    assert len(dev) <= size and sorted(train + dev, key=tasks.index) == tasks
    sides = [{name for task in side for name in task.gold_ids} for side in (train, dev)]
    assert not sides[0] & sides[1]


def test_files_fit_each_other_and_the_same_input_gives_the_same_bytes(tmp_path):
    shared = row(0)["answers"]
    rows = [row(number, **({"answers": shared} if number in (4, 8) else {})) for number in range(30)]
    prepared(tmp_path, rows, "--dev", "10", "--per-source", "12")
    first = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    assert sorted(first) == ["corpus.jsonl", "dev.parquet", "report.json", "train.parquet"]
    prepared(tmp_path, rows, "--dev", "10", "--per-source", "12")
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()} == first
    tasks = all_tasks(tmp_path / "out")
    corpus = [json.loads(line) for line in (tmp_path / "out" / "corpus.jsonl").read_text().splitlines()]
    texts = {passage["id"]: passage["contents"] for passage in corpus}
    assert len(texts) == len(corpus) == len(set(texts.values())) and len(tasks) == 24
    for task in tasks.values():
        assert tuple(texts[name] for name in task.gold_ids) == task.positives != ()
    assert len(list(read_documents(tmp_path / "out" / "corpus.jsonl"))) == len(corpus)
    prepared(tmp_path, rows, "--dev", "10", "--per-source", "12", "--seed", "1")
    assert (tmp_path / "out" / "train.parquet").read_bytes() != first["train.parquet"]


def test_a_faulty_row_ends_the_run_and_is_placed(tmp_path):
    source = jsonl(tmp_path / "rows.jsonl", [row(0), {"question": "q"}])
    result = prepare(source, "--out", tmp_path / "out")
    assert result.exit_code == 1 and 'rows.jsonl:2: needs "positives" or "answers"' in result.output
    assert list(tmp_path.iterdir()) == [source]


def test_too_few_questions_are_an_error_that_counts(tmp_path):
    source = jsonl(tmp_path / "rows.jsonl", [row(0), row(1)])
    result = prepare(source, "--out", tmp_path / "out", "--dev", "5")
    assert prepare(tmp_path / "no.jsonl", "--out", tmp_path / "out").output.endswith(
        "no.jsonl: no such file or folder\n"
    )
    assert result.exit_code == 1 and "too few questions" in result.output and "2 rows" in result.output
    assert list(tmp_path.iterdir()) == [source]


def test_the_command_runs_as_a_script_from_anywhere(tmp_path):
    jsonl(tmp_path / "rows.jsonl", [row(number) for number in range(4)])
    command = [
        sys.executable,
        str(ROOT / "data" / "prepare_rqr.py"),
        "rows.jsonl",
        "--out",
        "out",
        "--dev",
        "1",
    ]
    bare = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(command, cwd=tmp_path, env=bare, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0 and "4 rows: 3 train, 1 dev" in done.stdout, done.stderr


def test_an_interrupted_run_leaves_the_folder_as_it_was(tmp_path, monkeypatch):
    prepared(tmp_path, [row(number) for number in range(4)])
    before = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}

    def interrupted(folder: Path, *parts: Any) -> None:
        (folder / "train.parquet").write_text("half")
        raise KeyboardInterrupt

    monkeypatch.setattr("research.datasets.stack_exchange.prepare.write", interrupted)
    source = jsonl(tmp_path / "rows.jsonl", [row(number) for number in range(9)])
    result = prepare(source, "--out", tmp_path / "out", "--dev", "1")
    assert result.exit_code == 1 and "Aborted" in result.output
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()} == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "rows.jsonl"]


# Positives that a model is asked for


class Model:
    """An OpenAI-like server: every third call fails for a moment, some questions are refused for good."""

    def __init__(self, refused: str = "", shaky: bool = True) -> None:
        self.refused, self.shaky, self.calls = refused, shaky, 0
        self.answered: list[str] = []

    def chat(self) -> Response:
        self.calls += 1
        if self.shaky and self.calls % 3 == 0:
            return Response("busy", status=503)
        question = request.get_json()["messages"][-1]["content"]
        if self.refused and self.refused in question:
            return Response("cannot", status=400)
        self.answered.append(question)
        content = f"<think>hm</think>\nThe text that answers {question.split()[0]} and more of it"
        return jsonify(choices=[{"message": {"content": content}, "finish_reason": "stop"}])

    def running(self) -> AbstractContextManager[str]:
        app = Flask("model")
        app.add_url_rule("/v1/models", view_func=lambda: jsonify(data=[{"id": "m"}]))
        app.add_url_rule("/v1/chat/completions", view_func=self.chat, methods=["POST"])
        return loopback.serving(app)


def asking(url: str) -> list[str]:
    return ["--generate-positives", url, "--generate-model", "m", "--generate-concurrency", "2"]


def test_a_model_is_asked_once_a_question_through_faults_and_restarts(tmp_path):
    rows = [{"id": number, "question": prose(number)} for number in range(8)]
    kept = tmp_path / "out.generated.jsonl"
    model = Model()
    with model.running() as url:
        prepared(tmp_path, rows[:5], *asking(url))
        assert len(model.answered) == 5
        with kept.open("ab") as file:  # as a kill leaves it
            file.write(b'{"key": "half a li')
        report = prepared(tmp_path, rows, *asking(url))
        assert sorted(model.answered) == sorted(each["question"] for each in rows)
        written = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
        prepared(tmp_path, rows, *asking(url))
        assert {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()} == written
    assert len(model.answered) == 8 == len(kept.read_text().splitlines())
    assert report["generation_failures"] == {}
    task = all_tasks(tmp_path / "out")["rows_0"]
    assert task.positives == (f"The text that answers {prose(0).split()[0]} and more of it",)


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ("<think>hm</think>\n the text", "the text"),
        ("<think>never closed", None),
        (" " * 500_000 + "the text", "the text"),
        ("<think>" * 100_000 + "</think>the text", "the text"),
        ("a \ud800", "a ?"),
    ],
)
def test_what_counts_of_an_answer(content, text):
    reply = {"choices": [{"message": {"content": content}}]}
    began = time.process_time()
    if text is None:
        with pytest.raises(ServerError, match="empty"):
            text_of(reply)
    else:
        assert text_of(reply) == text
    assert time.process_time() - began < 2


def test_what_the_model_refuses_is_counted_and_named(tmp_path):
    model = Model(refused=prose(2), shaky=False)
    rows = [row(number, answers=[]) for number in range(4)] + [row(5)]
    with model.running() as url:
        report = prepared(tmp_path, rows, *asking(url))
    assert report["counts"]["dropped"] == {"generation_failed": 1}
    assert "HTTP 400: cannot" in report["generation_failures"]["biology_2"]
    assert len(all_tasks(tmp_path / "out")["math_5"].positives) == 2
    with Model(shaky=False).running() as url:
        prepared(tmp_path, rows, *asking(url), "--only-generated")
    assert all(len(task.positives) == 1 for task in all_tasks(tmp_path / "out").values())


def test_a_model_that_always_fails_ends_the_run_and_keeps_the_rest(tmp_path):
    source = jsonl(tmp_path / "rows.jsonl", [row(number) for number in range(9)])
    with Model(refused=" ", shaky=False).running() as url:
        result = prepare(source, "--out", tmp_path / "out", *asking(url))
    assert result.exit_code == 1 and "fails on question after question" in result.output
    nobody = prepare(source, "--out", tmp_path / "out", *asking(url), "--generate-deadline", "1")
    assert nobody.exit_code == 1 and "no OpenAI-compatible server answers" in nobody.output
    assert not (tmp_path / "out").exists()
    alone = prepare(source, "--out", tmp_path / "out", "--generate-positives", url)
    assert alone.exit_code == 2 and "go together" in alone.output
