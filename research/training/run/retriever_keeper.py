"""The retrieval server of a run: started, kept alive, and stopped with it."""

import os
import subprocess
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager

import click
import httpx

from research.errors import warn
from research.processes import start, stop, tail
from research.tools.search import TOKEN_VARIABLE
from research.training.run.options import RunFailed
from research.training.run.plan import RunPlan

RETRIEVER_START_SECONDS = 1800  # a 61 GB index is read from disk
RETRIEVER_RESTARTS, RESTARTS_WITHIN_SECONDS = 10, 600  # one that dies more often will not stay alive


def retriever_url(plan: RunPlan, port: int) -> str:
    """Where the training searches: the user's server, or the one that is started on ``port``."""
    return plan.options.retriever_url or f"http://{plan.options.retriever_host}:{port}"


@contextmanager
def served_retriever(plan: RunPlan, port: int) -> Iterator["RetrieverKeeper"]:
    """Serve the index, if the plan says so, until the end of the block."""
    keeper = RetrieverKeeper(plan, port)
    try:
        yield keeper
    finally:
        if keeper.process:
            stop(keeper.process, patience=10)


class RetrieverKeeper:
    """Keeps the retrieval server alive: the training survives its death, so it must not stay dead."""

    def __init__(self, plan: RunPlan, port: int) -> None:
        self.deaths: deque[float] = deque(maxlen=RETRIEVER_RESTARTS)  # times of the newest
        self.url = retriever_url(plan, port)
        self.argv = [*plan.serve.argv, "--port", str(port)] if plan.serve else []
        self.log = plan.options.run_dir / "logs" / "retriever.log"
        self.process: subprocess.Popen[bytes] | None = None
        if self.argv:
            click.echo(f"- serve the index at {self.url}")
            self.process = start(self.argv, self.log)

    def wait_until_healthy(self) -> None:
        """Wait for the server, also for one that was started elsewhere.

        Raises:
            RunFailed: it ended, or is not healthy in time.
        """
        deadline = time.monotonic() + (RETRIEVER_START_SECONDS if self.argv else 10)
        while not is_healthy(self.url):
            if self.process and self.process.poll() is not None:
                raise RunFailed(f"the retriever did not start: {tail(self.log, 1)}; see {self.log}")
            if time.monotonic() > deadline:
                raise RunFailed(f"no healthy retriever at {self.url}")
            time.sleep(0.2)

    def keep_alive(self) -> None:
        """Restart the server if it has died, without waiting. Raises RunFailed if it dies too often."""
        if self.process is None or self.process.poll() is None:
            return
        now = time.monotonic()
        if len(self.deaths) == RETRIEVER_RESTARTS and now - self.deaths[0] < RESTARTS_WITHIN_SECONDS:
            raise RunFailed(
                f"the retriever died {RETRIEVER_RESTARTS + 1} times within {now - self.deaths[0]:.0f} s; "
                f"see {self.log}"
            )
        self.deaths.append(now)
        warn(f"the retriever died (exit code {self.process.returncode}); restarting it")
        self.process = start(self.argv, self.log)


def is_healthy(url: str) -> bool:
    """Whether a retrieval server answers there."""
    token = os.environ.get(TOKEN_VARIABLE)
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    try:
        health = f"{url.rstrip('/')}/health"
        answer = httpx.get(health, headers=headers, timeout=5, follow_redirects=True)
    except (httpx.HTTPError, httpx.InvalidURL, UnicodeError):  # the last for an impossible host
        return False
    # Search-R1's server has no /health: that it answers at all is enough.
    return answer.is_success or answer.status_code == 404
