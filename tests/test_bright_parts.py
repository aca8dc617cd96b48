"""BRIGHT's parts: fusion by hand, readers of each form, requests, texts of a file."""

import asyncio
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st
from test_data_standin import hub_stand_in

from research.datasets.bright import REPO, SIZES, hub_task, local_task
from research.datasets.rewriting_tasks import RewritingTask
from research.episode.trajectory import Passage
from research.errors import DataError
from research.evaluation.bright import published
from research.evaluation.bright.config import compose_bright, read_bright_config
from research.evaluation.bright.fusion import best, fused, reciprocal_ranks, summed
from research.evaluation.bright.queries import query_of, read_texts, texts_for
from research.evaluation.bright.retrieve import retrieve_all, scores_of
from research.evaluation.bright.score import figures, mean_figures, table
from research.evaluation.bright.trec import METRICS
from research.evaluation.config import EvaluationError
from research.metrics.statistics import bootstrap, bootstrap_mean_of

# ------------------------------------------------------------------------------------------ fusion


def test_sums_take_nothing_for_absent_words_and_the_lowest_score_of_a_list_that_was_cut() -> None:
    cut, whole = {"a": 5.0, "b": 3.0}, {"b": 2.0}
    assert summed([cut, whole], [1, 1], length=2) == {"a": 5.0, "b": 5.0}
    assert summed([cut, {"c": 4.0, "a": 1.0}], [1, 2], length=2) == {
        "a": 5 + 2 * 1,
        "b": 3 + 2 * 1,
        "c": 3 + 2 * 4,
    }


def test_reciprocal_ranks_by_hand() -> None:
    lists = [{"a": 9.0, "b": 8.0}, {"b": 0.3, "c": 0.2, "a": 0.1}]
    found = reciprocal_ranks(lists, [2, 1], 60)
    assert found == pytest.approx({"a": 2 / 61 + 1 / 63, "b": 2 / 62 + 1 / 61, "c": 1 / 62})
    assert list(fused(lists, [2, 1], "rrf", 2)) == ["a", "b"]


SCORES = st.dictionaries(st.text("abcdef", min_size=1, max_size=2), st.floats(0.5, 100), max_size=12)


@examples(max_examples=50)
@given(st.lists(SCORES, min_size=1, max_size=4))
def test_the_sum_of_whole_lists_is_exact_and_ordered(lists: list[dict[str, float]]) -> None:
    total = fused(lists, [1.0] * len(lists), "sum", 1000)
    names = {name for scores in lists for name in scores}
    expected = {name: sum(scores.get(name, 0.0) for scores in lists) for name in names}
    assert total == pytest.approx(expected)
    assert list(total.values()) == sorted(total.values(), reverse=True)


@examples(max_examples=50)
@given(SCORES, st.integers(1, 12))
def test_one_list_stays_as_it_is(scores: dict[str, float], length: int) -> None:
    for fusion in ("sum", "rrf"):
        assert fused([scores], [1.0], fusion, length) == best(scores, length)


def test_the_mean_of_tasks_is_plain_and_its_interval_narrower() -> None:
    random = np.random.default_rng(0)
    groups = [random.random(100), random.random(20)]
    interval = bootstrap_mean_of(groups)
    assert interval.mean == pytest.approx((groups[0].mean() + groups[1].mean()) / 2)
    assert interval.high - interval.low < bootstrap(groups[1]).high - bootstrap(groups[1]).low


def test_figures_are_rounded_once_when_they_are_shown() -> None:
    """.1234049996 is .12340, by way of six digits it would be .12341."""
    scores = {"q": dict.fromkeys(METRICS, 0.1234049996)}
    for rows in (figures(scores), mean_figures({"one": scores, "two": scores})):
        assert "| 0.12340 [" in table([{"task": "x", **rows}])


# ---------------------------------------------------------------------------------------- readers

EXAMPLES = [
    {"id": "0", "query": "why?", "excluded_ids": ["N/A"], "gold_ids": ["a"], "gold_ids_long": ["page"]},
    {"id": "1", "query": "how?", "excluded_ids": ["b"], "gold_ids": ["a", "c"], "gold_ids_long": ["N/A"]},
]
DOCUMENTS = [{"id": "a", "content": "once"}, {"id": "b", "content": " "}, {"id": "a", "content": "twice"}]


def write_jsonl(path: Path, rows: list[dict]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def write_parquet(path: Path, rows: list[dict]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows), path)
    return path


def read_lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_local_files_of_either_kind_and_the_hubs_folders_read_alike(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "x.examples.jsonl", EXAMPLES)
    write_parquet(tmp_path / "x.documents.parquet", DOCUMENTS)
    for part, rows in (("examples", EXAMPLES), ("documents", DOCUMENTS)):
        write_parquet(tmp_path / part / "y-00000-of-00002.parquet", rows[:1])
        write_parquet(tmp_path / part / "y-00001-of-00002.parquet", rows[1:])
    x, y = (local_task(name, tmp_path, tmp_path / "cache") for name in "xy")
    assert [each.excluded_ids for each in x.questions] == [(), ("b",)]
    assert [each.gold_ids for each in x.questions] == [("a",), ("a", "c")]
    assert [(each.id, each.question) for each in x.questions] == [
        (each.id, each.question) for each in y.questions
    ]
    # The last of two documents with one id stands; one without a word is none.
    assert read_lines(x.corpus) == read_lines(y.corpus) == [{"id": "a", "contents": "twice"}]
    assert local_task("x", tmp_path, tmp_path / "cache").corpus == x.corpus


def test_the_long_form_has_its_own_gold_and_documents(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "x.examples.jsonl", EXAMPLES[:1])
    write_jsonl(tmp_path / "x.long_documents.jsonl", [{"id": "page", "content": "all"}])
    task = local_task("x", tmp_path, tmp_path / "cache", long=True)
    assert task.questions[0].gold_ids == ("page",) and read_lines(task.corpus)[0]["id"] == "page"
    write_jsonl(tmp_path / "x.examples.jsonl", EXAMPLES)
    with pytest.raises(DataError, match="x.examples.jsonl:2: x has no long form"):
        local_task("x", tmp_path, tmp_path / "cache", long=True)


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"excluded_ids": ["c"]}, 'x.examples.jsonl:2: \'c\' is in "gold_ids" and in "excluded_ids"'),
        ({"gold_ids": []}, 'x.examples.jsonl:2: "gold_ids" is empty'),
        ({"gold_ids": "a"}, '"gold_ids" must be a list of strings'),
        ({"query": ""}, '"query" must be a non-empty string'),
        ({"id": "0"}, "x.examples.jsonl:2: \"id\" '0' was given already"),
        ({"id": None}, '"id" must be a non-empty string or an integer'),
    ],
)
def test_a_question_that_cannot_be_scored_is_refused(tmp_path: Path, change: dict, complaint: str) -> None:
    write_jsonl(tmp_path / "x.examples.jsonl", [EXAMPLES[0], EXAMPLES[1] | change])
    write_jsonl(tmp_path / "x.documents.jsonl", DOCUMENTS)
    with pytest.raises(DataError, match=complaint):
        local_task("x", tmp_path, tmp_path / "cache")


def test_files_that_are_not_there_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="has neither x.examples.jsonl or .parquet nor examples/x-"):
        local_task("x", tmp_path, tmp_path / "cache")
    with pytest.raises(DataError, match="BRIGHT has no task x; there are: biology, "):
        hub_task("x", tmp_path)


def test_a_task_comes_from_the_hub_once(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with hub_stand_in(monkeypatch, tmp_path / "home") as hub:
        for part, rows in (("examples", EXAMPLES), ("documents", DOCUMENTS)):
            content = write_parquet(tmp_path / "x.parquet", rows).read_bytes()
            hub.add(REPO, f"{part}/pony-00000-of-00001.parquet", content)
        task = hub_task("pony", tmp_path / "cache")
        assert len(hub.ranges) == 2 and len(task.questions) == 2
        assert read_lines(task.corpus) == [{"id": "a", "contents": "twice"}]
        assert hub_task("pony", tmp_path / "cache") == task and len(hub.ranges) == 2
    assert "pony: 2 questions; the published set has 112" in capsys.readouterr().err


def test_the_proxy_task_has_one_gold_answer_a_question(tmp_path: Path, shared_rows: Path) -> None:
    task = local_task("bright_answers", shared_rows, tmp_path)
    assert {len(each.gold_ids) for each in task.questions} == {1}
    assert {each.gold_ids[0] for each in task.questions} <= {row["id"] for row in read_lines(task.corpus)}


# ---------------------------------------------------------------------------------------- requests


def test_a_passage_that_the_server_repeats_counts_where_it_is_best() -> None:
    passages = [Passage(*each) for each in (("a", "", 9.0), ("1", "", 8.0), ("1", "", 7.0), ("a", "", 1.0))]
    assert list(scores_of(passages).items()) == [("a", 9.0), ("1", 8.0)]


def test_a_retriever_that_is_gone_is_one_line() -> None:
    config = config_of("queries=original", "retriever.deadline=0.1")
    query = query_of(QUESTION, ["text"], config_of("queries=f"))
    with pytest.raises(
        EvaluationError, match="the retriever failed: http://127.0.0.1:9/search: .* run again"
    ):
        asyncio.run(retrieve_all("http://127.0.0.1:9", [query], config))


# ------------------------------------------------------------------------------- texts and settings

QUESTION = RewritingTask("1", "why?", (), ("a",), (), "x")


def config_of(*words: str):
    return read_bright_config(compose_bright([*words], None))


def test_a_trained_query_reasoner_is_asked_as_it_was_trained(tmp_path: Path) -> None:
    (tmp_path / "policy").mkdir()
    (tmp_path / "config.yaml").write_text(
        "research: {prompt: rqr, limits: {searches: 0}, retriever: {url: x}, protocol: {},\n"
        "  rewriting: {think: true}}\n"
        "data: {max_response_length: 64}\n"
        "actor_rollout_ref: {rollout: {dtype: float32, max_model_len: 256}}\n"
    )
    policy = str(tmp_path / "policy")
    read = read_bright_config(compose_bright([f"engine.model={policy}"], policy))
    assert (read.rewriting.prompt, read.rewriting.thinks, read.rewriting.tokens) == ("rqr", True, 64)
    assert (read.engine.dtype, read.engine.max_model_len) == ("float32", 256)
    read = read_bright_config(compose_bright([f"engine.model={policy}", "rewriting.tokens=9"], policy))
    assert read.rewriting.tokens == 9


def test_modes_keep_the_question_by_weight() -> None:
    texts = ["because", "so"]
    assert query_of(QUESTION, texts, config_of("queries=f")).texts == ("because", "so")
    joined = query_of(QUESTION, texts, config_of("queries=f", "mode=concatenate", "weight=2"))
    assert joined.texts == ("why?\nwhy?\nbecause", "why?\nwhy?\nso") and joined.weights == (1, 1)
    beside = query_of(QUESTION, texts, config_of("queries=f", "mode=fuse", "weight=3"))
    assert beside.texts == ("why?", "because", "so") and beside.weights == (3, 1, 1)
    for mode in ("replace", "concatenate", "fuse"):
        assert query_of(QUESTION, [], config_of("queries=f", f"mode={mode}")).texts == ()


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        ((), "give either --queries or --model"),
        (("queries=f", "engine.model=m"), "give either --queries or --model"),
        (("queries=original", "mode=fuse"), "mode=fuse needs other texts"),
        (("queries=f", "mode=concatenate", "weight=2", "retriever.kind=dense:minilm"), "take mode=fuse"),
        (("queries=f", "retriever.kind=dense"), "kind is 'dense'; there are: bm25, "),
        (("queries=f", "fusion=max"), "fusion is 'max'; there are: sum, rrf"),
        (("queries=f", "fusions=rrf"), "fusions"),
        (("queries=f", "rewriting.prompt=none"), "no prompt is called 'none'"),
    ],
)
def test_settings_without_meaning_are_refused(words: tuple[str, ...], complaint: str) -> None:
    with pytest.raises(EvaluationError, match=complaint):
        config_of(*words)


def test_texts_are_found_by_task_and_id(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "x.examples.jsonl", EXAMPLES)
    write_jsonl(tmp_path / "x.documents.jsonl", DOCUMENTS)
    task = local_task("x", tmp_path, tmp_path)
    rows = [{"id": "x_0", "query": "named"}, {"id": 1, "task": "x", "queries": ["one", "two"]}]
    path = write_jsonl(tmp_path / "texts.jsonl", rows)
    assert texts_for(task, read_texts(path, None), alone=False) == {"0": ("named",), "1": ("one", "two")}
    path = write_jsonl(tmp_path / "texts.jsonl", [{"id": "0", "rewrite_7b": "bare"}])
    assert texts_for(task, read_texts(path, "rewrite_7b"), alone=True) == {"0": ("bare",)}
    assert texts_for(task, read_texts(path, "rewrite_7b"), alone=False) == {}
    with pytest.raises(EvaluationError, match="texts.jsonl:1: .* --field; there are: rewrite_7b"):
        read_texts(path, None)


def test_published_figures_stand_beside_those_of_the_same_retriever_alone() -> None:
    def row(task: str, value: float) -> dict:
        return {
            "task": task,
            "questions": SIZES[task][0],
            "passages": SIZES[task][1],
            "ndcg@10": {"mean": value},
        }

    weighted = config_of("queries=original").retriever
    shown = published.comparison([row("biology", 0.2), row("pony", 0.1)], weighted, False)
    lines = [line.split() for line in shown.splitlines()]
    assert lines[2] == ["|", "ours", "|", "20.0", "|", "10.0", "|", "15.0", "|"]
    assert lines[3] == ["|", "original", "|", "18.9", "|", "7.9", "|", "13.4", "|"] and len(lines) == 9
    assert "Not comparable" not in shown
    half = row("biology", 0.2) | {"questions": 54}
    assert "Not comparable, because the questions differ: biology 54 of 103." in published.comparison(
        [half], weighted, False
    )
    plain = config_of("queries=original", "retriever.kind=bm25").retriever
    assert "No published figures to compare with" in published.comparison([half], plain, False)
    assert published.comparison([], weighted, False) == ""
    means = {name: sum(values) / 12 for name, values in published.BM25.items()}
    assert means["original"] == pytest.approx(14.5, abs=0.05) and means["RQR-7B"] == pytest.approx(
        27.9, abs=0.05
    )
