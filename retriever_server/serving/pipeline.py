"""Pipeline: queries to rows of the corpus through the stages encode, search and perhaps rerank.

Each query costs as little as possible: one that was answered recently comes from the cache; one equal to
another in flight waits for that one's rows; one whose text was encoded recently, for another number of rows,
is only searched. The rest is encoded and searched in batches. The queue is bounded: a request that finds it
full has to be retried.
"""

import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from functools import partial
from itertools import groupby
from operator import attrgetter
from typing import Any, NamedTuple, TypeVar

import numpy as np

from retriever_server.errors import Closed, Unavailable
from retriever_server.indexes import Index, Queries
from retriever_server.models.encoder import Encoder
from retriever_server.serving.batcher import Batcher
from retriever_server.serving.cache import Cache
from retriever_server.serving.metrics import ServiceMetrics

ENCODE_BATCH, SEARCH_BATCH, RERANK_BATCH = 32, 256, 8
WINDOW_S = 0.02
MEBIBYTE = 1 << 20
Job = TypeVar("Job")


@dataclass(frozen=True)
class ServingLimits:
    """The cache's size (0: none), different queries in flight, seconds a caller waits for answers."""

    cache_mib: int = 64
    max_queue: int = 1024
    answer_s: float = 300.0


class RankedRows(NamedTuple):
    """Rows of the corpus for one query, int64 [k], and their scores, float64 [k], best first."""

    rows: np.ndarray
    scores: np.ndarray


RerankRows = Callable[[list[str], list[RankedRows]], list[RankedRows]]
"""From queries and their rows to the same rows in another order with other scores."""


class Lookup(NamedTuple):
    """A query's text, and how many rows it wants."""

    text: str
    depth: int


@dataclass(eq=False)
class _Ticket:
    """A lookup in flight; `vector` is None until (and unless) encoded, `ranked` until searched."""

    lookup: Lookup
    vector: np.ndarray | None = None
    ranked: RankedRows | None = None
    answer: Future[RankedRows] = field(default_factory=Future)


@dataclass
class _Work:
    """The work that a request leaves to the stages, and how many of its queries took each path."""

    texts: list[str] = field(default_factory=list)
    tickets: list[_Ticket] = field(default_factory=list)
    paths: Counter[str] = field(default_factory=Counter)


class Pipeline:
    """The stages over one index. Thread-safe."""

    def __init__(
        self,
        index: Index,
        encoder: Encoder | None,
        limits: ServingLimits,
        metrics: ServiceMetrics,
        rerank_rows: RerankRows | None = None,
    ) -> None:
        """Start the stages; the third one only with `rerank_rows`."""
        self._rerank_rows = rerank_rows
        self._index, self._encoder, self._limits, self._metrics = index, encoder, limits, metrics
        self._lock = threading.Lock()  # guards what follows
        self._cache = Cache(limits.cache_mib * MEBIBYTE)
        self._in_flight: dict[Lookup, _Ticket] = {}
        self._unencoded: dict[str, list[_Ticket]] = {}
        self._closed = False
        self._encoding = self._stage("encode", self._encode, self._fail_texts, ENCODE_BATCH)
        self._searching = self._stage("search", self._search, self._fail, SEARCH_BATCH)
        self._stages: list[Batcher[Any]] = [self._encoding, self._searching]
        if rerank_rows:
            self._reranking = self._stage("rerank", self._rerank, self._fail, RERANK_BATCH)
            self._stages.append(self._reranking)

    def _stage(
        self,
        name: str,
        work: Callable[[list[Job]], None],
        fail: Callable[[list[Job], Exception], None],
        max_batch: int,
    ) -> Batcher[Job]:
        observe = partial(self._metrics.batch, name)
        return Batcher(name, work, fail, max_batch=max_batch, window_s=WINDOW_S, observe=observe)

    def submit(self, lookups: Sequence[Lookup]) -> list[Future[RankedRows]]:
        """A future per lookup. All of them are accepted, or none.

        Raises Unavailable when work is needed and the queue is full, Closed after close(). A future raises
        what encoding or searching raised, or Closed when close() did not wait long enough for it.
        """
        work = _Work()
        with self._lock:  # a stage's thread that waits for it holds nothing that submit() needs
            if self._closed:
                raise Closed
            full = len(self._in_flight) >= self._limits.max_queue
            answers = [self._answer(lookup, work, full) for lookup in lookups]
            if work.texts:
                self._encoding.submit(work.texts)
            if work.tickets:
                self._searching.submit(work.tickets)
        for path, count in work.paths.items():
            self._metrics.queries.labels(path).inc(count)
        return answers

    def close(self, timeout_s: float) -> None:
        """Accept no more lookups, answer those in flight, end the stages within `timeout_s` each."""
        with self._lock:
            self._closed = True
        for stage in self._stages:
            stage.close(timeout_s)

    @property
    def in_flight(self) -> int:
        """Different lookups without an answer yet."""
        return len(self._in_flight)

    @property
    def cached_bytes(self) -> int:
        """Size of the cache."""
        return self._cache.bytes

    def _answer(self, lookup: Lookup, work: _Work, full: bool) -> Future[RankedRows]:
        ranked = self._cache.get(lookup)
        if ranked is not None:
            work.paths["cached"] += 1
            answer: Future[RankedRows] = Future()
            answer.set_result(ranked)
            return answer
        ticket = self._in_flight.get(lookup)
        if ticket is not None:
            work.paths["joined"] += 1
            return ticket.answer
        if full:
            wait_s = sum(stage.expected_wait_s() for stage in self._stages)
            raise Unavailable(f"{len(self._in_flight)} queries are already waiting", wait_s)
        ticket = self._in_flight[lookup] = _Ticket(lookup)
        self._start(ticket, work)
        return ticket.answer

    def _start(self, ticket: _Ticket, work: _Work) -> None:
        text = ticket.lookup.text
        ticket.vector = self._cache.get(text)
        if self._encoder is None or ticket.vector is not None:
            work.tickets.append(ticket)
        elif text in self._unencoded:
            self._unencoded[text].append(ticket)
        else:
            self._unencoded[text] = [ticket]
            work.texts.append(text)
            work.paths["encoded"] += 1
            return
        work.paths["searched"] += 1

    def _encode(self, texts: list[str]) -> None:
        assert self._encoder is not None
        with self._lock:
            texts = [text for text in texts if text in self._unencoded]  # on a retry, only those left
        ready: dict[str, np.ndarray] = {}
        began = time.monotonic()
        try:
            for places, vectors in self._encoder.encode_in_parts(texts):
                # Copies: the cache must not keep the whole batch for one of its rows.
                copies = [vector.copy() for vector in vectors]
                ready |= zip((texts[place] for place in places), copies, strict=True)
                # A part is passed on at once, to be searched and answered while the next is encoded; but
                # where a search takes longer than that, one for all parts is worth the wait.
                if self._searching.expected_wait_s() <= time.monotonic() - began:
                    self._pass_on(ready)
                    ready, began = {}, time.monotonic()
        finally:  # a part that raises does not hold up those before it
            self._pass_on(ready)

    def _pass_on(self, ready: dict[str, np.ndarray]) -> None:
        """Have these texts' tickets searched; they leave the encode stage once the search stage has them."""
        with self._lock:
            tickets = [ticket for text in ready for ticket in self._unencoded[text]]
            for ticket in tickets:
                ticket.vector = ready[ticket.lookup.text]
            self._searching.submit(tickets)
            for text, vector in ready.items():
                self._cache.put(text, vector, vector.nbytes + sys.getsizeof(text))
                del self._unencoded[text]

    def _search(self, tickets: list[_Ticket]) -> None:
        # By depth: an index may find other rows when more are wanted, and each caller is to get what it would
        # have got alone.
        by_depth = attrgetter("lookup.depth")
        ordered = sorted(tickets, key=by_depth)
        results: list[RankedRows] = []
        for _, group in groupby(ordered, key=by_depth):
            results += self._ranked(list(group))
        for ticket, ranked in zip(ordered, results, strict=True):
            ticket.ranked = ranked
        if self._rerank_rows is not None:
            self._reranking.submit(ordered)
        else:
            self._finish(ordered, results)

    def _ranked(self, tickets: list[_Ticket]) -> list[RankedRows]:
        """The rows of tickets of one depth."""
        texts = [ticket.lookup.text for ticket in tickets]
        vectors = np.stack([ticket.vector for ticket in tickets]) if self._encoder else None  # type: ignore[misc]
        scores, rows = self._index.search(Queries(texts, vectors), tickets[0].lookup.depth)
        real = rows >= 0
        return [RankedRows(rows[i][real[i]], scores[i][real[i]]) for i in range(len(tickets))]  # copies

    def _rerank(self, tickets: list[_Ticket]) -> None:
        assert self._rerank_rows is not None
        texts = [ticket.lookup.text for ticket in tickets]
        ranked = [ticket.ranked for ticket in tickets]
        self._finish(tickets, self._rerank_rows(texts, ranked))  # type: ignore[arg-type]

    def _finish(self, tickets: list[_Ticket], results: list[RankedRows]) -> None:
        answers = list(zip(tickets, results, strict=True))
        # JSON has no NaN, nor has an order.
        if not all(np.isfinite(ranked.scores).all() for ranked in results):
            raise ValueError("a score is not a finite number")
        with self._lock:
            for ticket, ranked in answers:
                size = ranked.rows.nbytes + ranked.scores.nbytes + sys.getsizeof(ticket.lookup.text)
                self._cache.put(ticket.lookup, ranked, size)
                self._in_flight.pop(ticket.lookup, None)
        for ticket, ranked in answers:
            if not ticket.answer.done():
                ticket.answer.set_result(ranked)

    def _fail_texts(self, texts: list[str], error: Exception) -> None:
        with self._lock:
            tickets = [ticket for text in texts for ticket in self._unencoded.pop(text, ())]
        self._fail(tickets, error)

    def _fail(self, tickets: list[_Ticket], error: Exception) -> None:
        with self._lock:
            for ticket in tickets:
                self._in_flight.pop(ticket.lookup, None)
        for ticket in tickets:
            if not ticket.answer.done():
                ticket.answer.set_exception(error)
