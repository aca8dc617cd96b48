"""Pipeline: queries to rows of the corpus through the stages encode, search and perhaps rerank, each query as
seldom as possible.

A query that was answered lately comes from the cache; one equal to another in flight waits for that one's
rows; one whose text was encoded lately, for another number of rows, is only searched. What is left is encoded
and searched in batches. The queue is bounded: a request that finds it full is told to come back.
"""

import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any, NamedTuple, TypeVar

import numpy as np

from retriever_server.errors import Closed, Unavailable
from retriever_server.indexes import Index, Queries
from retriever_server.models.encoder import Encoder
from retriever_server.serving.batcher import Batcher
from retriever_server.serving.cache import Cache
from retriever_server.serving.metrics import Metrics

ENCODE_BATCH, SEARCH_BATCH, RERANK_BATCH = 32, 256, 8
WINDOW_S = 0.02
MEBIBYTE = 1 << 20
Job = TypeVar("Job")


@dataclass(frozen=True)
class Limits:
    """`cache_mib` bounds the answers and vectors kept, 0 keeps none; `max_queue` the queries in flight;
    `answer_s` the seconds that a caller waits for its answers.
    """

    cache_mib: int = 64
    max_queue: int = 1024
    answer_s: float = 300.0


class Found(NamedTuple):
    """The rows of the corpus found for one query, int64 [k], and their scores, float64 [k], best first."""

    rows: np.ndarray
    scores: np.ndarray


Rerank = Callable[[list[str], list[Found]], list[Found]]
"""Texts, and what was found for each, to the same rows in another order with other scores."""


class Question(NamedTuple):
    """A query, and how many rows it wants."""

    text: str
    depth: int


@dataclass(eq=False)
class _Ticket:
    """A question in flight; `vector` is None until it is encoded, and always without an encoder; `found` is
    None until it is searched.
    """

    question: Question
    vector: np.ndarray | None = None
    found: Found | None = None
    answer: Future[Found] = field(default_factory=Future)


@dataclass
class _Work:
    """What a request leaves for the stages, and how many of its queries took which path."""

    texts: list[str] = field(default_factory=list)
    tickets: list[_Ticket] = field(default_factory=list)
    paths: Counter[str] = field(default_factory=Counter)


class Pipeline:
    """The stages over one index. Safe from any thread."""

    def __init__(
        self,
        index: Index,
        encoder: Encoder | None,
        limits: Limits,
        metrics: Metrics,
        rerank: Rerank | None = None,
    ) -> None:
        """With `rerank` there is a third stage."""
        self._rerank_found = rerank
        self._index, self._encoder, self._limits, self._metrics = index, encoder, limits, metrics
        self._lock = threading.Lock()  # of what follows
        self._cache = Cache(limits.cache_mib * MEBIBYTE)
        self._in_flight: dict[Question, _Ticket] = {}
        self._unencoded: dict[str, list[_Ticket]] = {}
        self._closed = False
        self._encoding = self._stage("encode", self._encode, self._fail_texts, ENCODE_BATCH)
        self._searching = self._stage("search", self._search, self._fail, SEARCH_BATCH)
        self._reranking = self._stage("rerank", self._rerank, self._fail, RERANK_BATCH) if rerank else None

    def _stage(
        self,
        name: str,
        work: Callable[[list[Job]], None],
        fail: Callable[[list[Job], Exception], None],
        max_batch: int,
    ) -> Batcher[Job]:
        observe = self._metrics.batch(name)
        return Batcher(name, work, fail, max_batch=max_batch, window_s=WINDOW_S, observe=observe)

    def ask(self, questions: Sequence[Question]) -> list[Future[Found]]:
        """A future for each question. All of them are taken, or none.

        Raises Unavailable when work is needed and the queue is full, Closed after close(). A future raises
        what encoding or searching raised, Closed when close() did not wait long enough for it.
        """
        work = _Work()
        with self._lock:  # a stage's thread that wants it holds nothing that submit() waits for
            if self._closed:
                raise Closed
            full = len(self._in_flight) >= self._limits.max_queue
            answers = [self._answer(question, work, full) for question in questions]
            if work.texts:
                self._encoding.submit(work.texts)
            if work.tickets:
                self._searching.submit(work.tickets)
        for path, count in work.paths.items():
            self._metrics.queries(path, count)
        return answers

    def close(self, timeout_s: float) -> None:
        """Take no more questions, answer those in flight, end the stages; waits at most `timeout_s` for
        each.
        """
        with self._lock:
            self._closed = True
        for stage in self._stages:
            stage.close(timeout_s)

    @property
    def _stages(self) -> list[Batcher[Any]]:
        stages: list[Batcher[Any] | None] = [self._encoding, self._searching, self._reranking]
        return [stage for stage in stages if stage is not None]

    @property
    def in_flight(self) -> int:
        """Different questions without an answer yet."""
        return len(self._in_flight)

    @property
    def cached_bytes(self) -> int:
        """What the cache takes."""
        return self._cache.bytes

    def _answer(self, question: Question, work: "_Work", full: bool) -> Future[Found]:
        found = self._cache.get(question)
        if found is not None:
            work.paths["cached"] += 1
            answer: Future[Found] = Future()
            answer.set_result(found)
            return answer
        ticket = self._in_flight.get(question)
        if ticket is not None:
            work.paths["joined"] += 1
            return ticket.answer
        if full:
            wait_s = sum(stage.expected_wait_s() for stage in self._stages)
            raise Unavailable(f"{len(self._in_flight)} queries wait already", wait_s)
        ticket = self._in_flight[question] = _Ticket(question)
        self._start(ticket, work)
        return ticket.answer

    def _start(self, ticket: _Ticket, work: "_Work") -> None:
        text = ticket.question.text
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
            texts = [text for text in texts if text in self._unencoded]  # a second attempt has the others
        ready: dict[str, np.ndarray] = {}
        began = time.monotonic()
        try:
            for places, vectors in self._encoder.encode_in_parts(texts):
                # Copies: the cache must not keep the whole batch for one of its rows.
                copies = [vector.copy() for vector in vectors]
                ready |= zip((texts[place] for place in places), copies, strict=True)
                # A part goes on at once, to be searched and answered while the next is encoded; but where a
                # search takes longer than that, one for all parts is worth the wait.
                if self._searching.expected_wait_s() <= time.monotonic() - began:
                    self._pass_on(ready)
                    ready, began = {}, time.monotonic()
        finally:  # a part that raises does not hold up those before it
            self._pass_on(ready)

    def _pass_on(self, ready: dict[str, np.ndarray]) -> None:
        """Have the tickets of these texts searched by the vectors; they leave this stage once the next has
        them.
        """
        with self._lock:
            tickets = [ticket for text in ready for ticket in self._unencoded[text]]
            for ticket in tickets:
                ticket.vector = ready[ticket.question.text]
            self._searching.submit(tickets)
            for text, vector in ready.items():
                self._cache.put(text, vector, vector.nbytes + sys.getsizeof(text))
                del self._unencoded[text]

    def _search(self, tickets: list[_Ticket]) -> None:
        # By depth: an index may find other rows when it is asked for more, and each caller is to get what it
        # would have got alone.
        ordered = sorted(tickets, key=lambda ticket: ticket.question.depth)
        groups = [list(group) for _, group in groupby(ordered, key=lambda ticket: ticket.question.depth)]
        found = [entry for group in groups for entry in self._search_group(group)]
        for ticket, entry in zip(ordered, found, strict=True):
            ticket.found = entry
        if self._reranking is not None:
            self._reranking.submit(ordered)
        else:
            self._finish(ordered, found)

    def _rerank(self, tickets: list[_Ticket]) -> None:
        assert self._rerank_found is not None
        texts = [ticket.question.text for ticket in tickets]
        found = [ticket.found for ticket in tickets]
        self._finish(tickets, self._rerank_found(texts, found))  # type: ignore[arg-type]

    def _finish(self, tickets: list[_Ticket], found: list[Found]) -> None:
        answers = list(zip(tickets, found, strict=True))
        if not all(
            np.isfinite(entry.scores).all() for entry in found
        ):  # JSON has no NaN, and it orders nothing
            raise ValueError("a score is not a finite number")
        with self._lock:
            for ticket, entry in answers:
                size = entry.rows.nbytes + entry.scores.nbytes + sys.getsizeof(ticket.question.text)
                self._cache.put(ticket.question, entry, size)
                self._in_flight.pop(ticket.question, None)
        for ticket, entry in answers:
            if not ticket.answer.done():
                ticket.answer.set_result(entry)

    def _search_group(self, tickets: list[_Ticket]) -> list[Found]:
        texts = [ticket.question.text for ticket in tickets]
        vectors = np.stack([ticket.vector for ticket in tickets]) if self._encoder else None  # type: ignore[misc]
        scores, rows = self._index.search(Queries(texts, vectors), tickets[0].question.depth)
        real = rows >= 0
        return [Found(rows[i][real[i]], scores[i][real[i]]) for i in range(len(tickets))]  # copies

    def _fail_texts(self, texts: list[str], error: Exception) -> None:
        with self._lock:
            tickets = [ticket for text in texts for ticket in self._unencoded.pop(text, ())]
        self._fail(tickets, error)

    def _fail(self, tickets: list[_Ticket], error: Exception) -> None:
        with self._lock:
            for ticket in tickets:
                self._in_flight.pop(ticket.question, None)
        for ticket in tickets:
            if not ticket.answer.done():
                ticket.answer.set_exception(error)
