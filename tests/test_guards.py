"""Guards on made-up metrics: each fires on its fault, none on a healthy training, and warnings come once."""

import math
from dataclasses import asdict
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from research.training.config import GuardConfig
from research.training.watch.guards import GUARDS, GuardWatch, check_guards, equal_group_share

CONFIG = GuardConfig()
STEPS = 120


def healthy(step):
    """Metrics of a training that goes well: the reward rises through its noise, the entropy falls slowly."""
    return {
        "step": step,
        "critic/score/mean": 0.2 + 0.005 * step + 0.02 * (-1) ** step,
        "actor/entropy": 0.6 - 0.002 * step,
        "actor/pg_loss": 0.01,
        "actor/grad_norm": 0.3,
        "training/rollout_probs_diff_mean": 3e-7,
        "search/format_valid": 0.9,
        "search/equal_groups": 0.4,
        "search/cut_by_length": 0.02,
        "search/searches": 2.5,
    }


def rows(**changes):
    """A healthy run but for some metrics, given as functions of the step."""
    found = [healthy(step) for step in range(1, STEPS + 1)]
    return [{**row, **{key: value(row["step"]) for key, value in changes.items()}} for row in found]


def late(good, bad):
    """``good`` in the first half of the run, then ``bad``."""
    return lambda step: good if step <= STEPS / 2 else bad


def test_a_healthy_training_raises_nothing():
    assert GuardWatch(CONFIG, rows()).alarms == []


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("not_finite", {"actor/grad_norm": late(0.3, math.nan)}),
        ("not_finite", {"actor/pg_loss": late(0.3, math.inf)}),
        ("entropy_collapse", {"actor/entropy": late(0.6, 0.01)}),
        ("reward_stuck", {"critic/score/mean": lambda step: 0.0}),
        ("reward_stuck", {"critic/score/mean": lambda step: 0.4 + 0.05 * (-1) ** step}),
        ("reward_stuck", {"critic/score/mean": lambda step: 0.4}),
        ("format_collapse", {"search/format_valid": late(0.95, 0.5)}),
        ("equal_groups", {"search/equal_groups": late(0.4, 0.97)}),
        ("length_cut", {"search/cut_by_length": lambda step: 0.5}),
        ("length_cut", {"search/cut_by_length": late(0.0, 0.15)}),
        ("rollout_mismatch", {"training/rollout_probs_diff_mean": late(3e-7, 5e-3)}),
        ("search_collapse", {"search/searches": late(2.5, 0.02)}),
        ("failed_searches", {"search/failed_searches": late(0.0, 0.01)}),
    ],
)
def test_each_guard_fires_on_its_fault_alone(name, changes):
    assert list(check_guards(rows(**changes), CONFIG)) == [name]


def test_low_entropy_needs_a_stuck_reward_or_a_value_near_zero():
    """Entropy may fall to a fraction of its start while the policy learns."""
    fallen = {"actor/entropy": late(1.2, 0.15)}
    assert check_guards(rows(**fallen), CONFIG) == {}
    stuck = check_guards(rows(**fallen, **{"critic/score/mean": lambda step: 0.4}), CONFIG)
    assert set(stuck) == {"entropy_collapse", "reward_stuck"}
    assert "the reward does not move" in stuck["entropy_collapse"]


def test_a_reward_at_its_ceiling_is_not_stuck():
    assert check_guards(rows(**{"critic/score/mean": lambda step: 1.0}), CONFIG) == {}


def test_message_names_the_loss_before_what_follows_from_it():
    row = {**healthy(1), "a/metric": math.nan, "actor/grad_norm": math.nan}
    message = check_guards([row], CONFIG)["not_finite"]
    assert message.index("actor/grad_norm is nan") < message.index("a/metric")


def test_every_message_is_one_line():
    bad = {key: lambda step: math.nan for key in ("actor/pg_loss", "actor/kl_loss", "x", "y")}
    bad |= {"search/searches": lambda step: 0.0, "search/equal_groups": lambda step: 1.0}
    assert all("\n" not in message for message in check_guards(rows(**bad), CONFIG).values())


def test_a_warning_comes_once_and_again_after_it_cleared():
    watch = GuardWatch(CONFIG)
    seen = []
    for step, difference in enumerate([1e-7, 1e-2, 1e-2, 1e-7, 1e-2], start=1):
        row = {**healthy(step), "training/rollout_probs_diff_mean": difference}
        seen += [(step, warning.name) for warning in watch.observe(row)]
        assert watch.metrics().keys() == {f"guard/{name}" for name in GUARDS}
        assert watch.metrics()["guard/rollout_mismatch"] == float(difference == 1e-2)
    assert seen == [(2, "rollout_mismatch"), (5, "rollout_mismatch")]
    assert [(alarm.first, alarm.last) for alarm in GuardWatch(CONFIG, watch.rows).alarms] == [(2, 3), (5, 5)]


def test_missing_metrics_and_evaluations_alone_raise_nothing():
    few = [{"step": row["step"], "critic/score/mean": row["critic/score/mean"]} for row in rows()]
    assert GuardWatch(CONFIG, [{"step": 0, "val-aux/x/em/mean@1": 0.0}, *few]).alarms == []


def test_equal_groups_are_counted_by_question():
    assert equal_group_share(["a", "b", "a", "b"], [1.0, 0.0, 1.0, 1.0]) == 0.5


def test_documented_thresholds_are_the_defaults_and_others_are_refused():
    recipe = OmegaConf.load(Path(__file__).parents[1] / "research" / "config" / "common.yaml")
    assert dict(recipe.research.guards) == asdict(GuardConfig())
    for wrong in ({"reward_steps": 2}, {"cut_share": -0.1}, {"cut_share": "much"}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            GuardConfig(**wrong)


def validated(step, **scores):
    """A row of a step that was validated, 100 questions a data set."""
    found = {f"validation/{name}/score": value for name, value in scores.items()}
    found |= {f"validation/{name}/questions": 100 for name in scores}
    return {**healthy(step), "validation/score": sum(scores.values()) / len(scores), **found}


def test_a_fallen_validation_is_named_by_data_set_with_its_interval():
    """As a run of 60 steps really went: four hops died in its last ten, the others stayed."""
    before, between = validated(50, two=0.93, four=0.89), healthy(51)
    assert check_guards([before, validated(60, two=0.90, four=0.80)], CONFIG) == {}, "within the noise"
    found = check_guards([before, between, validated(60, two=0.92, four=0.14)], CONFIG)
    assert list(found) == ["validation_drop"]
    message = found["validation_drop"]
    assert "four fell from 0.89 [0.81, 0.94] at step 50 to 0.14 [0.09, 0.22]" in message
    assert "two" not in message and "step 50 was the best" in message
    assert (
        "the start was the best"
        in check_guards([validated(0, two=0.9), validated(1, two=0.1)], CONFIG)["validation_drop"]
    )


def test_a_fallen_validation_warns_until_it_has_risen_again_and_knows_the_start():
    start = {key: value for key, value in validated(0, two=0.9).items() if "/" not in key or "valid" in key}
    watch = GuardWatch(CONFIG)
    fired = []
    rows_of_run = [start, healthy(1), validated(2, two=0.3), healthy(3), validated(4, two=0.85), healthy(5)]
    for row in rows_of_run:
        watch.observe({key: value for key, value in row.items() if key != "critic/score/mean" or row["step"]})
        fired.append("validation_drop" in watch.firing)
    assert fired == [False, False, True, True, False, False]
