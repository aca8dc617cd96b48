"""TongSearch-QR's reward: how much nearer the text is to the relevant texts than the question, by an encoder.

    R = 10/|D| * sum over d in D of [cos(e(text), e(d)) - cos(e(question), e(d))]

D are the task's positives; e is any sentence-transformers model, its vectors of length 1. No retriever is
asked. The mean of D's vectors is all that R needs of D: it is kept, with the question's own share.
"""

import asyncio
from typing import NamedTuple

import numpy as np

from research.datasets.rewriting_tasks import RewritingTask
from research.rewards import Reward
from research.rewards.rewriting import Tools, once

SCALE = 10.0


class _Known(NamedTuple):
    """Of one question: the mean of the positives' vectors, and the mean cosine of the question with them."""

    positives: np.ndarray
    question: float


class TextReward:
    """Encodes each text; question and positives once."""

    def __init__(self, tools: Tools) -> None:
        tools.load_encoder()  # a wrong name ends the run before its first step
        self.tools = tools
        self._known: dict[tuple[str, tuple[str, ...]], asyncio.Task[_Known]] = {}

    async def __call__(self, task: RewritingTask, text: str) -> Reward:
        """Raises ScoringError."""
        known = await once(self._known, (task.question, task.positives), lambda: self._encode(task))
        (vector,) = await self.tools.encode([text])
        cosine = float(vector @ known.positives)
        return Reward(SCALE * (cosine - known.question), f"cosine {known.question:.3f} -> {cosine:.3f}")

    async def _encode(self, task: RewritingTask) -> _Known:
        question, *positives = await self.tools.encode([task.question, *task.positives])
        mean = np.mean(positives, axis=0)
        return _Known(mean, float(question @ mean))
