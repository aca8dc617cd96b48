"""A control: a tiny policy trained on clean demonstrations alone, for as long as by cold start and GRPO.

It shows whether reinforcement learning was worth it, on the same test questions.
`bash recipes/train_musique.sh --supervised-control` runs it after the training. Its results go into
RUN_DIR/controls.jsonl, and from there into the table and the report as rows of their own.
"""

import json
from pathlib import Path

from omegaconf import OmegaConf

from research.files import append_line
from research.training.run.options import Command, module_command
from research.training.run.plan import RunPlan
from research.training.run_files import read_metrics
from research.training.watch.table import held_out

SUPERVISED_FOLDER = "supervised"


def supervised_command(plan: RunPlan) -> Command:
    """Trains the supervised policy, with the run's seed, for the seconds of cold start and GRPO steps.

    Those of the cold start are in its folder; evaluations and start-up do not count.
    """
    cold_start = json.loads((Path(plan.inputs.model) / "cold_start.json").read_text(encoding="utf-8"))
    steps = (row.get("timing_s/step", 0.0) for row in read_metrics(plan.options.run_dir))
    seconds = float(cold_start["seconds"] + sum(steps))
    policy = plan.options.run_dir / SUPERVISED_FOLDER / "policy"
    arguments = ("--out", policy, "--clean", "--seconds", round(seconds), "--seed", plan.options.seed)
    task = f"train a policy on clean demonstrations for {seconds:.0f} s"
    return module_command(task, "research.datasets.mini.policy", *arguments, creates=policy)


def prepare_judging(plan: RunPlan) -> Command:
    """Write the configuration for an evaluation of that policy; returns the command that evaluates."""
    folder = plan.options.run_dir / SUPERVISED_FOLDER
    config = OmegaConf.load(plan.options.run_dir / "config.yaml")
    config.research.run_dir = str(folder)
    config.actor_rollout_ref.model.path = str(folder / "policy")
    config.trainer.val_only = config.trainer.val_before_train = True
    config.trainer.resume_mode = "disable"
    OmegaConf.save(config, folder / "config.yaml")
    return module_command("judge it", "research.training.verl.launch", folder, "--die-with-parent")


def record_results(run_dir: Path) -> None:
    """Put the results into controls.jsonl of the run, in place of earlier ones."""
    (run_dir / "controls.jsonl").unlink(missing_ok=True)
    for (control, source), result in sorted(held_out(run_dir / SUPERVISED_FOLDER, "test", 0).items()):
        if not control:
            name = f"{SUPERVISED_FOLDER}: {source}"
            row = {"name": name, "questions": result.questions, **result.means}
            append_line(run_dir / "controls.jsonl", json.dumps(row))
