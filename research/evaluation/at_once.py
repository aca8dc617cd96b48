"""Many questions or texts at once, each at its own pace: no barrier, and a failure costs only itself."""

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from typing import TypeVar

from tqdm import tqdm

from research.errors import reason_of
from research.evaluation.config import EvaluationError

HOPELESS = 32  # failures in a row from the start: then something is wrong with all of them
MOST_CHARACTERS = 500  # of a reason
_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


@dataclass(frozen=True)
class Failed:
    """Why there is no result."""

    reason: str


async def at_once(items: Iterable[_Item], concurrency: int, work: Callable[[_Item], Awaitable[None]]) -> None:
    """Do `work` for all items, `concurrency` at a time. The first exception ends all, and is raised."""
    waiting = iter(items)

    async def worker() -> None:
        for item in waiting:  # shared: each worker takes the next
            await work(item)

    try:
        async with asyncio.TaskGroup() as group:
            for _ in range(concurrency):
                group.create_task(worker())
    except BaseExceptionGroup as errors:
        raise errors.exceptions[0] from None


async def attempt(work: Awaitable[_Result], seconds: float, result: str) -> _Result | Failed:
    """The result, or why there is none. Raises EvaluationError, which ends the whole evaluation."""
    try:
        async with asyncio.timeout(seconds):
            return await work
    except TimeoutError:
        return Failed(f"no {result} in {seconds} s")
    except EvaluationError:
        raise
    except Exception as error:  # whatever it is, it concerns this item alone: the others continue
        return Failed(reason_of(error)[:MOST_CHARACTERS])


class Progress(tqdm):
    """The bar of `total` items, `initial` of them done before. Counts failures, and ends a hopeless run."""

    failed = 0

    def count(self, failure: str | None, note: str = "") -> None:
        """Count one more as finished. Raises EvaluationError if the first HOPELESS all failed."""
        self.failed += failure is not None
        self.set_postfix_str(f"{note}{self.failed} failed", refresh=False)
        self.update()
        if self.failed == self.n - self.initial == HOPELESS:
            raise EvaluationError(
                f"the first {HOPELESS} {self.unit}s all failed, the last because of: {failure}"
            )
