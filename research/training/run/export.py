"""A checkpoint as a Hugging Face folder, RUN_DIR/policy.tmp, which the recipe moves to RUN_DIR/policy.

    python -m research.training.run.export RUN_DIR CHECKPOINT

`export` has that done in a process of its own for the checkpoint that the run keeps.

veRL's own merger joins the shards, in the precision in which the policy was sampled: what was validated is
what is written. After a training with LoRA the adapter is in the weights, and in the folder lora_adapter.
"""

import json
import shutil
import sys
from pathlib import Path

import click
from omegaconf import OmegaConf

from research.processes import finish, start, tail
from research.training.config import LAST
from research.training.run.options import Command, RunFailed, module_command
from research.training.watch.validations import final_checkpoint

EXPORT_FOLDER, ADAPTER = "policy.tmp", "lora_adapter"


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("run_dir", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.argument("checkpoint", type=click.Path(exists=True, file_okay=False, path_type=Path))
def main(run_dir: Path, checkpoint: Path) -> None:
    """Merge the actor of CHECKPOINT, a folder global_step_N of the run in RUN_DIR."""
    from verl.model_merger.__main__ import main as merge

    import research.training.verl.packed_attention  # noqa: F401  (a configuration may name it)
    from research.training.verl.patches import merge_in

    section = OmegaConf.load(run_dir / "config.yaml").actor_rollout_ref
    dtype = section.rollout.dtype
    merge_in(dtype)
    actor, target = checkpoint / "actor", run_dir / EXPORT_FOLDER
    files = ["--local_dir", str(actor), "--target_dir", str(target)]
    sys.argv = ["verl.model_merger", "merge", "--backend", "fsdp", *files]
    merge()
    if (target / ADAPTER).exists():
        merge_adapter(target, dtype, section.model.path)
    path = target / "config.json"
    config = {**json.loads(path.read_text(encoding="utf-8")), "dtype": dtype}  # for loaders that name none
    config.pop("attn_implementation", None)  # the training's; others need not know it
    path.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def merge_adapter(policy: Path, dtype: str, base: str) -> None:
    """Put the adapter of a folder into the weights beside it, and note which model it belongs to."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(policy, dtype=dtype)
    PeftModel.from_pretrained(model, policy / ADAPTER).merge_and_unload().save_pretrained(policy)
    path = policy / ADAPTER / "adapter_config.json"
    config = {**json.loads(path.read_text(encoding="utf-8")), "base_model_name_or_path": base}
    path.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def export_command(run_dir: Path, checkpoint: Path) -> Command:
    task = "write the policy as a Hugging Face folder"
    return module_command(task, "research.training.run.export", run_dir, checkpoint)


def export(run_dir: Path) -> None:
    """Write the checkpoint that ``research.keep`` names as ``policy``, if it is not there yet.

    Raises:
        RunFailed: there is no checkpoint, or veRL's merger failed.
    """
    # A run from before there was this key kept no best checkpoint.
    keep = OmegaConf.select(OmegaConf.load(run_dir / "config.yaml"), "research.keep", default=LAST)
    chosen = final_checkpoint(run_dir, keep)
    if chosen is None:
        raise RunFailed(f"{run_dir} has no checkpoint to export")
    step, checkpoint = chosen
    target, temporary = run_dir / "policy", run_dir / EXPORT_FOLDER
    stamp = f"global_step_{step}\n"
    if (target / "step.txt").exists() and (target / "step.txt").read_text() == stamp:
        click.echo(f"- the policy of step {step} is in {target}")
        return
    click.echo(f"- write the policy of step {step} to {target}")
    log = run_dir / "logs" / "export.log"
    if finish(start(export_command(run_dir, checkpoint).argv, log), patience=5) != 0:
        raise RunFailed(f"the export failed: {tail(log, 1)}; see {log}")
    (temporary / "step.txt").write_text(stamp)
    if target.exists():
        shutil.rmtree(aside := run_dir / f"policy-before-{step}", ignore_errors=True)
        target.rename(aside)
    temporary.rename(target)


if __name__ == "__main__":
    main()
