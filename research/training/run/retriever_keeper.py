"""The retrieval server of a run: started, kept alive, and stopped with it."""

import json
import os
import subprocess
import time
from collections import deque
from typing import Any

import click
import httpx

from research.errors import warn
from research.files import write_atomically
from research.processes import start, stop, tail
from research.tools.search import IDENTITY, TOKEN_VARIABLE
from research.training.run.options import RunFailed
from research.training.run.plan import RunPlan

RETRIEVER_START_SECONDS = 1800  # a 61 GB index is read from disk
RETRIEVER_RESTARTS, RESTARTS_WITHIN_SECONDS = 10, 600  # one that dies more often will not stay alive


class RetrieverKeeper:
    """Serves the index, if the plan says so, until the end of its ``with`` block.

    The training survives the death of the server, so it must not stay dead.
    """

    def __init__(self, plan: RunPlan) -> None:
        self.deaths: deque[float] = deque(maxlen=RETRIEVER_RESTARTS)  # times of the newest
        self.url, self.serve = plan.retriever_url, plan.serve
        self.identity_path = plan.options.run_dir / "retriever.json"
        self.log = plan.options.run_dir / "logs" / "retriever.log"
        self.process: subprocess.Popen[bytes] | None = None
        if self.serve:
            click.echo(f"- serve the index at {self.url}")
            self.process = start(self.serve.argv, self.log)

    def __enter__(self) -> "RetrieverKeeper":
        return self

    def __exit__(self, *error: Any) -> None:
        if self.process:
            stop(self.process, patience=10)

    def wait_until_healthy(self, training: "subprocess.Popen[bytes]") -> None:
        """Wait for the server, also for one that was started elsewhere, unless the training has ended.

        Then RUN_DIR/retriever.json holds what it says about its index, which evaluations of the policy need.

        Raises:
            RunFailed: it ended, or was not healthy in time.
        """
        deadline = time.monotonic() + (RETRIEVER_START_SECONDS if self.process else 10)
        while not is_healthy(self.url):
            if self.process and self.process.poll() is not None:
                raise RunFailed(f"the retriever did not start: {tail(self.log, 1)}; see {self.log}")
            if training.poll() is not None:
                return
            if time.monotonic() > deadline:
                raise RunFailed(f"no healthy retriever at {self.url}")
            time.sleep(0.2)
        self._note_identity()

    def _note_identity(self) -> None:
        try:
            health = _health(self.url).json()
            identity = {key: health[key] for key in IDENTITY}
        except (httpx.HTTPError, ValueError, TypeError, KeyError):  # not a server of ours
            self.identity_path.unlink(missing_ok=True)
        else:
            write_atomically(self.identity_path, json.dumps(identity, indent=1) + "\n")

    def keep_alive(self) -> None:
        """Restart the server if it has died, without waiting. Raises RunFailed if it dies too often."""
        if self.serve is None or self.process is None or self.process.poll() is None:
            return
        now = time.monotonic()
        if len(self.deaths) == RETRIEVER_RESTARTS and now - self.deaths[0] < RESTARTS_WITHIN_SECONDS:
            raise RunFailed(
                f"the retriever died {RETRIEVER_RESTARTS + 1} times within {now - self.deaths[0]:.0f} s; "
                f"see {self.log}"
            )
        self.deaths.append(now)
        warn(f"the retriever died (exit code {self.process.returncode}); restarting it")
        self.process = start(self.serve.argv, self.log)


def is_healthy(url: str) -> bool:
    """Whether a retrieval server answers there."""
    try:
        answer = _health(url)
    except (httpx.HTTPError, httpx.InvalidURL, UnicodeError):  # the last for an impossible host
        return False
    # Search-R1's server has no /health: that it answers at all is enough.
    return answer.is_success or answer.status_code == 404


def _health(url: str) -> httpx.Response:
    token = os.environ.get(TOKEN_VARIABLE)
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    return httpx.get(f"{url.rstrip('/')}/health", headers=headers, timeout=5, follow_redirects=True)
