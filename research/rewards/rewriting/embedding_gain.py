"""TongSearch-QR's reward: how much nearer the text is to the relevant texts than the question, by an encoder.

    R = 10/|D| * sum over d in D of [cos(e(text), e(d)) - cos(e(question), e(d))]

D are the task's positives; e is any sentence-transformers model, its vectors of length 1. No retriever is
asked. R needs only the mean of D's vectors: it is kept, with the question's own share.
"""

import asyncio

import numpy as np

from research.datasets.rewriting_tasks import RewritingTask
from research.rewards import Reward
from research.rewards.rewriting import Tools, once

SCALE = 10.0


class TextReward:
    """Encodes each text; question and positives once."""

    def __init__(self, tools: Tools) -> None:
        tools.load_encoder()  # a wrong name ends the run before its first step
        self.tools = tools
        self._known: dict[tuple[str, tuple[str, ...]], asyncio.Task[tuple[np.ndarray, float]]] = {}

    async def __call__(self, task: RewritingTask, text: str) -> Reward:
        """Raises ScoringError."""
        key = task.question, task.positives
        mean, before = await once(self._known, key, lambda: self._encode(task))
        (vector,) = await self.tools.encode([text])
        cosine = float(vector @ mean)
        return Reward(SCALE * (cosine - before), f"cosine {before:.3f} -> {cosine:.3f}")

    async def _encode(self, task: RewritingTask) -> tuple[np.ndarray, float]:
        """The mean of the positives' vectors, and the mean cosine of the question with them."""
        question, *positives = await self.tools.encode([task.question, *task.positives])
        mean = np.mean(positives, axis=0)
        return mean, float(question @ mean)
