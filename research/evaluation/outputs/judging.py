"""The judge's verdicts on a run's answers, cached in judgements.jsonl of the run folder.

An answer that could not be judged stays in the denominator, as wrong, and is counted: `judge_failed`.
"""

from pathlib import Path

from tqdm.asyncio import tqdm

from research.episode.trajectory import Trajectory
from research.evaluation.config import EvaluationError
from research.evaluation.outputs.predictions import read_predictions
from research.judge import Judge, JudgeConfig, Verdict

JUDGEMENTS = "judgements.jsonl"

Judged = tuple[str, tuple[str, ...], str]
"""Question, accepted answers and answer, which is empty if the question failed"""


def judge_metrics(verdicts: dict[Judged, Verdict], trajectory: Trajectory) -> dict[str, float]:
    """`judge`, 1.0 for an answer judged right, and `judge_failed`; empty without a judge."""
    if not verdicts:
        return {}
    verdict = verdicts[_judged(trajectory)]
    return {"judge": float(verdict.right), "judge_failed": float(verdict.failed)}


async def judge_all(config: JudgeConfig, run_dir: Path) -> dict[Judged, Verdict]:
    """The verdicts on all answers, if there is a judge. Raises EvaluationError if it cannot be reached."""
    if config.url is None:
        return {}
    judge = Judge(config, run_dir / JUDGEMENTS)

    async def verdict_on(answer: Judged) -> Verdict:
        verdict = await judge.judge(*answer)
        if verdict.lasting:
            advice = "run again when it can, or without --judge"
            raise EvaluationError(f"the judge cannot be asked: {verdict.reason}; {advice}")
        return verdict

    answers = dict.fromkeys(map(_judged, read_predictions(run_dir)))
    try:
        verdicts = await tqdm.gather(*map(verdict_on, answers), unit="answer", desc="judging", delay=1)
    finally:
        await judge.close()
    if failures := [each.reason for each in verdicts if each.failed]:
        print(f"WARNING: {len(failures)} answers could not be judged and count as wrong: {failures[0]}")
    return dict(zip(answers, verdicts, strict=True))


def _judged(trajectory: Trajectory) -> Judged:
    data = trajectory.metadata
    return data["question"], tuple(data["golden_answers"]), "" if "error" in data else data["prediction"]
