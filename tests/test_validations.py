"""Which checkpoint is handed over, from validations to files."""

from collections import Counter
from types import SimpleNamespace

import pytest
from omegaconf import OmegaConf
from run_folder import episode, make_run, step_row, write_episodes, write_rows

from research.environments.question_answering import HEADLINE
from research.training.run.export import export
from research.training.watch.report import write_training_report
from research.training.watch.table import table_rows
from research.training.watch.validations import (
    DataSetScore,
    best_checkpoint,
    best_step,
    data_set_scores,
    final_checkpoint,
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
    assert data_set_scores(found) == {"2hop": DataSetScore(0.5, 10), "4hop": DataSetScore(0.1, 30)}
    assert data_set_scores(
        score_metrics({"val-core/validation/em/mean@1": 1.0}, {"validation": 5}, "em")
    ) == {"all": DataSetScore(1.0, 5)}


def test_the_best_step_is_a_trained_one_and_of_equal_ones_the_later():
    rows = [validated(0, 0.9), validated(10, 0.5), step_row(11), validated(20, 0.5), validated(30, 0.4)]
    assert best_step(rows) == 20 and best_step(rows[:1]) is None
    assert best_step(rows, least=0) == 0 and best_step(rows[1:], least=0) == 20


def test_validations_without_gain_are_counted_from_the_best_of_all():
    rows = [validated(0, 0.9), validated(10, 0.5), step_row(11), validated(20, 0.5), validated(30, 0.4)]
    assert validations_without_gain(rows) == 3, "the start was better than all that came"
    assert validations_without_gain(rows[1:]) == 1, "of equal ones the later counts"
    assert validations_without_gain(rows[:1]) == validations_without_gain([]) == 0


def test_a_training_that_only_harms_is_told_so():
    rows = [validated(0, 0.9), validated(2, 0.1, **{"validation/evaluated_step": 2.0})]
    assert provenance(rows, "EM").endswith(
        "step 2, mean validation EM 0.100, less than before the training (0.900)"
    )


@pytest.mark.parametrize(
    ("keep", "save_freq", "saved"), [("last", 5, [2]), ("best", 5, [1, 2]), ("last", -1, [])]
)
def test_an_early_end_leaves_the_checkpoint_of_its_step(tmp_path, monkeypatch, keep, save_freq, saved):
    """veRL's part, asking questions and writing checkpoints, is scripted; what follows from it is not."""
    from verl.trainer.ppo.v1.trainer_sync import PPOTrainerSync

    from research.training.verl.trainer import SearchTrainer

    scores, written = {0: 0.5, 1: 0.6, 2: 0.4}, []
    run_dir = make_run(tmp_path / "run")
    trainer = object.__new__(SearchTrainer)
    trainer.config = OmegaConf.create(
        {
            "trainer": {
                "val_only": False,
                "save_freq": save_freq,
                "default_local_dir": str(run_dir / "checkpoints"),
            }
        }
    )
    trainer.research = SimpleNamespace(
        run_dir=run_dir, keep=keep, early_stop=1, environment=SimpleNamespace(headline=HEADLINE)
    )
    trainer.questions, trainer.total_training_steps = Counter(validation=10), 9
    trainer.start_val_dataloader = trainer.small_val_dataloader = trainer.test_val_dataloader = [None]
    monkeypatch.setattr(
        PPOTrainerSync, "_validate", lambda self: {"val-core/validation/em/mean@1": scores[self.global_steps]}
    )
    monkeypatch.setattr(
        PPOTrainerSync,
        "_save_checkpoint",
        lambda self: written.append(self.global_steps) or save(run_dir, self.global_steps),
    )
    monkeypatch.setattr(SearchTrainer, "_judge", lambda self: {})
    for trainer.global_steps in scores:
        write_rows(run_dir, {"step": trainer.global_steps, **trainer._validate()})
    assert trainer.total_training_steps == 2 and written == saved


def test_the_best_checkpoint_outlives_the_one_it_came_from(tmp_path):
    assert final_checkpoint(tmp_path, "best") is None and best_checkpoint(tmp_path) is None
    first = save(tmp_path, 10)
    keep_as_best(tmp_path, 10)
    assert (first / "actor" / "model.pt").stat().st_nlink == 2, "no second copy on the disk"
    for path in (first / "actor" / "model.pt", first / "actor", first):  # as veRL rotates
        path.unlink() if path.is_file() else path.rmdir()
    save(tmp_path, 20)
    step, folder = final_checkpoint(tmp_path, "best")
    assert step == 10 and (folder / "actor" / "model.pt").read_text() == "weights 10"
    assert final_checkpoint(tmp_path, "last") == (20, tmp_path / "checkpoints" / "global_step_20")


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
    assert (final_checkpoint(tmp_path, "best")[1] / "actor" / "model.pt").read_text() == "weights 10"


def test_a_policy_that_is_written_already_is_named(tmp_path, capsys):
    save(tmp_path, 10)
    (tmp_path / "config.yaml").write_text("research: {keep: last}\n")
    (tmp_path / "policy").mkdir()
    (tmp_path / "policy" / "step.txt").write_text("global_step_10\n")
    export(tmp_path)
    assert f"the policy of step 10 is in {tmp_path / 'policy'}" in capsys.readouterr().out
    assert not (tmp_path / "logs").exists()


def test_table_and_report_are_of_the_policy_that_is_handed_over_and_name_its_step(tmp_path):
    run = make_run(tmp_path / "run")
    judged = {"validation/evaluated_step": 2.0}
    write_rows(run, validated(2, 0.8), step_row(3), validated(4, 0.2, **judged))
    for step, em in ((0, 0.0), (2, 1.0), (4, 0.0)):
        write_episodes(run, "validation", step, episode(1, em, source="validation_2hop"))
    (row,) = table_rows(run)
    assert row.before.value == 0 and row.after.value == 1
    line = "step 2, mean validation EM 0.800, the best of all validations (step 4, the last: 0.200)"
    assert provenance([validated(2, 0.8), validated(4, 0.2, **judged)], "EM").endswith(line)
    assert line in write_training_report(run).read_text()


def test_a_run_that_goes_on_says_nothing_of_a_policy_that_is_not_judged(tmp_path):
    assert provenance([validated(2, 0.8), validated(4, 0.2)], "EM") == ""
