"""research/training/watch/paired.py: the same held-out questions before and after a training."""

import pytest
from run_folder import episode, make_run, write_episodes, write_rows

from research.training.run.summary import print_summary
from research.training.watch.card import _results
from research.training.watch.paired import HEADER, SUPERVISED, comparisons
from research.training.watch.report import write_training_report
from research.training.watch.table import as_text
from research.training.watch.validations import EVALUATED_STEP


def ask(run, step, source, scores, control="", split="test"):
    """Episodes of the questions numbered from 0, with these scores."""
    made = (episode(n, score, source=source, control=control, step=step) for n, score in enumerate(scores))
    write_episodes(run, split, step, *made)


@pytest.fixture
def run(tmp_path):
    """Two data sets, one of them with two hop counts; 10 questions become right, one becomes wrong."""
    run = make_run(tmp_path / "run")
    for step, twos, threes, hotpot in ((0, [0] * 8, [0, 1], [1, 0, 0]), (4, [1] * 8, [0, 0], [1, 1, 1])):
        ask(run, step, "test_2wiki_2hop", map(float, twos))
        ask(run, step, "test_2wiki_4hop", map(float, threes))
        ask(run, step, "test_hotpotqa", map(float, hotpot))
        ask(run, step, "closed_book_2hop", [0.0, 1.0], control="closed_book")
    write_rows(run, {"step": 0}, {"step": 4, EVALUATED_STEP: 4.0})
    return run


def test_each_group_of_questions_is_compared_once(run):
    found = {one.name.partition(":")[0]: one for one in comparisons(run)}
    assert [*found] == ["test_2wiki_2hop", "test_2wiki_4hop", "test_hotpotqa", "test_2wiki", "all"]
    everything = found["all"]
    assert (everything.questions, everything.won, everything.lost) == (13, 10, 1)
    assert everything.difference.mean == pytest.approx(everything.second - everything.first) == 9 / 13
    # Eleven flips of a coin with ten or more alike: 2 * 12 / 2048.
    assert everything.difference.p == pytest.approx(24 / 2048, abs=0.003)
    assert found["test_2wiki"].questions == 10


def test_questions_without_a_partner_and_controls_do_not_count(run):
    ask(run, 4, "test_musique", [1.0, 1.0])
    assert [one.questions for one in comparisons(run)] == [8, 2, 3, 10, 13]


def test_samples_of_a_question_are_one_pair(run):
    again = episode(0, 0.0, source="test_2wiki_2hop", step=4)
    again.metadata["sample"] = 1
    write_episodes(run, "test", 4, again)
    twos = comparisons(run)[0]
    assert (twos.questions, twos.won) == (8, 8) and twos.second == 7.5 / 8


def test_the_supervised_control_is_compared_with_the_start_and_the_policy(run):
    control = make_run(run / SUPERVISED)
    ask(control, 0, "test_2wiki_2hop", [1.0] * 8)
    ask(control, 0, "test_2wiki_4hop", [1.0] * 2)
    ask(control, 0, "test_hotpotqa", [1.0] * 3)
    assert len(comparisons(run)) == 5  # it is still being judged
    write_rows(control, {"step": 0})
    start, policy = comparisons(run)[-2:]
    assert (start.name, start.won, start.lost) == ("all: before, supervised", 11, 0)
    assert (policy.name, policy.won, policy.lost) == ("all: after, supervised", 2, 0)


def test_an_unfinished_run_has_no_comparison(tmp_path):
    run = make_run(tmp_path / "run")
    assert comparisons(run) == []
    ask(run, 0, "test_2hop", [0.0, 1.0])
    write_rows(run, {"step": 0})
    assert comparisons(run) == []


def test_equal_results_are_told_as_such(tmp_path):
    run = make_run(tmp_path / "run")
    for step in (0, 4):
        ask(run, step, "test_2hop", [0.0, 1.0])
    write_rows(run, {"step": 4, EVALUATED_STEP: 4.0})
    (one,) = comparisons(run)
    assert one.cells()[4:] == ("+0.000 [+0.000, +0.000]", "0", "0", "1.0000")


def test_summary_report_and_card_show_them(run, capsys):
    table = as_text(HEADER, [one.cells() for one in comparisons(run)])
    assert len({len(line) for line in table.splitlines()}) == 1
    print_summary(run)
    assert table in capsys.readouterr().out
    page, card = write_training_report(run).read_text(), "\n".join(_results(run))
    for text in ("all: before, after", "+0.692", "sign-flip"):
        assert text in page and text in card
