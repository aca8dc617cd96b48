"""A small made-up run folder, for the tests of what people see of a run."""

import json
from pathlib import Path

from research.episode.trajectory import Call, Segment, Trajectory
from research.files import append_line
from research.training.run_files import write_trajectory


def step_row(step, **changes):
    """A row of metrics.jsonl as a training step writes it."""
    return {
        "step": step,
        "critic/score/mean": 0.1 * step,
        "actor/entropy": 0.5,
        "actor/ppo_kl": 0.0,
        "training/rollout_probs_diff_mean": 3e-7,
        "timing_s/step": 20.0,
        "timing_s/gen": 8.0,
        "timing_s/update_actor": 9.0,
        "perf/total_num_tokens": 50000,
        "search/em": 0.1 * step,
        "search/searches": 2.0,
        "search/response_tokens": 300.0,
        "search/format_valid": 0.9,
        "search/cut_by_length": 0.0,
        "search/equal_groups": 0.5,
        **changes,
    }


def write_rows(run_dir, *rows):
    for row in rows:
        append_line(run_dir / "metrics.jsonl", json.dumps(row))


def episode(number, em, *, source="test_2hop", control="", text="because", passage="passage", step=0):
    """An episode of one search. ``text`` is thought, ``passage`` is found."""
    segments = [
        Segment("model", [1], [-0.1], f"<think>{text}</think><search>who</search>"),
        Segment("environment", [2], [0.0], f" <result>\n{passage}\n</result>"),
        Segment("model", [3], [-0.1], "<answer>\\boxed{x}</answer>"),
    ]
    metadata = {"id": f"q{number}", "question": f"Question {number}?", "golden_answers": ["x", "y & z"]}
    return Trajectory(
        [0],
        segments,
        [Call("who")],
        "answer",
        reward=em,
        reward_reason="right answer" if em else "wrong answer",
        metrics={"em": em, "searches": 1.0, "format_valid": 1.0, "failed_searches": 0.0},
        metadata={**metadata, "data_source": source, "step": step, "sample": 0, "control": control},
    )


def write_episodes(run_dir, split, step, *episodes):
    for one in episodes:
        write_trajectory(run_dir, step, split, one)


def make_run(run_dir: Path, steps: int | None = 4) -> Path:
    """The files of a run that has been started and has not finished a step."""
    run_dir.mkdir()
    (run_dir / "recipe.json").write_text(json.dumps({"hardware": "cpu", "model": None, "overrides": ["a=b"]}))
    total = "null" if steps is None else steps
    (run_dir / "config.yaml").write_text(
        "research:\n  protocol: {think: think}\n  guards: {cut_share: 0.3}\n"
        "actor_rollout_ref: {model: {path: tiny}}\n"
        f"trainer: {{total_training_steps: {total}}}\n"
    )
    return run_dir
