"""What a person sees while a run goes on: lines, warnings, the table and its intervals."""

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from run_folder import episode, step_row, write_episodes, write_rows

from research.environments.query_rewriting import HEADLINE as REWRITINGS
from research.environments.question_answering import HEADLINE as ANSWERS
from research.metrics.answers import wilson_interval
from research.training.config import GuardConfig
from research.training.run_files import forget_steps_after, write_trajectory
from research.training.watch.episodes import choose_pairs
from research.training.watch.guards import failed_share
from research.training.watch.progress import StepPrinter
from research.training.watch.table import (
    HeldOut,
    as_text,
    failures_warning,
    header_of,
    held_out_steps,
    note_controls,
    table_rows,
    untaught_warning,
)
from research.training.watch.validations import EVALUATED_STEP
from research.viewer.files import Source

GUARDS = GuardConfig()


def test_rows_are_printed_once_and_those_of_before_are_history(tmp_path):
    write_rows(tmp_path, step_row(1))
    printer = StepPrinter(tmp_path, 4, GUARDS)
    assert printer.lines() == []
    write_rows(tmp_path, step_row(2, **{"val-aux/validation_2hop/em/mean@1": 0.25}))
    step, held_out = printer.lines()
    assert step.startswith("step     2/4") and step.endswith("40s left")
    assert "validation at step 2: EM 2hop 0.250" in held_out
    assert printer.lines() == []


@pytest.mark.parametrize(("searches", "warned"), [(0.0, True), (0.1, False)])
def test_a_policy_that_does_nothing_is_told_at_the_start(tmp_path, searches, warned):
    printer = StepPrinter(tmp_path, 4, GUARDS)
    values = {"em": 0.0, "format_valid": 0.0, "searches": searches}
    write_rows(tmp_path, {"step": 0, **{f"val-aux/validation/{k}/mean@1": v for k, v in values.items()}})
    assert any("neither searches nor answers" in line for line in printer.lines()) == warned


def test_an_unfinished_last_row_waits_for_its_end(tmp_path):
    write_rows(tmp_path, step_row(1))
    printer = StepPrinter(tmp_path, 4, GUARDS)
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 2, ')
    assert printer.lines() == []


def test_a_line_fits_the_terminal(tmp_path):
    printer = StepPrinter(tmp_path, 1550, GUARDS)
    large = {"critic/score/mean": 0.5, "search/em": 0.5, "perf/total_num_tokens": 9_000_000}
    large |= {"timing_s/step": 1318.2, "search/searches": 13.2, "search/response_tokens": 8351.0}
    write_rows(tmp_path, step_row(1200, **large))
    (line,) = printer.lines()
    assert len(line) <= 120 and "128.2h left" in line


def test_a_policy_that_is_only_judged_is_named(tmp_path):
    printer = StepPrinter(tmp_path, 4, GUARDS, whose="the supervised control")
    write_rows(tmp_path, {"step": 0, "val-aux/validation_2hop/em/mean@1": 0.25})
    assert printer.lines() == ["  validation of the supervised control: EM 2hop 0.250"]


def test_steps_of_unknown_number_have_no_end(tmp_path):
    printer = StepPrinter(tmp_path, None, GUARDS)
    write_rows(tmp_path, step_row(1))
    assert "left" not in printer.lines()[0]


def test_a_warning_is_printed_where_it_begins(tmp_path):
    bad = {"training/rollout_probs_diff_mean": 0.01}
    write_rows(tmp_path, step_row(1, **bad))
    printer = StepPrinter(tmp_path, None, GUARDS)
    write_rows(tmp_path, step_row(2, **bad), step_row(3), step_row(4, **bad), step_row(5, **bad))
    warnings = [line for line in printer.lines() if line.startswith("WARNING")]
    assert len(warnings) == 1 and warnings[0].startswith(
        "WARNING step 4: rollout and actor differ by 1.0e-02"
    )


def test_failed_searches_are_told_by_their_share(tmp_path):
    printer = StepPrinter(tmp_path, 9, GUARDS)
    failed = {"search/searches": 2.5, "search/failed_searches": 0.5}
    write_rows(tmp_path, step_row(1, **{"search/failed_searches": 0.0}), step_row(2, **failed))
    good, bad, warning = printer.lines()
    assert "failed" not in good and "  failed 20.0%  " in bad
    assert warning.startswith("WARNING step 2: 20.0% of the searches failed")


def test_texts_that_could_not_be_scored_are_told_by_their_share(tmp_path):
    printer = StepPrinter(tmp_path, 9, GUARDS, REWRITINGS)
    row = {"search/ndcg_at_10": 0.5, "search/original_ndcg": 0.1, "search/scoring_failed": 0.25}
    write_rows(tmp_path, step_row(1, **row))
    line, warning = printer.lines()
    assert "  failed 25.0%  " in line and "25.0% of the texts could not be scored" in warning


def test_searches_without_a_query_do_not_hide_that_no_retriever_answers():
    row = {"search/searches": 2.0, "search/asked_searches": 0.1, "search/failed_searches": 0.1}
    assert failed_share(row) == 1.0 and failed_share({**row, "search/asked_searches": 0.2}) == 0.5
    assert failed_share({"search/searches": 1.0, "search/asked_searches": 0.0}) == 0.0


def test_a_controls_rows_are_replaced_and_the_users_stay(tmp_path):
    mine = '{"name": "mine", "questions": 5, "em": 0.9, "searches": 2.0, "format_valid": 1.0}'
    (tmp_path / "controls.jsonl").write_text(mine)
    for em in (0.0, 1.0):
        write_episodes(tmp_path, "test", 0, episode(1, em))
        note_controls(tmp_path, "supervised", {"test": HeldOut(tmp_path).results(0)["", "test_2hop"]})
        (tmp_path / "trajectories" / "test_step_0.jsonl").unlink()
    first, second = (tmp_path / "controls.jsonl").read_text().splitlines()
    assert first == mine and json.loads(second)["name"] == "supervised: test"
    assert json.loads(second)["em"] == 1.0


def test_nan_is_warned_about(tmp_path):
    printer = StepPrinter(tmp_path, 4, GUARDS)
    write_rows(tmp_path, step_row(1, **{"actor/grad_norm": float("nan")}))
    assert any("WARNING step 1: actor/grad_norm is nan" in line for line in printer.lines())


def test_table_prefers_the_test_set_and_puts_controls_last(tmp_path):
    write_episodes(tmp_path, "validation", 4, episode(1, 1.0, source="validation_2hop"))
    for step, em in ((0, 0.0), (8, 1.0)):
        write_episodes(tmp_path, "test", step, *(episode(n, em) for n in range(10)))
        closed = episode(1, 0.0, source="closed_book_2hop", control="closed_book")
        write_episodes(tmp_path, "test", step, closed)
    (tmp_path / "controls.jsonl").write_text(
        '{"name": "supervised", "questions": 100, "em": 0.9, "searches": 2.0, "format_valid": 1.0}\n'
    )
    write_rows(tmp_path, {"step": 8, EVALUATED_STEP: 8.0})
    rows = table_rows(tmp_path)
    assert [row.name for row in rows] == ["test_2hop", "closed_book_2hop", "supervised"]
    assert rows[0].cells() == (
        "test_2hop",
        "10",
        "0.000 [0.000, 0.278]",
        "1.000 [0.722, 1.000]",
        "1.00 -> 1.00",
        "1.00 -> 1.00",
    )
    assert rows[2].before is None and rows[2].cells()[2] == "-"
    lines = as_text(header_of(ANSWERS), [row.cells() for row in rows]).splitlines()
    assert len(lines) == 4 and len({len(line) for line in lines}) == 1
    assert all(name in lines[0] for name in header_of(ANSWERS))


def test_searches_that_failed_are_told_beside_the_figures_they_spoil(tmp_path):
    good, bad = episode(1, 1.0), episode(2, 0.0)
    write_episodes(tmp_path, "test", 0, good)
    assert failures_warning(table_rows(tmp_path), ANSWERS) == ""
    bad.metrics["failed_searches"] = 3.0
    write_episodes(tmp_path, "test", 0, bad)
    assert "3 searches of these episodes failed" in failures_warning(table_rows(tmp_path), ANSWERS)


def test_rewards_that_taught_nothing_are_told():
    """Such a run has trained nothing, however many steps it shows."""
    equal, some = step_row(1, **{"search/equal_groups": 1.0}), step_row(2)
    assert "rewards taught nothing" in untaught_warning([equal, equal])
    assert untaught_warning([equal, some]) == untaught_warning([]) == ""


def test_runs_without_test_set_or_controls_are_judged_by_their_validation(tmp_path):
    old = episode(1, 1.0, source="validation_2hop")
    del old.metadata["control"]
    write_episodes(tmp_path, "validation", 0, old)
    (row,) = table_rows(tmp_path)
    assert row.before is not None and row.before.value == 1.0 and row.after is None


def test_an_evaluation_done_twice_counts_once(tmp_path):
    write_episodes(tmp_path, "test", 0, episode(1, 0.0), episode(2, 0.0), episode(1, 1.0))
    (row,) = table_rows(tmp_path)
    assert row.before is not None and (row.before.questions, row.before.value) == (2, 0.5)


def test_the_files_of_several_writers_are_read_as_one(tmp_path):
    for number, writer in enumerate(("", "node-a.example.org-12", "node-b-7")):
        for step in (0, 1, 10):
            write_trajectory(tmp_path, step, "test", episode(number, float(step == 10)), writer)
    assert held_out_steps(tmp_path, "test") == [0, 1, 10]
    write_rows(tmp_path, {"step": 10, EVALUATED_STEP: 10.0})
    (row,) = table_rows(tmp_path)
    assert row.before is not None and row.after is not None
    assert (row.before.questions, row.before.value, row.after.questions, row.after.value) == (3, 0.0, 3, 1.0)
    assert len(choose_pairs(tmp_path, 10)) == 3
    source = Source(tmp_path)
    while not source.refresh(1.0):
        pass
    assert len(source.rows) == 9 and {each.split for each in source.rows} == {"test"}
    forget_steps_after(tmp_path, 1)
    assert held_out_steps(tmp_path, "test") == [0, 1]


@pytest.mark.parametrize(
    "changes",
    [
        {"questions": None},
        {"questions": 0},
        {"questions": 2.5},
        {"em": 1.9},
        {"em": -0.1},
        {"em": "high"},
        {"searches": math.inf},
        {"format_valid": True},
        {"name": ""},
        {"other": 1},
    ],
)
def test_a_wrong_line_of_controls_is_named(tmp_path, changes):
    good = {"name": "a", "questions": 5, "em": 0.5, "searches": 2, "format_valid": 1.0}
    lines = [json.dumps(good), json.dumps({**good, **changes})]
    (tmp_path / "controls.jsonl").write_text("\n".join(lines) + "\n")
    with pytest.raises(ValueError, match="controls.jsonl, line 2"):
        table_rows(tmp_path)


@pytest.mark.parametrize(
    ("successes", "trials", "low", "high"),
    # R. G. Newcombe, Statistics in Medicine 17 (1998), table I, method 3.
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_wilson_interval_has_the_published_values(successes, trials, low, high):
    assert wilson_interval(successes, trials) == pytest.approx((low, high), abs=5e-5)


@given(st.integers(1, 5000).flatmap(lambda trials: st.tuples(st.integers(0, trials), st.just(trials))))
def test_wilson_interval_holds_the_share_and_mirrors(counts):
    successes, trials = counts
    low, high = wilson_interval(successes, trials)
    assert 0 <= low <= successes / trials + 1e-12 and successes / trials - 1e-12 <= high <= 1
    mirrored = wilson_interval(trials - successes, trials)
    assert mirrored == pytest.approx((1 - high, 1 - low), abs=1e-9)
    wider = wilson_interval(successes / trials, 1)
    assert high - low <= wider[1] - wider[0] + 1e-12
