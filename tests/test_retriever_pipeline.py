"""The stages between a request and its rows: batches, equal queries, cache, bounds, errors. Encoder and index
are stand-ins that record what they are asked and can be held back.
"""

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import numpy as np
import pytest

from retriever_server.errors import Closed, Unavailable
from retriever_server.indexes import Queries
from retriever_server.serving.batcher import Batcher
from retriever_server.serving.cache import ENTRY_BYTES, Cache
from retriever_server.serving.metrics import ServiceMetrics
from retriever_server.serving.pipeline import Lookup, Pipeline, RankedRows, RerankRows, ServingLimits

DEADLINE_S = 60


class Gate:
    """Open, unless it is held: then who passes waits."""

    def __init__(self) -> None:
        self._open = threading.Event()
        self._open.set()
        self.reached = threading.Event()

    def pass_through(self) -> None:
        self.reached.set()
        assert self._open.wait(DEADLINE_S)

    @contextmanager
    def held(self) -> Iterator[None]:
        self._open.clear()
        self.reached.clear()
        try:
            yield
        finally:
            self._open.set()


class FakeEncoder(Gate):
    """A text that is a number becomes that number; "bad ..." raises."""

    def __init__(self) -> None:
        super().__init__()
        self.texts: list[str] = []

    def encode_in_parts(self, texts: list[str]) -> Iterator[tuple[list[int], np.ndarray]]:
        self.pass_through()
        self.texts += texts
        for place, text in enumerate(texts):
            if text.startswith("bad"):
                raise ValueError(text)
            yield [place], np.array([[float(text)]], dtype=np.float32)


class Panic(BaseException):
    """What a panic of a Rust library, such as tokenizers, arrives as."""


class FakeIndex(Gate):
    """Finds the rows n, n + 1, ... for the number n."""

    def __init__(self) -> None:
        super().__init__()
        self.batches: list[tuple[int, int]] = []  # queries, top_k
        self.error: BaseException | None = None
        self.seconds = 0.0

    def search(self, queries: Queries, top_k: int) -> tuple[np.ndarray, np.ndarray]:
        self.pass_through()
        self.batches.append((len(queries.texts), top_k))
        time.sleep(self.seconds)
        if self.error:
            raise self.error
        first = np.array([float(text) for text in queries.texts])
        if queries.vectors is not None:
            assert (queries.vectors[:, 0] == first).all(), "vectors of other texts"
        rows = first.astype(np.int64)[:, None] + np.arange(top_k)
        return -np.arange(top_k, dtype=float) * np.ones((len(rows), 1)), rows


@contextmanager
def pipeline(
    limits: ServingLimits = ServingLimits(),  # noqa: B008
    metrics: ServiceMetrics | None = None,
    dense: bool = True,
    rerank: RerankRows | None = None,
) -> Iterator[tuple[Pipeline, FakeEncoder, FakeIndex]]:
    encoder, index = FakeEncoder(), FakeIndex()
    made = Pipeline(index, encoder if dense else None, limits, metrics or ServiceMetrics(), rerank)
    try:
        yield made, encoder, index
    finally:
        made.close(DEADLINE_S)


def rows(made: Pipeline, *asked: tuple[str, int]) -> list[list[int]]:
    answers = made.submit([Lookup(*question) for question in asked])
    return [answer.result(DEADLINE_S).rows.tolist() for answer in answers]


def test_each_of_many_callers_gets_its_own_answer() -> None:
    with pipeline() as (made, encoder, index), ThreadPoolExecutor(64) as callers:

        def ask(number: int) -> bool:
            depth = 1 + number % 3
            return rows(made, (str(number % 200), depth)) == [[number % 200 + i for i in range(depth)]]

        assert all(callers.map(ask, range(2000)))
        assert len(encoder.texts) == 200, "a text was encoded more than once"
        assert all(count <= 64 * 4 for count, _ in index.batches)


def test_what_waits_while_a_batch_is_encoded_goes_together() -> None:
    with pipeline() as (made, encoder, index):
        with encoder.held():
            first = made.submit([Lookup("0", 1)])
            assert encoder.reached.wait(DEADLINE_S)
            rest = made.submit([Lookup(str(number), 1) for number in range(1, 40)])
        assert [answer.result(DEADLINE_S).rows.tolist() for answer in first + rest] == [
            [n] for n in range(40)
        ]
        assert encoder.texts == [str(number) for number in range(40)]


def test_encoding_goes_on_while_the_index_is_busy() -> None:
    with pipeline() as (made, encoder, index), index.held():
        waiting = made.submit([Lookup("1", 1)])
        assert index.reached.wait(DEADLINE_S)
        encoder.reached.clear()
        waiting += made.submit([Lookup("2", 1)])
        assert encoder.reached.wait(DEADLINE_S), (
            "the second query was not encoded while the first was searched"
        )
        assert not any(answer.done() for answer in waiting)


def test_equal_questions_in_flight_are_searched_once_and_equal_texts_encoded_once() -> None:
    with pipeline() as (made, encoder, index):
        with encoder.held():
            answers = made.submit([Lookup("7", 2), Lookup("7", 2), Lookup("7", 3)])
            answers += made.submit([Lookup("7", 2)])
            assert answers[0] is answers[1] is answers[3]
        assert [len(answer.result(DEADLINE_S).rows) for answer in answers] == [2, 2, 3, 2]
        assert encoder.texts == ["7"] and sorted(index.batches) == [(1, 2), (1, 3)]


def test_a_text_that_was_encoded_lately_is_only_searched() -> None:
    with pipeline() as (made, encoder, index):
        assert rows(made, ("7", 2)) + rows(made, ("7", 3)) == [[7, 8], [7, 8, 9]]
        assert encoder.texts == ["7"] and len(index.batches) == 2
        assert rows(made, ("7", 2)) == [[7, 8]] and len(index.batches) == 2


def test_without_a_cache_everything_is_done_anew() -> None:
    with pipeline(ServingLimits(cache_mib=0)) as (made, encoder, index):
        assert rows(made, ("7", 2)) == rows(made, ("7", 2)) == [[7, 8]]
        assert encoder.texts == ["7", "7"] and made.cached_bytes == 0


def test_kinds_without_an_encoder_are_searched_at_once() -> None:
    with pipeline(dense=False) as (made, encoder, index):
        assert rows(made, ("3", 1), ("4", 2)) == [[3], [4, 5]]
        assert encoder.texts == []


def test_a_full_queue_refuses_new_work_but_not_what_is_known() -> None:
    with pipeline(ServingLimits(max_queue=2)) as (made, encoder, index):
        assert rows(made, ("9", 1)) == [[9]]
        with encoder.held():
            first = made.submit([Lookup("1", 1), Lookup("2", 1), Lookup("3", 1)])  # the queue was empty
            with pytest.raises(Unavailable) as refused:
                made.submit([Lookup("9", 1), Lookup("4", 1)])
            assert refused.value.retry_after_s >= 0 and made.in_flight == 3
            known = made.submit([Lookup("1", 1), Lookup("9", 1)])
        assert [answer.result(DEADLINE_S).rows[0] for answer in first + known] == [1, 2, 3, 1, 9]
        assert rows(made, ("4", 1)) == [[4]] and made.in_flight == 0


def test_one_bad_text_does_not_spoil_the_others() -> None:
    with pipeline() as (made, encoder, index):
        with encoder.held():
            first = made.submit([Lookup("0", 1)])
            assert encoder.reached.wait(DEADLINE_S)
            good, bad, other = made.submit([Lookup("1", 1), Lookup("bad text", 1), Lookup("2", 1)])
        assert first[0].result(DEADLINE_S).rows.tolist() == [0]
        assert [good.result(DEADLINE_S).rows[0], other.result(DEADLINE_S).rows[0]] == [1, 2]
        with pytest.raises(ValueError, match="bad text"):
            bad.result(DEADLINE_S)
        with pytest.raises(ValueError, match="bad text"):  # an error is not remembered as an answer
            rows(made, ("bad text", 1))
        assert made.in_flight == 0 and encoder.texts.count("bad text") >= 2


@pytest.mark.parametrize("cache_mib", [0, 64])
def test_a_part_that_is_not_encoded_costs_the_parts_before_it_nothing(cache_mib: int) -> None:
    with pipeline(ServingLimits(cache_mib=cache_mib)) as (made, encoder, index):
        index.seconds = 0.1  # searching takes longer than encoding: parts wait for each other
        rows(made, ("0", 1))
        with encoder.held():
            made.submit([Lookup("9", 1)])
            assert encoder.reached.wait(DEADLINE_S)
            first, bad, last = made.submit([Lookup(text, 1) for text in ("1", "bad part", "2")])
        assert first.result(DEADLINE_S).rows.tolist() == [1]
        assert last.result(DEADLINE_S).rows.tolist() == [2]
        with pytest.raises(ValueError, match="bad part"):
            bad.result(DEADLINE_S)
        assert made.in_flight == 0 and encoder.texts.count("1") == 1
        assert rows(made, ("1", 1), ("2", 3)) == [[1], [2, 3, 4]]


def test_a_panic_ends_in_an_answer_and_the_stage_goes_on() -> None:
    with pipeline() as (made, encoder, index):
        index.error = Panic("index out of bounds")
        [answer] = made.submit([Lookup("1", 1)])
        with pytest.raises(RuntimeError, match="Panic: index out of bounds"):
            answer.result(DEADLINE_S)
        index.error = None
        assert rows(made, ("1", 1)) == [[1]]


def test_a_reranker_that_loses_rows_or_gives_no_number_fails_its_own_queries_alone() -> None:
    def broken(texts: list[str], found: list[RankedRows]) -> list[RankedRows]:
        entries = dict(zip(texts, found, strict=True))
        entries.pop("8", None)
        if "7" in entries:
            entries["7"] = RankedRows(entries["7"].rows, np.array([np.nan, 0.0]))
        return list(entries.values())

    with pipeline(rerank=broken) as (made, encoder, index):
        with encoder.held():
            answers = made.submit([Lookup(text, 2) for text in ("6", "7", "8", "9")])
        for answer, complaint in ((answers[1], "not a finite number"), (answers[2], "shorter")):
            with pytest.raises(ValueError, match=complaint):
                answer.result(DEADLINE_S)
        assert [answers[i].result(DEADLINE_S).rows.tolist() for i in (0, 3)] == [[6, 7], [9, 10]]
        assert made.in_flight == 0


def test_what_is_still_encoded_when_the_stages_end_is_told_so() -> None:
    with pipeline() as (made, encoder, index):
        with encoder.held():
            [answer] = made.submit([Lookup("1", 1)])
            assert encoder.reached.wait(DEADLINE_S)
            made.close(0.01)
        with pytest.raises(Closed):
            answer.result(DEADLINE_S)


def test_an_index_that_is_away_tells_the_whole_batch_at_once() -> None:
    with pipeline() as (made, encoder, index):
        index.error = Unavailable("shard 2 is away", retry_after_s=3)
        answers = made.submit([Lookup(str(number), 1) for number in range(8)])
        for answer in answers:
            with pytest.raises(Unavailable, match="shard 2"):
                answer.result(DEADLINE_S)
        assert len(index.batches) <= 8
        index.error = None
        assert rows(made, ("1", 1)) == [[1]]


def test_after_close_what_waits_is_answered_and_nothing_more_is_taken() -> None:
    with pipeline() as (made, encoder, index):
        with encoder.held():
            answers = made.submit([Lookup("1", 1), Lookup("2", 1)])
            closing = threading.Thread(target=made.close, args=(DEADLINE_S,))
            closing.start()
        closing.join(DEADLINE_S)
        assert [answer.result(DEADLINE_S).rows[0] for answer in answers] == [1, 2]
        with pytest.raises(Closed):
            made.submit([Lookup("3", 1)])


def test_metrics_add_up() -> None:
    metrics = ServiceMetrics()
    with pipeline(metrics=metrics) as (made, encoder, index):
        rows(made, ("1", 1), ("1", 1), ("2", 1))  # two encoded, one joined
        rows(made, ("1", 1), ("1", 2))  # one cached, one only searched
    lines = metrics.text().decode().splitlines()
    for path, count in {"encoded": 2, "joined": 1, "cached": 1, "searched": 1}.items():
        assert f'retriever_queries_total{{path="{path}"}} {count}.0' in lines
    assert 'retriever_batch_size_sum{stage="encode"} 2.0' in lines
    assert 'retriever_batch_size_sum{stage="search"} 3.0' in lines


def test_what_was_found_is_reranked_once() -> None:
    batches: list[list[str]] = []

    def backwards(texts: list[str], found: list[RankedRows]) -> list[RankedRows]:
        batches.append(texts)
        return [RankedRows(entry.rows[::-1], entry.scores[::-1] + 100) for entry in found]

    with pipeline(rerank=backwards) as (made, encoder, index):
        assert rows(made, ("7", 3), ("1", 2), ("7", 3)) == [[9, 8, 7], [2, 1], [9, 8, 7]]
        assert rows(made, ("7", 3)) == [[9, 8, 7]] and sorted(sum(batches, [])) == ["1", "7"]


def test_cache_is_bounded_and_forgets_the_least_recently_used() -> None:
    cache = Cache(3 * (ENTRY_BYTES + 100))
    for key in "abc":
        cache.put(key, key.upper(), 100)
    assert cache.get("a") == "A"
    cache.put("d", "D", 100)
    assert [cache.get(key) for key in "abcd"] == ["A", None, "C", "D"]
    cache.put("a", "again", 50)
    assert len(cache) == 3 and cache.bytes == 3 * ENTRY_BYTES + 250
    cache.put("large", "x", 10_000)
    assert cache.get("large") is None and len(cache) == 3


def test_batcher_tells_sizes_and_ends_when_closed() -> None:
    seen: list[int] = []
    done: list[int] = []
    batcher: Batcher[int] = Batcher(
        "test",
        done.extend,
        lambda jobs, error: None,
        max_batch=4,
        window_s=0.01,
        observe=lambda jobs, seconds, waited_s: seen.append(jobs),
    )
    batcher.submit(list(range(10)))
    batcher.close(DEADLINE_S)
    assert done == list(range(10)) and seen == [4, 4, 2]
    with pytest.raises(Closed):
        batcher.submit([1])
