"""Shard: one slice of an index on several actors, any of which can answer.

A query goes to the actor with the fewest in flight, and among equals to the one idle longest. An actor that
failed is chosen last for a while, because Ray needs seconds to restart it. When an answer is late, the query
also goes to another actor, and the first answer counts: they are all the same.
"""

import threading
import time
from collections.abc import Collection, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from functools import partial
from typing import NamedTuple

import numpy as np
from ray import ObjectRef
from ray.actor import ActorHandle
from ray.exceptions import RayError, RayTaskError

from retriever_server.errors import RetrieverError, Unavailable, first_line
from retriever_server.indexes import ScoredRows

REST_S = 1.0  # after a failure an actor is called only if no other is left,
RETRY_S = 0.1  # and then this much later
RETRY_AFTER_S = 2.0  # for clients: about the time an actor takes to start


class ShardQuery(NamedTuple):
    """Vectors float32 [q, dimension] in Ray's store, and the deadline on time.monotonic()'s clock."""

    vectors: "ObjectRef[np.ndarray]"
    top_k: int
    deadline: float


class Replica:
    """One actor as its shard sees it; times are those of time.monotonic(). Compared by identity."""

    def __init__(self, actor: ActorHandle) -> None:
        self.actor = actor
        self.in_flight = 0
        self.called = self.failed = float("-inf")

    def rests(self) -> bool:
        """Whether it failed a short while ago."""
        return time.monotonic() - self.failed < REST_S


ShardCalls = dict["Future[ScoredRows]", Replica]
"""The calls in progress for one query."""


class Shard:
    """The actors of one slice. Thread-safe."""

    def __init__(self, number: int, actors: Sequence[ActorHandle], timeout_s: float) -> None:
        """`number` names it in messages; `timeout_s` is how long a query may take in all."""
        self.actors, self._number = list(actors), number
        self._replicas = [Replica(actor) for actor in actors]
        self._late_s = timeout_s / len(actors)
        self._lock = threading.Lock()

    def begin(self, query: ShardQuery) -> ShardCalls:
        """Begin to answer `query`; pass the calls to `answer` to wait for them."""
        calls: ShardCalls = {}
        self._call_another(query, calls)
        return calls

    def answer(self, query: ShardQuery, calls: ShardCalls) -> ScoredRows:
        """Wait for one of `calls`, and make more of them if they fail or are late.

        Raises Unavailable when the time is up, and what the search itself raised.
        """
        problem = "no answer"
        while (left := query.deadline - time.monotonic()) > 0:
            done, _ = wait(calls, timeout=min(left, self._late_s), return_when=FIRST_COMPLETED)
            for call in done:
                del calls[call]
                try:
                    return call.result()
                except RayError as error:
                    problem = _explain(error)
            self._call_another(query, calls)
        raise Unavailable(f"shard {self._number} does not answer in time: {problem}", RETRY_AFTER_S)

    def _call_another(self, query: ShardQuery, calls: ShardCalls) -> None:
        replica = self._choose(besides=calls.values())
        if replica is None:
            return
        if replica.rests():
            time.sleep(RETRY_S)
        call: Future[ScoredRows] = replica.actor.search.remote(query.vectors, query.top_k).future()
        call.add_done_callback(partial(self._settle, replica))
        calls[call] = replica

    def _choose(self, besides: Collection[Replica]) -> Replica | None:
        with self._lock:
            others = [replica for replica in self._replicas if replica not in besides]
            if not others:
                return None
            chosen = min(others, key=lambda replica: (replica.rests(), replica.in_flight, replica.called))
            chosen.in_flight += 1
            chosen.called = time.monotonic()
        return chosen

    def _settle(self, replica: Replica, call: "Future[ScoredRows]") -> None:
        with self._lock:
            replica.in_flight -= 1
            if call.exception() is not None:
                replica.failed = time.monotonic()


def _explain(error: RayError) -> str:
    """One line about an actor that was lost, or whose node lacks the index; re-raises other errors."""
    if isinstance(error, RayTaskError):
        if not isinstance(error.cause, RetrieverError):
            raise error
        return str(error.cause)
    return first_line(error)
