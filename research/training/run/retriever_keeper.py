"""The retrieval server of a run: started, kept alive, and stopped with it."""

import http.client
import os
import subprocess
import time
import urllib.error
import urllib.request
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager

import click

from research.processes import start, stop, tail
from research.training.run.options import TOKEN
from research.training.run.plan import Plan

RETRIEVER_START_SECONDS = 1800  # a 61 GB index is read from disk
RETRIEVER_RESTARTS, RESTARTS_WITHIN_SECONDS = 10, 600  # one that dies more often will not stay alive


class RetrieverFailed(RuntimeError):
    """The retrieval server is not there, or does not stay; the message is for the user."""


def retriever_url(plan: Plan, port: int) -> str:
    """Where the training searches: the server that the user named, or the one that is started on ``port``."""
    return plan.options.retriever_url or f"http://{plan.options.retriever_host}:{port}"


@contextmanager
def served_retriever(plan: Plan, port: int) -> Iterator["RetrieverKeeper"]:
    """Serve the index if the plan says so, until the end of the block."""
    keeper = RetrieverKeeper(plan, port)
    try:
        yield keeper
    finally:
        keeper.stop()


class RetrieverKeeper:
    """Keeps the retrieval server alive: the training survives its death, so it must not stay dead."""

    def __init__(self, plan: Plan, port: int) -> None:
        self.plan = plan
        self.deaths: deque[float] = deque(maxlen=RETRIEVER_RESTARTS)  # the times of the newest
        self.url = retriever_url(plan, port)
        self.argv = [*plan.serve.argv, "--port", str(port)] if plan.serve else []
        self.log = plan.options.run_dir / "logs" / "retriever.log"
        self.process: subprocess.Popen[bytes] | None = None
        if self.argv:
            click.echo(f"- serve the index at {self.url}")
            self.process = start(self.argv, self.log)

    def wait_until_healthy(self) -> None:
        """Of a server that was started elsewhere, too.

        Raises:
            RetrieverFailed: it ended, or is not healthy in time.
        """
        deadline = time.monotonic() + (RETRIEVER_START_SECONDS if self.argv else 10)
        while not is_healthy(self.url):
            if self.process and self.process.poll() is not None:
                raise RetrieverFailed(f"the retriever did not start: {tail(self.log, 1)}; see {self.log}")
            if time.monotonic() > deadline:
                raise RetrieverFailed(f"no healthy retriever at {self.url}")
            time.sleep(0.2)

    def keep_alive(self) -> None:
        """Start the server again if it has died; does not wait for it."""
        if self.process is None or self.process.poll() is None:
            return
        now = time.monotonic()
        if len(self.deaths) == RETRIEVER_RESTARTS and now - self.deaths[0] < RESTARTS_WITHIN_SECONDS:
            raise RetrieverFailed(
                f"the retriever died {RETRIEVER_RESTARTS + 1} times within {now - self.deaths[0]:.0f} s; "
                f"see {self.log}"
            )
        self.deaths.append(now)
        click.echo(
            f"WARNING: the retriever died (exit code {self.process.returncode}); starting it again", err=True
        )
        self.process = start(self.argv, self.log)

    def stop(self) -> None:
        """End the server that was started here."""
        if self.process:
            stop(self.process, patience=10)


def is_healthy(url: str) -> bool:
    """Whether a retrieval server answers there."""
    token = os.environ.get(TOKEN)
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    request = urllib.request.Request(f"{url.rstrip('/')}/health", headers=headers)
    try:
        with urllib.request.urlopen(request, timeout=5):
            return True
    except urllib.error.HTTPError as error:
        # Search-R1's server has no /health: that it answers at all will do.
        return error.code == 404
    # Nobody is there, a port that is no HTTP, or a host that can be no name.
    except (OSError, http.client.HTTPException, UnicodeError):
        return False
