"""The sampler of finished rollouts, which ends the run when a rollout fails or a worker dies.

veRL's own sampler pads the batch where trajectories are missing, and waits forever for a dead worker.
Plugged in by ``trainer.v1.sampler.custom_sampler``.
"""

import contextlib
import time
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import GetTimeoutError
from verl.trainer.ppo.v1.replay_buffer import ReplayBuffer

SECONDS_BETWEEN_LIVENESS_CHECKS = 10.0


class RolloutFailed(RuntimeError):
    """A trajectory could not be finished."""


class FailFastReplayBuffer(ReplayBuffer):
    """veRL's synchronous sampler with errors instead of padding; takes ``poll_interval`` in seconds."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        kwargs["poll_interval"] = float(kwargs["sampler_kwargs"].get("poll_interval", 2.0))
        super().__init__(*args, **kwargs)
        self._watched: list[Any] = []
        self._error_file: Path | None = None
        self._next_check = 0.0

    def watch(self, actors: list[Any], error_file: Path | None = None) -> None:
        """Ray actors whose death ends the run, and the file in which they say why a rollout failed."""
        self._watched, self._error_file = list(actors), error_file

    def _sync_metadata_from_transfer_queue(self) -> None:
        super()._sync_metadata_from_transfer_queue()
        self.check_failures()
        if self._watched and time.monotonic() >= self._next_check:
            self._check_watched()

    def check_failures(self) -> None:
        """Raises RolloutFailed if rollouts of a question ended with an error."""
        failed = sum(len(keys) for keys in self.failure_keys.values())
        if failed:
            file = self._error_file
            why = (
                file.read_text(encoding="utf-8").strip()
                if file and file.is_file()
                else "see the training log"
            )
            raise RolloutFailed(f"rollouts of {failed} question(s) failed: {why}")

    def _check_watched(self) -> None:
        """Raises RayActorError if a watched actor is dead; one that is merely busy is left alone."""
        with contextlib.suppress(GetTimeoutError):
            ray.get([actor.__ray_ready__.remote() for actor in self._watched], timeout=5.0)
        self._next_check = time.monotonic() + SECONDS_BETWEEN_LIVENESS_CHECKS
