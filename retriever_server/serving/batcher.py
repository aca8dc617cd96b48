"""Batcher: one stage of the service. One worker thread does jobs from many threads together.

Reinforcement learning sends hundreds of single queries at once. One pass of the encoder, or over the index,
for many of them costs far less than a pass each, so the worker takes what is waiting, waits for more as long
as more keeps coming, and does it all together. A client that asks alone never waits for others. Each stage
has its own worker, so one batch is encoded while another is searched.
"""

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

from retriever_server.errors import Closed, Unavailable

Job = TypeVar("Job")
_DECAY = 0.1  # weight of the newest value in a running mean
_PATIENCE = 3.0  # mean gaps without a job after which no more is expected

Observer = Callable[[int, float, float], None]
"""Called after each batch with its number of jobs, its seconds, and how long its first job had waited."""


class Batcher(Generic[Job]):
    """`submit(jobs)` returns at once; `work(jobs)` runs in the worker thread and delivers the answers."""

    def __init__(
        self,
        name: str,
        work: Callable[[list[Job]], None],
        fail: Callable[[list[Job], Exception], None],
        *,
        max_batch: int,
        window_s: float,
        observe: Observer = lambda jobs, seconds, waited_s: None,
    ) -> None:
        """Batch at most `max_batch` jobs; an incomplete batch waits at most `window_s` seconds for more.

        When `work` raises, its jobs are done one by one, and those that raise again are passed to `fail`;
        Unavailable and Closed are passed to `fail` with all jobs at once.
        """
        self._work, self._fail, self._observe = work, fail, observe
        self._max_batch, self._window_s = max_batch, window_s
        self._seconds = 0.0  # running mean of a batch's duration
        self._gap = window_s  # running mean between two arrivals of a crowd
        self._arrived = time.monotonic()
        self._waiting: deque[tuple[Job, float]] = deque()
        self._changed = threading.Condition()
        self._closed = False
        self._worker = threading.Thread(target=self._run, name=name, daemon=True)
        self._worker.start()

    def submit(self, jobs: Sequence[Job]) -> None:
        """Queue `jobs`; Closed after close()."""
        with self._changed:
            if self._closed:
                raise Closed("the server is shutting down, or another index has replaced this one")
            now = time.monotonic()
            for job in jobs:
                gap = now - self._arrived
                if gap < self._longest_wait_s:  # a longer one is a pause between two crowds
                    self._gap += _DECAY * (gap - self._gap)
                self._arrived = now
                self._waiting.append((job, now))
            self._changed.notify()

    def close(self, timeout_s: float) -> None:
        """Take no more jobs, do those that wait, end the worker; wait for that at most `timeout_s`."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._worker.join(timeout_s)

    def expected_wait_s(self) -> float:
        """Seconds until a job submitted now would be done, if batches take as long as recently."""
        return self._seconds * (1 + len(self._waiting) / self._max_batch)

    def _run(self) -> None:
        while batch := self._next_batch():
            began = time.monotonic()
            self._do([job for job, _ in batch])
            seconds = time.monotonic() - began
            self._seconds += _DECAY * (seconds - self._seconds)
            self._observe(len(batch), seconds, began - batch[0][1])

    def _next_batch(self) -> list[tuple[Job, float]]:
        """The next jobs, oldest first; empty once all are done and no more will come."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._closed)
            self._wait_for_more()
            return [self._waiting.popleft() for _ in range(min(len(self._waiting), self._max_batch))]

    @property
    def _longest_wait_s(self) -> float:
        """The longest wait worth its cost: half of what a batch takes, at most the window."""
        return min(self._seconds / 2, self._window_s)

    def _wait_for_more(self) -> None:
        waiting, until = len(self._waiting), time.monotonic() + self._longest_wait_s
        while len(self._waiting) < self._max_batch and not self._closed:
            now = time.monotonic()
            # The next job is expected after a gap; long after that, or without time for it, none is.
            at_most = min(until, self._arrived + _PATIENCE * self._gap)
            if now + self._gap > until or now >= at_most:
                return
            self._changed.wait(at_most - now)
            if len(self._waiting) == waiting:  # in vain: expect less next time
                self._gap = min(2 * self._gap, self._window_s)

    def _do(self, jobs: list[Job]) -> None:
        try:
            self._work(jobs)
        except BaseException as error:  # the worker must survive a panic of a Rust library, too
            if len(jobs) > 1 and not isinstance(error, (Unavailable, Closed)):
                for job in jobs:  # so that each caller gets the error of its own job
                    self._do([job])
                return
            wrapped = RuntimeError(f"{type(error).__name__}: {error}")
            self._fail(jobs, error if isinstance(error, Exception) else wrapped)
