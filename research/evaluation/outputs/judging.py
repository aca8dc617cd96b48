"""The judge's verdicts on a run's answers, cached in judgements.jsonl of the run folder.

An answer that could not be judged stays in the denominator, as wrong, and is counted: `judge_failed`.
"""

import asyncio
from pathlib import Path
from typing import Any

from tqdm import tqdm

from research.episode.trajectory import Trajectory
from research.evaluation.config import EvaluationError
from research.evaluation.outputs.predictions import read_predictions
from research.judge import Judge, JudgeConfig, Verdict, content_key

JUDGEMENTS = "judgements.jsonl"


def judge_metrics(
    config: JudgeConfig, verdicts: dict[str, Verdict], trajectory: Trajectory
) -> dict[str, float]:
    """`judge`, 1.0 for an answer judged right, and `judge_failed`; empty without a judge."""
    if config.url is None:
        return {}
    question, golden_answers, answer = _judged_fields(trajectory.metadata)
    if not answer.strip():
        return {"judge": 0.0, "judge_failed": 0.0}
    verdict = verdicts.get(content_key(config.model, question, golden_answers, answer))
    return {"judge": float(verdict is not None and verdict.right), "judge_failed": float(verdict is None)}


async def judge_all(config: JudgeConfig, run_dir: Path) -> None:
    """Judge all answers without a verdict. Raises EvaluationError if the judge cannot be reached."""
    if config.url is None:
        return
    judge = Judge(config, run_dir / JUDGEMENTS)
    answers = dict.fromkeys(_judged_fields(each.metadata) for each in read_predictions(run_dir))
    todo = [each for each in answers if not judge.is_known(*each)]
    failures: list[str] = []
    try:
        with tqdm(total=len(todo), unit="answer", desc="judging", disable=not todo) as bar:
            for verdict in asyncio.as_completed([judge.judge(*each) for each in todo]):
                bar.update()
                failures += _failure(await verdict)
    finally:
        await judge.close()
    if failures:
        print(f"WARNING: {len(failures)} answers could not be judged and count as wrong: {failures[0]}")


def _judged_fields(data: dict[str, Any]) -> tuple[str, tuple[str, ...], str]:
    """Question, accepted answers and answer, which is empty if the question failed."""
    return data["question"], tuple(data["golden_answers"]), "" if "error" in data else data["prediction"]


def _failure(verdict: Verdict) -> list[str]:
    if verdict.lasting:
        advice = "run again when it can, or without --judge"
        raise EvaluationError(f"the judge cannot be asked: {verdict.reason}; {advice}")
    return [verdict.reason] if verdict.failed else []
