"""Question answering with searches (ReSearch, Search-R1): think, search, answer; judged by the answer."""

import json
import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

from research.datasets.questions import Question, read_questions, training_rows
from research.environments import BaseEnvironment, EpisodeSettings, Row
from research.environments.controls import CLOSED_BOOK, CONTROLS, SHUFFLED, controlled
from research.environments.headline import LENGTHS, REWARD, Chart, Column, Headline
from research.episode.loop import Generate, run_episode
from research.episode.prompts import build_prompt
from research.episode.protocol import answer_of, format_fault
from research.episode.tokens import TokenProtocol
from research.episode.tools import Tool
from research.episode.trajectory import Trajectory
from research.errors import DataError
from research.metrics.answers import exact_match, token_f1
from research.rewards import AnswerReward, Reference, ended

DECOYS = 4
HEADLINE = Headline(
    metric="em",
    label="EM",
    title="EM on held-out questions, by hops",
    note="EM with its 95% interval (Wilson). Searches and valid formats are means, before -> after.",
    step_line=(
        ("EM", "search/em", ".3f"),
        ("reward", REWARD, ".3f"),
        ("searches", "search/searches", ".1f"),
        ("len", "search/response_tokens", ".0f"),
    ),
    training_chart=Chart("Training questions", {REWARD: "reward", "search/em": "EM"}, share=True),
    charts=(
        Chart("Searches a question", {"search/searches": "searches"}),
        Chart("Response length, tokens", LENGTHS),
        Chart(
            "Format valid, and cut by length",
            {"search/format_valid": "valid", "search/cut_by_length": "cut"},
            share=True,
        ),
    ),
    columns=(Column("searches", "searches"), Column("format valid", "format_valid")),
    better=("em", 0.5),
    verdicts=("right", "wrong"),
)


class Environment(BaseEnvironment):
    """Plays the rows of question files (research/datasets/questions.py)."""

    headline: ClassVar[Headline] = HEADLINE

    def __init__(self, settings: EpisodeSettings) -> None:
        super().__init__(settings)
        self.reward = AnswerReward(settings.reward)
        if unknown := set(settings.controls) - set(CONTROLS):
            there = ", ".join(CONTROLS)
            raise ValueError(f"research.controls: {', '.join(sorted(unknown))}; there are: {there}")
        if settings.controls and not any(tool.searches for tool in self.tools):
            raise ValueError(
                "research.controls: none of research.tools searches, so there is nothing to control"
            )

    def read(self, path: Path, split: str, final: bool = True) -> list[Question]:
        """See BaseEnvironment. Test questions must be fit for the controls."""
        questions = self.questions(path)
        if split == "test":
            self._require_controls(questions, path)
        return questions

    def questions(self, path: Path) -> list[Question]:
        """The questions of a file, in any form; a user's environment overrides this."""
        return read_questions(path)

    def rows(self, splits: dict[str, list[Question]], seed: int, path: Path) -> dict[str, list[Row]]:
        """See BaseEnvironment. Trains on ``train_hops`` alone; each control repeats the test questions."""
        hops, test = self.settings.train_hops, splits.get("test", [])
        self._require_controls(test, path)
        train = [each for each in splits["train"] if not hops or each.hops in hops]
        rows = {split: self._rows(each, split, split) for split, each in (splits | {"train": train}).items()}
        if "test" in rows:
            rows["test"] += self._control_rows(test, seed)
        return rows

    def _rows(self, questions: Sequence[Question], split: str, source: str) -> list[Row]:
        return training_rows(questions, split, source, by_hops=True)

    def _control_rows(self, questions: list[Question], seed: int) -> list[Row]:
        """The same questions once more for each control, with texts of other questions as decoys."""
        rng, texts = random.Random(seed), list(dict.fromkeys(each.question for each in questions))
        rows = []
        for control in self.settings.controls:
            for row in self._rows(questions, "test", control):
                others = rng.sample(texts, min(DECOYS + 1, len(texts)))
                decoys = [text for text in others if text != row["extra_info"]["question"]][:DECOYS]
                row["extra_info"] |= {"control": control, "decoys": decoys}
                rows.append(row)
        return rows

    def _require_controls(self, questions: list[Question], path: Path) -> None:
        """Raises DataError if the control shuffled has no other question to search for."""
        if SHUFFLED in self.settings.controls and len({each.question for each in questions}) == 1:
            raise DataError(
                f"{path}: the control shuffled searches for another question, and all test questions are one "
                f"text; give others, or research.controls=[{CLOSED_BOOK}]"
            )

    async def play(self, row: Row, generate: Generate, tokens: TokenProtocol) -> Trajectory:
        """See BaseEnvironment."""
        info, golden = row["extra_info"], row["reward_model"]["ground_truth"]["target"]
        tools = [self._controlled(tool, info) for tool in self.tools]
        prompt_ids = build_prompt(self.settings.prompt, info["question"], tokens)
        trajectory = await run_episode(prompt_ids, generate, tools, tokens, self.settings.limits)
        metadata = json.loads(info.get("metadata") or "{}")  # rows of an older run have none
        reference = Reference(info["question"], tuple(map(str, golden)), tokens.protocol, metadata)
        reward = await self.reward(trajectory, reference)
        trajectory.reward, trajectory.reward_reason = reward.score, reward.reason
        trajectory.metrics = self.measure(trajectory, reference)
        trajectory.metrics |= {f"reward/{name}": value for name, value in reward.metrics.items()}
        trajectory.metadata = {
            "golden_answers": list(reference.golden_answers),
            "supporting_ids": [str(each) for each in info["supporting_ids"]],
        }
        return trajectory

    def _controlled(self, tool: Tool, info: dict[str, Any]) -> Tool:
        if not tool.searches:
            return tool
        return replace(tool, function=controlled(tool.function, info["control"], list(info["decoys"])))

    def measure(self, trajectory: Trajectory, reference: Reference) -> dict[str, float]:
        """What is measured of each finished trajectory, whatever its reward."""
        protocol, golden_answers = reference.protocol, reference.golden_answers
        answer = answer_of(trajectory, protocol) or ""
        valid = ended(trajectory) and format_fault(trajectory.model_turns, protocol) is None
        asked = trajectory.asked_searches
        failed = sum(call.error is not None for call in asked)
        others = [tool.name for tool in self.tools if not tool.searches]
        called = [call.tool for call in trajectory.calls]
        return {
            "em": exact_match(answer, golden_answers),
            "f1": token_f1(answer, golden_answers),
            "format_valid": float(valid),
            "searches": float(len(trajectory.searches)),
            "failed_searches": float(failed),
            "asked_searches": float(len(asked)),
            "response_tokens": float(trajectory.response_length),
            "cut_by_length": float(trajectory.finish_reason == "length"),
            **{f"{name}_calls": float(called.count(name)) for name in others},
        }
