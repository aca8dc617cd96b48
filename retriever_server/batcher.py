"""Batcher: calls from many threads, answered together by one worker thread.

Reinforcement learning sends hundreds of single queries at once. One pass of the encoder, or over the index,
for many of them costs far less than a pass each, so the worker takes what is waiting, waits for more if more
is to be expected, and answers all together. A client that asks alone never waits for others.
"""

import queue
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import Generic, TypeVar

Job = TypeVar("Job")
Answer = TypeVar("Answer")
_NEWS = 0.1  # weight of the newest value in a running mean


class Batcher(Generic[Job, Answer]):
    """`submit(job)` returns a future; `answer(jobs)` runs in the worker: one answer a job, in order."""

    def __init__(self, answer: Callable[[list[Job]], list[Answer]], max_batch: int, window_s: float) -> None:
        """At most `max_batch` jobs go together; an incomplete batch waits at most `window_s` seconds for
        more.
        """
        self._answer, self._max_batch, self._window_s = answer, max_batch, window_s
        self._seconds = 0.0  # that a batch takes, as of late
        self._gap = window_s  # between two arrivals, as of late
        self._arrived = time.monotonic()
        self._waiting: queue.Queue[tuple[Job, Future[Answer]] | None] = queue.Queue()
        self._closing = threading.Lock()
        self._closed = False
        self._worker = threading.Thread(target=self._work, name="batcher", daemon=True)
        self._worker.start()

    def submit(self, job: Job) -> "Future[Answer]":
        """Raises RuntimeError after close()."""
        future: Future[Answer] = Future()
        with self._closing:  # else a job could land behind the end mark, and its caller would wait for ever
            if self._closed:
                raise RuntimeError("the batcher is closed")
            now = time.monotonic()
            # A long silence says no more than a gap as long as the window: nobody else is to be expected.
            self._gap += _NEWS * (min(now - self._arrived, 2 * self._window_s) - self._gap)
            self._arrived = now
            self._waiting.put((job, future))
        return future

    def close(self, timeout_s: float) -> None:
        """Take no more jobs, answer those that wait, end the worker; waits for it at most `timeout_s`."""
        with self._closing:
            if not self._closed:
                self._closed = True
                self._waiting.put(None)
        self._worker.join(timeout_s)

    def _work(self) -> None:
        while (first := self._waiting.get()) is not None:
            self._run(self._fill([first]))

    def _fill(self, batch: list[tuple[Job, "Future[Answer]"]]) -> list[tuple[Job, "Future[Answer]"]]:
        until = time.monotonic() + self._patience()
        while len(batch) < self._max_batch:
            try:
                entry = self._waiting.get(timeout=max(0.0, until - time.monotonic()))
            except queue.Empty:
                break
            if entry is None:
                self._waiting.put(None)  # the end mark, for _work to see
                break
            batch.append(entry)
        return batch

    def _patience(self) -> float:
        """Seconds to wait for more: as long as a batch takes, if another job is likely to come in that
        time.
        """
        wait = min(self._seconds, self._window_s)
        return wait if self._gap < wait else 0.0

    def _run(self, batch: list[tuple[Job, "Future[Answer]"]]) -> None:
        began = time.monotonic()
        try:
            answers = self._answer([job for job, _ in batch])
        except Exception as error:  # the waiting callers are told, each of its own job's error
            if len(batch) == 1:
                batch[0][1].set_exception(error)
                return
            for entry in batch:
                self._run([entry])
            return
        self._seconds += _NEWS * (time.monotonic() - began - self._seconds)
        for (_, future), result in zip(batch, answers, strict=True):
            future.set_result(result)
