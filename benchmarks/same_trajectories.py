"""Same trajectories: an evaluation beside the validation of a training run, token by token.

    bash recipes/train_musique.sh --run-dir RUN --steps 1 --test-questions 30
    bash recipes/eval_multihop.sh --model POLICY --preset mini --out EVALUATION --corpus FILE --datasets TEST
    python -m benchmarks.same_trajectories RUN EVALUATION --step 0

POLICY is what the run trained, or with --step 0 what it began with; both asked greedily. Exits 1 unless
prompt, response, mask, passages and metrics of each question are the same.
"""

import sys
from pathlib import Path
from typing import Any

import click

from research.episode.trajectory import Trajectory
from research.evaluation.outputs.predictions import read_predictions
from research.training.run_files import read_trajectories, trajectory_path


@click.command()
@click.argument("run_dir", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.argument("evaluation", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--step", default=0, show_default=True)
@click.option("--split", default="test", show_default=True)
def main(run_dir: Path, evaluation: Path, step: int, split: str) -> None:
    """See the top of this file."""
    validated = {
        each.metadata["id"]: seen(each)
        for each in read_trajectories(trajectory_path(run_dir, step, split))
        if not each.metadata["control"]
    }
    evaluated = {each.metadata["id"]: seen(each) for each in read_predictions(evaluation)}
    both = validated.keys() & evaluated.keys()
    different = [name for name in both if validated[name] != evaluated[name]]
    print(
        f"{len(validated)} validated, {len(evaluated)} evaluated, {len(both)} both: {len(different)} differ"
    )
    sys.exit(1 if different or not both or len(both) < len(evaluated) else 0)


def seen(trajectory: Trajectory) -> dict[str, Any]:
    """What must be the same; times and scores' last digits hang on the run."""
    return {
        "prompt": trajectory.prompt_ids,
        "response": trajectory.response_ids,
        "mask": trajectory.response_mask,
        "finish": trajectory.finish_reason,
        "found": [[passage.id for passage in search.passages] for search in trajectory.searches],
        "metrics": {name: trajectory.metrics[name] for name in ("em", "f1", "searches", "format_valid")},
    }


if __name__ == "__main__":
    main()
