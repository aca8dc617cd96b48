"""The control that asks whether reinforcement learning was worth it: a tiny policy trained on clean
demonstrations alone, for as long as cold start and GRPO took together, judged on the same test questions.

`bash recipes/train_musique.sh --supervised-control` runs it after the training. Its results go into
RUN_DIR/controls.jsonl, which the table and the report show as rows of their own.
"""

import json
from pathlib import Path

from omegaconf import OmegaConf

from research.training.run.options import Command, module_command
from research.training.run.plan import Plan
from research.training.run_files import append_line, read_metrics
from research.training.watch.table import held_out

FOLDER = "supervised"


def training_seconds(plan: Plan, metrics: list[dict[str, float]]) -> float:
    """Seconds of the cold start, as its folder tells, and of all GRPO steps; evaluations and start-up left
    out.
    """
    cold_start = json.loads((Path(plan.source.model) / "cold_start.json").read_text(encoding="utf-8"))[
        "seconds"
    ]
    return float(cold_start + sum(row.get("timing_s/step", 0.0) for row in metrics))


def supervised_command(plan: Plan) -> Command:
    """Trains the supervised policy with the run's seed."""
    seconds = training_seconds(plan, read_metrics(plan.options.run_dir))
    policy = plan.options.run_dir / FOLDER / "policy"
    arguments = ("--out", policy, "--clean", "--seconds", round(seconds), "--seed", plan.options.seed)
    what = f"train a policy on clean demonstrations for {seconds:.0f} s"
    return module_command(what, "research.datasets.mini.policy", *arguments, creates=policy)


def prepare_judging(plan: Plan) -> Command:
    """Write the configuration of an evaluation of that policy, and the command that carries it out."""
    folder = plan.options.run_dir / FOLDER
    config = OmegaConf.load(plan.options.run_dir / "config.yaml")
    config.research.run_dir = str(folder)
    config.actor_rollout_ref.model.path = str(folder / "policy")
    config.trainer.val_only = config.trainer.val_before_train = True
    config.trainer.resume_mode = "disable"
    OmegaConf.save(config, folder / "config.yaml")
    return module_command("judge it", "research.training.verl.launch", folder, "--die-with-parent")


def record(run_dir: Path) -> None:
    """Put the results into controls.jsonl of the run, in place of earlier ones."""
    (run_dir / "controls.jsonl").unlink(missing_ok=True)
    for (control, source), result in sorted(held_out(run_dir / FOLDER, "test", 0).items()):
        if not control:
            row = {"name": f"{FOLDER}: {source}", "questions": result.questions, **result.means}
            append_line(run_dir / "controls.jsonl", json.dumps(row))
