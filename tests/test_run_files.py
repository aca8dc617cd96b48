"""Files of a run that a crash left behind: mended where that is safe, else named with file and line."""

import json
import shutil
import zipfile

import pytest
from click.testing import CliRunner
from ray.exceptions import OutOfMemoryError
from run_folder import episode, make_run, step_row, write_episodes, write_rows
from test_recipe_options import compose, options, run_main

from research.files import whole_lines
from research.judge import read_verdicts
from research.training.run import execute
from research.training.run.execute import _cause
from research.training.run.plan import make_plan
from research.training.run_files import (
    DamagedFile,
    forget_steps_after,
    latest_checkpoint,
    mend_tracker,
    note_trained,
    read_metrics,
    read_step,
    read_trained,
    trajectory_path,
)
from research.training.verl.launch import root_cause
from research.training.watch.report import main as report


def save(run_dir, step, cut=None):
    """A checkpoint as veRL writes it; `cut` names the file that a crash left unfinished."""
    folder = run_dir / "checkpoints" / f"global_step_{step}"
    (folder / "actor").mkdir(parents=True)
    for name in ("actor/model_world_size_1_rank_0.pt", "actor/optim_world_size_1_rank_0.pt", "data.pt"):
        with zipfile.ZipFile(folder / name, "w") as file:
            file.writestr("weights", b"1234")
        if name == cut:
            (folder / name).write_bytes((folder / name).read_bytes()[:20])
    return run_dir / "checkpoints" / "latest_checkpointed_iteration.txt"


@pytest.mark.parametrize("content", [b"", b"\n", b"abc", b"-1", b"\0\0", b"\xff", b"40"])
def test_a_damaged_tracker_names_the_newest_whole_checkpoint_again(tmp_path, content):
    save(tmp_path, 9), save(tmp_path, 20, cut="data.pt")
    tracker = save(tmp_path, 10)
    (tmp_path / "checkpoints" / "global_step_30").mkdir()
    tracker.write_bytes(content)
    assert latest_checkpoint(tmp_path) == 10
    warning = mend_tracker(tmp_path)
    assert warning.startswith("WARNING") and "step 10" in warning and "\n" not in warning
    assert int(tracker.read_bytes().decode()) == 10, "as veRL reads it"
    assert mend_tracker(tmp_path) is None


def test_a_tracker_is_left_alone_where_it_names_a_checkpoint_or_is_not_there(tmp_path):
    tracker = save(tmp_path, 10)
    assert mend_tracker(tmp_path) is None and latest_checkpoint(tmp_path) is None
    tracker.write_text("10")
    save(tmp_path, 20)
    assert mend_tracker(tmp_path) is None and latest_checkpoint(tmp_path) == 10


def test_a_damaged_tracker_without_a_whole_checkpoint_is_not_started_over_silently(tmp_path):
    tracker = save(tmp_path, 10, cut="actor/optim_world_size_1_rank_0.pt")
    tracker.write_text("")
    with pytest.raises(DamagedFile, match="none beside it is whole"):
        mend_tracker(tmp_path)
    assert tracker.exists()


@pytest.mark.parametrize("line", ["{", "", "[]", "{}", '{"step": "3"}', '{"step": 3, "a": [1]}', "\x00"])
def test_a_damaged_row_of_metrics_is_named_by_file_and_line(tmp_path, line):
    run = make_run(tmp_path / "run")
    write_rows(run, step_row(1))
    with (run / "metrics.jsonl").open("a") as file:
        file.write(line + "\n")
    with pytest.raises(DamagedFile, match="metrics.jsonl, line 2: ") as raised:
        read_metrics(run)
    assert "\n" not in str(raised.value) and "remove that line" in str(raised.value)
    result = CliRunner().invoke(report, [str(run)])
    assert result.exit_code == 1 and result.output.startswith(f"Error: {run / 'metrics.jsonl'}, line 2")


def test_going_on_with_damaged_metrics_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setattr("research.processes.adopt_orphans", lambda: None)
    monkeypatch.setattr("research.processes.raise_on_terminate", lambda: None)
    monkeypatch.setattr("research.training.run.execute.problems", lambda plan: [])
    run = options(tmp_path).run_dir
    save(run, 10).write_text("")
    options(tmp_path).save(run / "recipe.json")
    (run / "metrics.jsonl").write_text("{\n")
    result = run_main("--run-dir", run, "--resume")
    assert result.exit_code == 1 and isinstance(result.exception, SystemExit), result.output
    assert "named no checkpoint" in result.output
    assert f"Error: {run / 'metrics.jsonl'}, line 1: no JSON" in result.output
    assert latest_checkpoint(run) == 10


def test_a_torn_line_among_trajectories_is_named_by_file_and_line(tmp_path):
    run = make_run(tmp_path / "run")
    write_rows(run, step_row(1))
    write_episodes(run, "test", 0, episode(1, 1.0), episode(2, 0.0), episode(3, 1.0))
    path = trajectory_path(run, 0, "test")
    first, second, third = path.read_text().splitlines(keepends=True)
    path.write_text(first + second[:50] + third)
    result = CliRunner().invoke(report, [str(run)])
    assert result.exit_code == 1 and len(result.output.strip().splitlines()) == 1
    assert result.output.startswith(f"Error: {path}, line 2: no trajectory")


def test_what_is_asked_again_is_not_appended_to_an_unfinished_line(tmp_path):
    run = make_run(tmp_path / "run")
    write_episodes(run, "test", 4, episode(1, 1.0), episode(2, 0.0))
    path, other = trajectory_path(run, 4, "test"), tmp_path / "run" / "trajectories" / "my_step_notes.jsonl"
    path.write_bytes(path.read_bytes()[:-30])
    other.write_text("unfinished")
    forget_steps_after(run, 4)
    write_episodes(run, "test", 4, episode(2, 0.0))
    assert [each.metadata["id"] for each in read_step(run, 4, "test")] == ["q1", "q2"]
    assert other.read_text() == "unfinished", "of no run"


@pytest.mark.parametrize(
    ("said", "free", "expected"),
    [
        ("", 10**6, "the disk of {} is full (1.0 MB are free)"),
        ("OSError: x", 10**6, "the disk of {} is full (1.0 MB are free); OSError: x"),
        ("OSError: x", 10**9, "OSError: x"),
        ("", 10**9, "its process ended without an error message"),
    ],
)
def test_a_full_disk_is_named_as_the_cause(tmp_path, monkeypatch, said, free, expected):
    usage = type(shutil.disk_usage(tmp_path))(10**12, 10**12 - free, free)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs" / "error.txt").write_text(said)
    assert _cause(tmp_path) == expected.format(tmp_path)


def test_a_full_memory_is_told_without_rays_settings():
    """As Ray's error has it, which goes on for lines about how to switch its watch off."""
    told = (
        "4 worker(s) were killed due to the node running low on memory. Memory on the node (ID: 7c)"
        " was 22.67GB used / 23.54GB limit (0.962831)\nRefer to the documentation on how to address this."
    )
    reason = root_cause(OutOfMemoryError(told))
    assert "22.67GB used / 23.54GB" in reason and "--resume" in reason and "documentation" not in reason


def test_the_last_evaluation_is_made_up_for_where_the_first_was_not_wanted(tmp_path, monkeypatch):
    """The run was killed in it, behind the last checkpoint."""
    plan = make_plan(options(tmp_path, steps=4))
    config = compose(tmp_path, "cpu", "trainer.val_before_train=false", steps=4)
    run_dir, wanted = plan.options.run_dir, []
    save(run_dir, 4).write_text("4")
    write_rows(run_dir, step_row(3))
    note_trained(run_dir, step_row(4))
    for name in ("settle", "_run"):
        monkeypatch.setattr(execute, name, lambda *_: None)

    def train(*given):
        wanted.append(given[2].trainer.val_before_train)
        write_rows(run_dir, {**read_trained(run_dir, 4), "step": 4, "validation/score": 0.5})

    monkeypatch.setattr(execute, "_train", train)
    config.trainer.total_training_steps = 4
    execute._prepare_and_train(plan, config)
    execute._prepare_and_train(plan, config)
    assert wanted == [True], "the second time it is finished"
    assert read_metrics(run_dir)[-1].keys() == {*step_row(4), "validation/score"}
    assert read_trained(run_dir, 3) == {}


def test_a_control_that_learned_for_another_time_is_forgotten(tmp_path):
    folder = tmp_path / "supervised"
    (folder / "policy").mkdir(parents=True)
    for seconds, kept in (("60", True), ("60", True), ("90", False)):
        execute._forget_shorter_control(folder, seconds)
        assert (folder / "policy").exists() == kept


@pytest.mark.parametrize("cut", [1, 2, 3])
def test_a_line_that_was_cut_within_a_character_is_left_out(tmp_path, cut):
    path = tmp_path / "lines.jsonl"
    path.write_bytes(
        '{"key": "a", "right": true, "reason": "ja"}\n{"key": "b", "right": "😀"'.encode()[:-cut]
    )
    assert [json.loads(line)["key"] for line in whole_lines(path)] == ["a"]
    assert read_verdicts(path).keys() == {"a"}
