"""What a run writes, against the free space of the disks that it writes to."""

import os
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from research.datasets.hub import existing, free_space, size_text
from research.places import CACHE
from research.training.run.options import WIKI18, RecipeOptions
from research.training.run.plan import RunPlan
from research.training.run_files import latest_checkpoint
from research.training.sizes.memory import GB, SINGLE, adapter_parameters
from research.training.sizes.model import model_sizes
from research.training.sizes.wikipedia import space_for_wikipedia


class Need(NamedTuple):
    """Bytes that something will take in a folder."""

    path: Path
    size: int
    what: str


def disk_faults(plan: RunPlan) -> Iterator[str]:
    """One line for each disk without room for all that the run writes there."""
    by_disk: dict[int, list[Need]] = defaultdict(list)
    for need in (_run_folder(plan), Need(CACHE / WIKI18, *space_for_wikipedia(plan))):
        by_disk[_disk_of(need.path)] += [need] if need.size else []
    for needs in by_disk.values():
        free, needed = min((free_space(need.path) for need in needs), default=0), sum(n.size for n in needs)
        if free < needed:
            parts = " and ".join(f"{need.what} in {need.path} {size_text(need.size)}" for need in needs)
            total = f", {size_text(needed)} in all" if len(needs) > 1 else ""
            yield f"disk: {parts} of space needed{total}, {size_text(free)} are free"


def _run_folder(plan: RunPlan) -> Need:
    options, model = plan.options, plan.sized_model
    if options.on_cpu:
        size = GB + _written(options, model)
        return Need(options.run_dir, size, "the run folder (checkpoints, trajectories)")
    return Need(options.run_dir, _written(options, model), "the run folder (checkpoints, policy)")


def _written(options: RecipeOptions, model: str | None) -> int:
    """Bytes of the last two checkpoints and the best, in float32 with Adam's moments, and of the policy."""
    checkpoints = 3 if latest_checkpoint(options.run_dir) is None else 1  # of which the others are there
    if not model:
        return 0
    try:
        sizes = model_sizes(model)
        trained = adapter_parameters(sizes, options.lora_rank) if options.lora_rank else sizes.parameters
        return SINGLE * (checkpoints * (sizes.parameters + 2 * trained) + sizes.parameters)
    except ValueError:  # reported with what does not fit
        return 0


def _disk_of(path: Path) -> int:
    return os.stat(existing(path)).st_dev
