"""The report of a run: one page without a network, escaped, and of whatever is there."""

import re
import shutil
import xml.etree.ElementTree as ElementTree

import pytest
from click.testing import CliRunner
from run_folder import episode, make_run, step_row, write_episodes, write_rows

from research.episode.pieces import pieces
from research.episode.protocol import Protocol
from research.training.watch.episodes import choose_pairs
from research.training.watch.figures import _group, _validated
from research.training.watch.report import main, write_training_report
from research.training.watch.table import HeldOut
from research.training.watch.validations import EVALUATED_STEP

HOSTILE = '</div><script>alert("x")</script><img src="http://evil.example/x">'


def finished_run(folder):
    run = make_run(folder)
    mismatch = {"training/rollout_probs_diff_mean": 0.01}
    validated = {"val-aux/validation_2hop/em/mean@1": 0.3, "val-aux/test_2hop/em/mean@1": 0.3}
    write_rows(run, {"step": 0, **validated}, step_row(1), step_row(2, **mismatch), step_row(3, **mismatch))
    write_rows(run, step_row(4, **validated, **{EVALUATED_STEP: 4.0}))
    for step in (0, 4):
        episodes = (episode(number, float(step * number >= 12), step=step) for number in range(20))
        write_episodes(run, "test", step, *episodes)
        write_episodes(run, "test", step, episode(0, 0.0, source="shuffled_2hop", control="shuffled"))
    return run


def charts(page):
    """The SVGs of the page by their name; each must be well-formed."""
    found = re.findall(r"<svg.*?</svg>", page, re.DOTALL)
    for svg in found:
        ElementTree.fromstring(svg)
    return {re.search(r'aria-label="([^"]*)"', svg)[1]: svg for svg in found}


def test_page_tells_the_run(tmp_path):
    page = write_training_report(finished_run(tmp_path / "my-run")).read_text()
    for text in ("<h1>my-run</h1>", "tiny", "4 of 4 steps", "a=b", "test_2hop", "shuffled_2hop"):
        assert text in page
    assert "not finished" not in page
    assert "rollout_mismatch" in page and "steps 2 to 3" in page
    assert page.count('class="pair"') == 10
    assert "wrong before, right after" in page and "wrong before and after" in page


def test_a_test_that_was_interrupted_is_no_result(tmp_path):
    run = make_run(tmp_path / "run")
    write_rows(run, {"step": 0}, step_row(1), step_row(2))
    write_episodes(run, "test", 0, *(episode(number, 0.0) for number in range(20)))
    write_episodes(run, "test", 2, episode(3, 1.0, step=2))
    assert HeldOut(run).after is None
    assert "0 -> 1" not in write_training_report(run).read_text()
    write_rows(run, {"step": 2, EVALUATED_STEP: 2.0})
    assert HeldOut(run).after == 2


def test_page_is_whole_in_itself(tmp_path):
    page = write_training_report(finished_run(tmp_path / "run")).read_text()
    assert not re.search(r"<script|<link|<img|<iframe|@import|url\((?!#)|\bsrc=", page)
    namespaces = re.sub(r'xmlns(:\w+)?="[^"]*"', "", page)
    assert "http" not in namespaces


def test_charts_are_text_in_the_colour_of_the_page(tmp_path):
    drawn = charts(write_training_report(finished_run(tmp_path / "run")).read_text())
    assert {"Training questions", "Entropy", "KL", "Seconds per step"} <= drawn.keys()
    held_out = drawn["EM on held-out questions, by hops"]
    assert "currentColor" in held_out and re.search(r"<text[^>]*>2hop</text>", held_out)


@pytest.mark.parametrize("source", ["", "_math/algebra"])
def test_only_validations_are_curves_whatever_the_data_set_is_called(source):
    rows = [
        {"step": 0, **{f"val-aux/{s}{source}/em/mean@1": 0.5 for s in ("test", "validation", "closed_book")}}
    ]
    assert _validated(rows, "em") == {f"validation{source}": ([0], [0.5])}
    assert _group(f"validation{source}") == _group(f"test{source}") == (source[1:] or "all")


def test_hostile_text_is_only_text(tmp_path):
    run = make_run(tmp_path / "run")
    bad = episode(1, 1.0, text=HOSTILE, passage=HOSTILE, source="test_2hop")
    bad.metadata |= {"question": HOSTILE, "id": HOSTILE, "golden_answers": [HOSTILE]}
    bad.reward_reason = HOSTILE
    write_episodes(run, "test", 0, bad)
    page = write_training_report(run).read_text()
    assert "<script" not in page and "<img" not in page
    assert page.count("&lt;script&gt;") >= 6


@pytest.mark.parametrize("rows", [0, 1, 2])
def test_an_unfinished_run_has_a_report_of_what_is_there(tmp_path, rows):
    run = make_run(tmp_path / "run")
    write_rows(run, *(step_row(step) for step in range(1, rows + 1)))
    write_episodes(run, "test", 0, episode(1, 1.0))
    with (run / "trajectories" / "test_step_0.jsonl").open("a") as file:
        file.write('{"prompt_ids": [1')  # an episode that is being written
    page = write_training_report(run).read_text()
    assert "not finished" in page and f"{rows} of 4 steps" in page
    assert "right before, not asked after" in page


def test_a_missing_metric_leaves_its_chart_out_and_says_so(tmp_path):
    run = make_run(tmp_path / "run")
    row = step_row(1)
    del row["search/equal_groups"]
    write_rows(run, row)
    page = write_training_report(run).read_text()
    assert "Left out: Questions whose samples all earned the same (search/equal_groups not in" in page
    assert "Not in the metrics of this run: actor/kl_loss." in page
    assert "No evaluation was written yet." in page and "No held-out episode was written yet." in page


def test_numbers_that_are_not_finite_leave_gaps(tmp_path):
    run = make_run(tmp_path / "run")
    nan = {"critic/score/mean": float("nan"), "training/rollout_probs_diff_mean": float("inf")}
    write_rows(run, *(step_row(step, **(nan if step == 5 else {})) for step in range(1, 31)))
    assert len(charts(write_training_report(run).read_text())) >= 8


def test_episodes_are_a_mix_of_questions_that_searched(tmp_path):
    pairs = choose_pairs(finished_run(tmp_path / "run"), 6)
    assert [pair.verdict for pair in pairs].count("wrong before, right after") == 3
    assert [pair.verdict for pair in pairs].count("wrong before and after") == 3
    for pair in pairs:
        assert pair.before.metadata["id"] == pair.after.metadata["id"]
        assert pair.after.metadata["control"] == ""


def test_pieces_hold_the_whole_response_by_author_and_tag():
    one = episode(1, 1.0)
    one.segments[0].text = "so <think>a<search>q</search> then <result>mine</result>"
    found = pieces(one, Protocol())
    assert [piece.kind for piece in found] == ["text", "think", "search", "text", "result", "answer"]
    assert "".join(piece.text for piece in found) == one.text


def test_command_writes_the_page_and_refuses_other_folders(tmp_path):
    run = finished_run(tmp_path / "run")
    done = CliRunner().invoke(main, [str(run)])
    assert done.exit_code == 0 and done.output.strip() == str(run / "report.html")
    other = CliRunner().invoke(main, [str(tmp_path)])
    assert other.exit_code == 1 and "is not a run folder" in other.output


def test_the_held_out_curve_is_a_picture_of_its_own(tmp_path):
    run, picture = finished_run(tmp_path / "run"), tmp_path / "curve.svg"
    done = CliRunner().invoke(main, [str(run), "--picture", str(picture)])
    assert done.exit_code == 0, done.output
    root = ElementTree.fromstring(picture.read_text())
    assert root.tag.endswith("svg") and "background: white" in root.attrib["style"]
    (run / "metrics.jsonl").write_text("")
    shutil.rmtree(run / "trajectories")
    nothing = CliRunner().invoke(main, [str(run), "--picture", str(picture)])
    assert nothing.exit_code == 1 and "no held-out questions" in nothing.output


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("config.yaml", "research: [\n"),
        ("config.yaml", "word"),
        ("config.yaml", "- 1\n"),
        ("config.yaml", "trainer: {}\n"),
        ("config.yaml", "research: {protocol: {think: think}}\ntrainer: {}\n"),
        ("config.yaml", "research: {protocol: '${nowhere}'}\n"),
        ("recipe.json", "{"),
        ("recipe.json", "[]"),
    ],
)
def test_a_malformed_file_of_the_run_is_one_line(tmp_path, name, text):
    run = finished_run(tmp_path / "run")
    (run / name).write_text(text)
    result = CliRunner().invoke(main, [str(run)])
    assert result.exit_code == 1 and len(result.output.strip().splitlines()) == 1
    assert result.output.startswith(f"Error: {run / name}")
