"""The table of held-out results before and after a training, as rows and as text.

The rows come from the files of the whole test set, ``trajectories/test_step_N.jsonl``, or, in a run without
them, from ``validation_step_N.jsonl``. Results measured elsewhere may be in RUN_DIR/controls.jsonl, one
object per line: ``{"name": "a", "questions": 500, "em": 0.9, "searches": 2.0, "format_valid": 1.0}``.
"""

import json
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from research.environments.controls import CONTROLS
from research.environments.headline import Headline, Result
from research.episode.trajectory import Trajectory
from research.files import write_atomically
from research.training.config import headline_of
from research.training.run_files import TRAJECTORY_FILE, History, read_metrics, read_step
from research.training.watch.validations import evaluated_step, validated_scores
from research.values import AT_LEAST_0, FROM_0_TO_1, TEXT, check, integer

NO_TEST = "\nThese questions also drew the curve: the run has no test questions of its own (--test)."
COUNTS = ("searches", "failed_searches", "response_tokens")  # may be above 1
CONTROL_ORDER = ("", *CONTROLS)  # of the table: real search, then the controls


class EpisodeKey(NamedTuple):
    """A held-out episode. ``control`` says how its searches were answered, one of CONTROL_ORDER."""

    control: str
    source: str
    id: str
    sample: int


@dataclass(frozen=True)
class TableRow:
    """One source of questions, with a result before the training, after it, or both."""

    name: str
    before: Result | None
    after: Result | None
    control: str = ""

    @property
    def results(self) -> list[Result]:
        """Those there are."""
        return [result for result in (self.before, self.after) if result]

    def cells(self) -> tuple[str, ...]:
        """One text for each column of the table; ``-`` where nothing was measured."""
        counts = dict.fromkeys(str(result.questions) for result in self.results)
        return (self.name, " -> ".join(counts), *self.results[0].headline.cells(self.before, self.after))


def header_of(headline: Headline) -> tuple[str, ...]:
    """The names of the columns."""
    return ("held out", "questions", *headline.header)


def held_out_steps(run_dir: Path, split: str) -> list[int]:
    """The steps with held-out trajectories, in order."""
    names = (path.name for path in (run_dir / "trajectories").glob(f"{split}_step_*.jsonl"))
    return sorted({int(match[2]) for name in names if (match := TRAJECTORY_FILE.fullmatch(name))})


class HeldOut:
    """The held-out episodes of a run: of its test set if that was evaluated, else of its validation.

    ``after`` is the step whose policy counts as "after the training"; None if there is none yet. The test
    questions are answered by the final policy alone, and count once all are. Validation questions are
    answered at many steps: that of the final policy counts once the run has ended, the last one until then.
    """

    def __init__(self, run_dir: Path) -> None:
        self.run_dir, self.headline = run_dir, headline_of(run_dir)
        self.split = "test" if held_out_steps(run_dir, "test") else "validation"
        steps = [step for step in held_out_steps(run_dir, self.split) if step > 0]
        rows = read_metrics(run_dir)
        final, whole = evaluated_step(rows), validated_scores(rows)
        so_far = [step for step in steps if self.split == "validation" and step in whole]
        self.after = final if final in steps else max(so_far, default=None)

    @property
    def remark(self) -> str:
        """What readers of the table must know."""
        return "" if self.split == "test" else NO_TEST

    def episodes(self, step: int | None) -> Iterator[tuple[EpisodeKey, Trajectory]]:
        """The episodes of a step, streamed: as objects they can take gigabytes."""
        for trajectory in read_step(self.run_dir, step, self.split) if step is not None else ():
            data = trajectory.metadata
            # Runs from before there were controls have no such key: all their searches were real.
            key = (data.get("control", ""), data["data_source"], data["id"], data["sample"])
            yield EpisodeKey(*key), trajectory

    def metrics(self, step: int | None) -> dict[EpisodeKey, dict[str, float]]:
        """Metrics of a step's episodes, each once, even if a killed evaluation was repeated."""
        return {key: trajectory.metrics for key, trajectory in self.episodes(step)}

    def results(self, step: int | None) -> dict[tuple[str, str], Result]:
        """The results of a step by control and data source."""
        groups: dict[tuple[str, str], list[dict[str, float]]] = defaultdict(list)
        for key, row in self.metrics(step).items():
            groups[key.control, key.source].append(row)
        return {key: self.headline.result(rows) for key, rows in groups.items()}


def table_rows(run_dir: Path) -> list[TableRow]:
    """The rows of the run: real search first, then the controls, then those of controls.jsonl.

    Raises:
        ValueError: a line of controls.jsonl has missing or wrong keys; names file and line.
    """
    held_out = HeldOut(run_dir)
    before, after = (held_out.results(step) for step in (0, held_out.after))
    keys = sorted({*before, *after}, key=lambda key: (CONTROL_ORDER.index(key[0]), key[1]))
    rows = [TableRow(key[1], before.get(key), after.get(key), key[0]) for key in keys]
    return [*rows, *_measured_elsewhere(run_dir / "controls.jsonl", held_out.headline)]


def note_controls(run_dir: Path, name: str, results: Mapping[str, Result]) -> None:
    """Write results by source to controls.jsonl; of its lines those of another name stay."""
    path = run_dir / "controls.jsonl"
    lines = [line.removesuffix("\n") for line in path.open(encoding="utf-8")] if path.exists() else []
    kept = [line for line in lines if not re.search(rf'"name":\s*"{re.escape(name)}: ', line)]
    for source, result in sorted(results.items()):
        row = {"name": f"{name}: {source}", "questions": result.questions, **result.means}
        kept.append(json.dumps(row))
    write_atomically(path, "".join(f"{line}\n" for line in kept))


def _measured_elsewhere(path: Path, headline: Headline) -> Iterator[TableRow]:
    needed = ("name", "questions", *headline.measures)
    measures = (*headline.measures, headline.failure[0])
    rules = {"name": TEXT, "questions": integer(1), "spread": AT_LEAST_0}
    rules |= {name: AT_LEAST_0 if name in COUNTS else FROM_0_TO_1 for name in measures}
    for number, line in enumerate(path.open(encoding="utf-8") if path.exists() else (), start=1):
        try:
            values = json.loads(line)
            check(values, rules)
            if wrong := {*values.keys() - rules.keys(), *set(needed) - values.keys()}:
                raise ValueError(f"{', '.join(sorted(wrong))} unknown or missing")
            name, count, spread = values.pop("name"), values.pop("questions"), values.pop("spread", 0.0)
            yield TableRow(name, None, Result(headline, count, values, spread), "elsewhere")
        except (ValueError, TypeError, AttributeError) as error:
            raise ValueError(
                f"{path}, line {number}: not an object with {', '.join(needed)}: {error}"
            ) from error


def as_text(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table for a terminal, one line per row: the first column to the left, the others to the right."""
    lines = [header, *rows]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join([line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])]) for line in lines
    )


def failures_warning(rows: list[TableRow], headline: Headline) -> str:
    """One line if searches of the table's episodes failed, which makes its figures too low; else empty."""
    failed = round(sum(result.failures * result.questions for row in rows for result in row.results))
    if not failed:
        return ""
    return (
        f"WARNING: {failed} {headline.failure[1]}, so the figures are too low: was the retriever "
        "gone or the machine overloaded? The reasons are in trajectories/"
    )


def untaught_warning(history: History) -> str:
    """One line if all samples of each question earned the same in every step; else empty."""
    shares = [row["search/equal_groups"] for row in history if "search/equal_groups" in row]
    if not shares or min(shares) < 1:
        return ""
    return (
        "WARNING: rewards taught nothing: in every step all samples of each question earned the same. Give "
        "easier questions, more samples, a graded reward, or a longer cold start"
    )
