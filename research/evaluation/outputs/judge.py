"""The LLM judge: a model behind an OpenAI-compatible server says whether each answer is right, and why.

Verdicts are kept by content in judgements.jsonl of the run folder, so nothing is judged twice. A question
whose judging failed stays in the denominator, as wrong, and the failures are counted: `judge_failed`.
"""

import asyncio
import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError
from tqdm import tqdm

from research.episode.prompts import fill, load_prompt
from research.episode.trajectory import Trajectory, well_formed
from research.evaluation.config import EvaluationError, JudgeConfig
from research.evaluation.outputs.predictions import read_predictions
from research.files import cut_half_line
from research.model_server import ModelServer, ServerError

JUDGEMENTS = "judgements.jsonl"
PROMPT = "judge"


class Verdict(BaseModel):
    """What the judge replies."""

    model_config = ConfigDict(extra="forbid", strict=True)

    reason: str
    right: bool


RESPONSE_FORMAT = {
    "type": "json_schema",
    "json_schema": {"name": "verdict", "strict": True, "schema": Verdict.model_json_schema()},
}


def content_key(config: JudgeConfig, data: dict[str, Any]) -> str:
    """What a verdict depends on: judge, prompt, question, accepted answers, prediction."""
    asked = load_prompt(PROMPT)[:2]
    parts = [config.model, asked, data["question"], data["golden_answers"], data["prediction"]]
    return hashlib.sha256(json.dumps(parts, ensure_ascii=False).encode()).hexdigest()


def read_verdicts(run_dir: Path) -> dict[str, dict[str, Any]]:
    """All that was judged so far, by content key: `right` and `reason`."""
    path = run_dir / JUDGEMENTS
    lines = path.read_text(encoding="utf-8").split("\n")[:-1] if path.exists() else []
    return {row["key"]: row for row in map(json.loads, lines)}


def judge_metrics(
    config: JudgeConfig, verdicts: dict[str, dict[str, Any]], trajectory: Trajectory
) -> dict[str, float]:
    """`judge`, 1.0 where the answer was judged right, and `judge_failed`; nothing where nothing is judged."""
    if config.url is None:
        return {}
    if not _answered(trajectory.metadata):
        return {"judge": 0.0, "judge_failed": 0.0}
    verdict = verdicts.get(content_key(config, trajectory.metadata))
    return {
        "judge": float(verdict is not None and verdict["right"]),
        "judge_failed": float(verdict is None),
    }


async def judge_all(config: JudgeConfig, run_dir: Path) -> None:
    """Judge what is not judged yet. No answer and a failed question are wrong without being asked about.

    Raises EvaluationError when the judge cannot be asked.
    """
    if config.url is None:
        return
    cut_half_line(run_dir / JUDGEMENTS)
    known = read_verdicts(run_dir)
    todo = {content_key(config, each.metadata): each.metadata for each in read_predictions(run_dir)}
    asked = [(key, data) for key, data in todo.items() if key not in known and _answered(data)]
    server = ModelServer(config.url, config.api_key_variable, config.timeout, config.deadline)
    try:
        await _judge(server, config, asked, run_dir / JUDGEMENTS)
    finally:
        await server.close()


def _answered(data: dict[str, Any]) -> bool:
    return "error" not in data and bool(data["prediction"].strip())


async def _judge(
    server: ModelServer, config: JudgeConfig, asked: Iterable[tuple[str, dict[str, Any]]], path: Path
) -> None:
    asked = list(asked)
    failures: list[str] = []
    turns = asyncio.Semaphore(config.concurrency)
    with tqdm(total=len(asked), unit="answer", desc="judging", disable=not asked) as bar:

        async def one(key: str, data: dict[str, Any]) -> None:
            async with turns:
                try:
                    verdict = await ask(server, str(config.model), data)
                except ServerError as error:
                    if error.lasting:
                        advice = "run again when it can, or without --judge"
                        raise EvaluationError(f"the judge cannot be asked: {error}; {advice}") from error
                    failures.append(str(error))
                else:
                    with path.open("a", encoding="utf-8") as file:
                        file.write(
                            json.dumps({"key": key, **verdict.model_dump()}, ensure_ascii=False) + "\n"
                        )
            bar.update()

        await asyncio.gather(*(one(key, data) for key, data in asked))
    if failures:
        print(f"WARNING: {len(failures)} answers could not be judged and count as wrong: {failures[0]}")


async def ask(server: ModelServer, model: str, data: dict[str, Any]) -> Verdict:
    """The verdict on one prediction. Raises ServerError, also for a reply that is no verdict."""
    system, user, _ = load_prompt(PROMPT)
    fields = {
        "question": data["question"],
        "golden": "; ".join(data["golden_answers"]),
        "prediction": data["prediction"],
    }
    body = {
        "model": model,
        # One message: some models' chat templates refuse a system message, or leave it out.
        "messages": [{"role": "user", "content": f"{system}\n\n{fill(user, fields)}"}],
        "temperature": 0,
        "response_format": RESPONSE_FORMAT,
    }
    reply = await server.call("/chat/completions", body)
    try:
        return Verdict.model_validate_json(well_formed(reply["choices"][0]["message"]["content"]))
    except (KeyError, IndexError, TypeError, AttributeError, ValidationError) as error:
        raise ServerError(f"not a verdict: {' '.join(str(error).split())[:200]}") from error
