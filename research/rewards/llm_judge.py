"""1 for an answer that a language model finds right, else 0. The model is behind an OpenAI-compatible server.

    'research.reward={llm_judge: {url: "http://127.0.0.1:8001", model: Qwen2.5-72B-Instruct}}'

The environment variable JUDGE_API_KEY holds the key, if the server wants one. Verdicts are kept in the file
`cache`, which evaluations with the same judge can share: nothing is judged twice. Where the server gives no
verdict the reward is 0, with the reason and the metric ``judge_failed`` 1; a failure that lasts, such as a
wrong key or an unknown model, ends the training.
"""

from functools import lru_cache
from pathlib import Path

from research.episode.protocol import answer_of
from research.episode.trajectory import Trajectory
from research.judge import Judge, JudgeConfig
from research.rewards import Reference, Reward

_judge = lru_cache(maxsize=8)(Judge)


async def score(
    trajectory: Trajectory,
    reference: Reference,
    url: str,
    model: str,
    cache: str = "verdicts.jsonl",
    api_key_variable: str = "JUDGE_API_KEY",
    concurrency: int = 32,
    timeout: float = 60.0,
    deadline: float = 300.0,
) -> Reward:
    """See the module. Raises RuntimeError for a failure that lasts."""
    judge = _judge(JudgeConfig(url, model, api_key_variable, concurrency, timeout, deadline), Path(cache))
    answer = answer_of(trajectory, reference.protocol) or ""
    verdict = await judge.judge(reference.question, reference.golden_answers, answer)
    if verdict.lasting:
        raise RuntimeError(f"the judge at {url}: {verdict.reason}")
    reason = f"not judged: {verdict.reason}" if verdict.failed else verdict.reason
    return Reward(float(verdict.right), reason, {"judge_failed": float(verdict.failed)})
