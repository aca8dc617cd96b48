"""Batcher: calls from many threads, answered together by one worker thread.

Reinforcement learning sends hundreds of single queries at once. One pass of the encoder over many of them
costs far less than a pass each, so the worker takes what is waiting, waits a few milliseconds for more, and
answers all together.
"""

import queue
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import Generic, TypeVar

Job = TypeVar("Job")
Answer = TypeVar("Answer")


class Batcher(Generic[Job, Answer]):
    """`submit(job)` returns a future; `answer(jobs)` runs in the worker: one answer a job, in order."""

    def __init__(self, answer: Callable[[list[Job]], list[Answer]], max_batch: int, window_s: float) -> None:
        """At most `max_batch` jobs go together; an incomplete batch waits `window_s` seconds for more."""
        self._answer, self._max_batch, self._window_s = answer, max_batch, window_s
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
        until = time.monotonic() + self._window_s
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

    def _run(self, batch: list[tuple[Job, "Future[Answer]"]]) -> None:
        try:
            answers = self._answer([job for job, _ in batch])
        except Exception as error:  # the waiting callers are told, each of its own job's error
            if len(batch) == 1:
                batch[0][1].set_exception(error)
                return
            for entry in batch:
                self._run([entry])
            return
        for (_, future), result in zip(batch, answers, strict=True):
            future.set_result(result)
