"""Which checkpoint is handed over, from validations to files."""

import pytest
from run_folder import episode, make_run, step_row, write_episodes, write_rows

from research.training.report import write_report
from research.training.table import table_rows
from research.training.validations import (
    Score,
    best_checkpoint,
    best_step,
    data_set_scores,
    handed_over,
    keep_as_best,
    provenance,
    score_metrics,
    validations_without_gain,
)


def validated(step, score, **more):
    return step_row(step, **{"validation/score": score}, **more)


def save(run_dir, step, content="weights"):
    """A checkpoint as veRL writes it: the tracker last."""
    folder = run_dir / "checkpoints" / f"global_step_{step}" / "actor"
    folder.mkdir(parents=True)
    (folder / "model.pt").write_text(f"{content} {step}")
    (run_dir / "checkpoints" / "latest_checkpointed_iteration.txt").write_text(str(step))
    return folder.parent


def test_scores_come_from_verls_metrics_by_data_set():
    metrics = {
        "val-core/validation_2hop/em/mean@1": 0.5,
        "val-aux/validation_4hop/em/mean@1": 0.1,
        "val-aux/validation_4hop/f1/mean@1": 0.7,
        "val-aux/test_2hop/em/mean@1": 0.9,
    }
    found = score_metrics(metrics, {"validation_2hop": 10, "validation_4hop": 30}, "em")
    assert found["validation/score"] == pytest.approx(0.3), "each data set counts the same"
    assert data_set_scores(found) == {"2hop": Score(0.5, 10), "4hop": Score(0.1, 30)}
    assert data_set_scores(
        score_metrics({"val-core/validation/em/mean@1": 1.0}, {"validation": 5}, "em")
    ) == {"all": Score(1.0, 5)}


def test_the_best_step_is_a_trained_one_and_of_equal_ones_the_later():
    rows = [validated(0, 0.9), validated(10, 0.5), step_row(11), validated(20, 0.5), validated(30, 0.4)]
    assert best_step(rows) == 20
    assert validations_without_gain(rows) == 1
    assert best_step(rows[:1]) is None and validations_without_gain(rows[:1]) == 0


def test_the_best_checkpoint_outlives_the_one_it_came_from(tmp_path):
    assert handed_over(tmp_path, "best") is None and best_checkpoint(tmp_path) is None
    first = save(tmp_path, 10)
    keep_as_best(tmp_path, 10)
    assert (first / "actor" / "model.pt").stat().st_nlink == 2, "no second copy on the disk"
    for path in (first / "actor" / "model.pt", first / "actor", first):  # as veRL rotates
        path.unlink() if path.is_file() else path.rmdir()
    save(tmp_path, 20)
    step, folder = handed_over(tmp_path, "best")
    assert step == 10 and (folder / "actor" / "model.pt").read_text() == "weights 10"
    assert handed_over(tmp_path, "last") == (20, tmp_path / "checkpoints" / "global_step_20")


def test_a_better_checkpoint_takes_the_place_of_the_best(tmp_path):
    for step in (10, 20):
        save(tmp_path, step)
        keep_as_best(tmp_path, step)
    assert [path.name for path in (tmp_path / "checkpoints" / "best").iterdir()] == ["global_step_20"]


def test_what_a_kill_left_half_linked_is_made_anew(tmp_path):
    save(tmp_path, 10)
    (tmp_path / "checkpoints" / "best" / "new" / "actor").mkdir(parents=True)
    keep_as_best(tmp_path, 10)
    assert best_checkpoint(tmp_path) == 10
    assert (handed_over(tmp_path, "best")[1] / "actor" / "model.pt").read_text() == "weights 10"


def test_table_and_report_are_of_the_policy_that_is_handed_over_and_name_its_step(tmp_path):
    run = make_run(tmp_path / "run")
    judged = {"validation/evaluated_step": 2.0}
    write_rows(run, validated(2, 0.8), step_row(3), validated(4, 0.2, **judged))
    for step, em in ((0, 0.0), (2, 1.0), (4, 0.0)):
        write_episodes(run, "validation", step, episode(1, em, source="validation_2hop"))
    (row,) = table_rows(run)
    assert row.before.em == 0 and row.after.em == 1
    line = "step 2, mean validation EM 0.800, the best of all validations (step 4, the last: 0.200)"
    assert provenance([validated(2, 0.8), validated(4, 0.2, **judged)], "EM").endswith(line)
    assert line in write_report(run).read_text()


def test_a_run_that_goes_on_says_nothing_of_a_policy_that_is_not_judged(tmp_path):
    assert provenance([validated(2, 0.8), validated(4, 0.2)], "EM") == ""
