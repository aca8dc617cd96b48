"""Shard: one slice of an index on several actors, any of which answers; what one loses, another is asked.

A question goes to the actor with the fewest of them in flight, the longest unasked among equals. One that
fails is asked last for a while, for Ray needs seconds to start it again. When an answer is late, the question
goes to a further actor, too, and the first answer counts: they are all the same.
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

from retriever_server.errors import RetrieverError, Unavailable

REST_S = 1.0  # after a failure an actor is asked only if no other is left,
RETRY_S = 0.1  # and then this much later
RETRY_AFTER_S = 2.0  # for clients: about what the start of an actor takes

Found = tuple[np.ndarray, np.ndarray]
"""Scores float64 [q, k] and rows int64 [q, k]"""


class Question(NamedTuple):
    """Vectors float32 [q, dimension] in Ray's store, and when, by time.monotonic(), an answer is too late."""

    vectors: "ObjectRef[np.ndarray]"
    top_k: int
    until: float


class Replica:
    """One actor as its shard sees it. Compared by identity."""

    def __init__(self, actor: ActorHandle) -> None:
        self.actor = actor
        self.in_flight = 0
        self.asked = self.failed = float("-inf")  # when last, by time.monotonic()

    def rests(self) -> bool:
        """Whether it failed a short while ago."""
        return time.monotonic() - self.failed < REST_S


Calls = dict["Future[Found]", Replica]
"""The calls under way for one question"""


class Shard:
    """Safe to ask from many threads."""

    def __init__(self, number: int, actors: Sequence[ActorHandle], timeout_s: float) -> None:
        """`number` names it in messages; `timeout_s` is how long questions may take in all."""
        self.actors, self._number = list(actors), number
        self._replicas = [Replica(actor) for actor in actors]
        self._late_s = timeout_s / len(actors)
        self._lock = threading.Lock()

    def ask(self, question: Question) -> Calls:
        """Begin to answer `question`; `answer` then waits for it."""
        calls: Calls = {}
        self._ask_another(question, calls)
        return calls

    def answer(self, question: Question, calls: Calls) -> Found:
        """Wait for one of `calls`, with more of them when they fail or are late.

        Raises Unavailable when the time is up, and what the search itself raised.
        """
        problem = "no answer"
        while (left := question.until - time.monotonic()) > 0:
            done, _ = wait(calls, timeout=min(left, self._late_s), return_when=FIRST_COMPLETED)
            for call in done:
                del calls[call]
                try:
                    return call.result()
                except RayError as error:
                    problem = _explain(error)
            self._ask_another(question, calls)
        raise Unavailable(f"shard {self._number} does not answer in time: {problem}", RETRY_AFTER_S)

    def _ask_another(self, question: Question, calls: Calls) -> None:
        replica = self._choose(besides=calls.values())
        if replica is None:
            return
        if replica.rests():
            time.sleep(RETRY_S)
        call: Future[Found] = replica.actor.search.remote(question.vectors, question.top_k).future()
        call.add_done_callback(partial(self._settle, replica))
        calls[call] = replica

    def _choose(self, besides: Collection[Replica]) -> Replica | None:
        with self._lock:
            others = [replica for replica in self._replicas if replica not in besides]
            if not others:
                return None
            chosen = min(others, key=lambda replica: (replica.rests(), replica.in_flight, replica.asked))
            chosen.in_flight += 1
            chosen.asked = time.monotonic()
        return chosen

    def _settle(self, replica: Replica, call: "Future[Found]") -> None:
        with self._lock:
            replica.in_flight -= 1
            if call.exception() is not None:
                replica.failed = time.monotonic()


def _explain(error: RayError) -> str:
    """One line about an actor that was lost, or whose node lacks the index; raises what is neither."""
    if isinstance(error, RayTaskError):
        if not isinstance(error.cause, RetrieverError):
            raise error
        return str(error.cause)
    return str(error).splitlines()[0]
