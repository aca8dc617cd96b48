"""A checkpoint as a Hugging Face folder: `python -m research.training.run.export RUN_DIR CHECKPOINT`.

The recipe calls it. Writes RUN_DIR/policy.tmp. veRL's own merger puts the shards together, in the precision
in which the policy was sampled: what was validated is what is written.
"""

import json
import sys
from pathlib import Path

import click
from omegaconf import OmegaConf

FOLDER = "policy.tmp"


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("run_dir", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.argument("checkpoint", type=click.Path(exists=True, file_okay=False, path_type=Path))
def main(run_dir: Path, checkpoint: Path) -> None:
    """Merge the actor of CHECKPOINT, a folder global_step_N of the run in RUN_DIR."""
    from verl.model_merger.__main__ import main as merge

    from research.training.verl.patches import merge_in

    dtype = OmegaConf.load(run_dir / "config.yaml").actor_rollout_ref.rollout.dtype
    merge_in(dtype)
    actor, target = checkpoint / "actor", run_dir / FOLDER
    files = ["--local_dir", str(actor), "--target_dir", str(target)]
    sys.argv = ["verl.model_merger", "merge", "--backend", "fsdp", *files]
    merge()
    _tell_dtype(target / "config.json", dtype)


def _tell_dtype(path: Path, dtype: str) -> None:
    """Who loads the folder without naming a precision takes this one."""
    config = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps({**config, "dtype": dtype}, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
