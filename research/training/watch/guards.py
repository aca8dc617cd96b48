"""Stability guards: from the metrics of each step, warnings about trainings of search agents and query
reasoners that go wrong.

Pure functions of the rows of ``metrics.jsonl``, so the trainer, the terminal and the report come to the same
warnings. To add a guard, write a function ``(rows, config) -> message | None`` and name it in ``GUARDS``.
"""

import math
import statistics
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields

from research.training.watch.validations import Score, best_of_all, data_set_scores

Row = Mapping[str, float]
Rows = Sequence[Row]

REWARD = "critic/score/mean"
ENTROPY = "actor/entropy"
ROLLOUT_DIFFERENCE = "training/rollout_probs_diff_mean"


@dataclass(frozen=True)
class GuardConfig:
    """Thresholds, the keys of ``research.guards``; see research/config/common.yaml for each.

    Raises:
        ValueError: a value is no number, negative, too few steps for a slope, or a part of a step.
    """

    recent_steps: int = 5
    entropy_share: float = 0.2
    entropy_low: float = 0.05
    reward_steps: int = 80
    reward_noise: float = 2.0
    reward_ceiling: float = 0.95
    reward_zero_steps: int = 10
    format_drop: float = 0.3
    equal_groups: float = 0.9
    cut_share: float = 0.2
    cut_rise: float = 0.1
    rollout_difference: float = 1e-3
    few_searches: float = 0.1

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            least = {"recent_steps": 1, "reward_zero_steps": 1, "reward_steps": 3}.get(field.name, 0)
            kinds, words = ((int,), "an integer") if field.type is int else ((int, float), "a number")
            if isinstance(value, bool) or not isinstance(value, kinds) or not value >= least:
                raise ValueError(f"research.guards.{field.name} must be {words} >= {least}, not {value!r}")


@dataclass(frozen=True)
class GuardWarning:
    """A guard that fires: its stable name, and one line on what was seen, what it means and what to do."""

    name: str
    message: str


class GuardWatch:
    """Follows a training row by row, and knows which guards fire and which have just begun to.

    A row of an evaluation alone, before the first step or after a resume, raises nothing.
    """

    def __init__(self, config: GuardConfig) -> None:
        self.config = config
        self.rows: list[Row] = []
        self.firing: dict[str, str] = {}

    def see(self, row: Row) -> list[GuardWarning]:
        """Take the next row; the guards that fire now and did not at the step before."""
        self.rows.append(row)
        if REWARD not in row:
            return []
        before, self.firing = self.firing, check(self.rows, self.config)
        return [GuardWarning(name, text) for name, text in self.firing.items() if name not in before]

    def metrics(self) -> dict[str, float]:
        """``guard/<name>`` of every guard at the last row: 1.0 if it fires, else 0.0."""
        return {f"guard/{name}": float(name in self.firing) for name in GUARDS}


@dataclass
class Alarm:
    """A guard that fired from step ``first`` to step ``last``, with its message at the first."""

    name: str
    message: str
    first: int
    last: int


def alarms(rows: Rows, config: GuardConfig) -> list[Alarm]:
    """All times that guards fired in a run, in order of their beginning."""
    watch, found, current = GuardWatch(config), [], dict[str, Alarm]()
    for row in rows:
        step = int(row["step"])
        for warning in watch.see(row):
            current[warning.name] = Alarm(warning.name, warning.message, step, step)
            found.append(current[warning.name])
        for name in watch.firing:
            current[name].last = step
    return found


def check(rows: Rows, config: GuardConfig) -> dict[str, str]:
    """Messages by name of the guards that fire at the last of ``rows``, which are in the order of steps.

    A guard whose metrics are missing, or that needs more steps, does not fire.
    """
    messages = {name: guard(rows, config) for name, guard in GUARDS.items()}
    return {name: message for name, message in messages.items() if message is not None}


def equal_group_share(groups: Sequence[str], rewards: Sequence[float]) -> float:
    """Share of the groups whose trajectories all have the same reward, from the group of each trajectory."""
    found: dict[str, set[float]] = defaultdict(set)
    for group, reward in zip(groups, rewards, strict=True):
        found[group].add(reward)
    return sum(len(values) == 1 for values in found.values()) / len(found)


def all_failed(metrics: Row) -> bool:
    """Whether of the searches of a step, or of the texts it had to score, every single one failed."""
    if "scoring_failed" in metrics:
        return metrics["scoring_failed"] == 1.0
    return 0 < metrics["searches"] <= metrics["failed_searches"]


def failed_share(row: Row) -> float:
    """Share of the searches of a step that failed, or of its texts that could not be scored."""
    searches, failed = row.get("search/searches", 0.0), row.get("search/failed_searches", 0.0)
    return row.get("search/scoring_failed", failed / searches if searches else 0.0)


def not_finite(rows: Rows, config: GuardConfig) -> str | None:
    """NaN or infinity in any metric. Losses and norms are named first: they are the cause more often."""
    wrong = [key for key, value in rows[-1].items() if not math.isfinite(value)]
    if not wrong:
        return None
    named = sorted(wrong, key=lambda key: (not key.endswith(("loss", "grad_norm")), key))
    more = f" and {len(named) - 3} more" if len(named) > 3 else ""
    values = ", ".join(f"{key} is {rows[-1][key]}" for key in named[:3])
    return (
        f"{values}{more}: the numbers overflow, and veRL leaves out an update whose gradient norm is not "
        "finite; lower the learning rate, clip harder, or go back to a checkpoint from before this step"
    )


def entropy_collapse(rows: Rows, config: GuardConfig) -> str | None:
    """Entropy far below its start, and either low in itself or together with a reward that does not move."""
    recent, start = _recent(rows, ENTROPY, config), _start(rows, ENTROPY, config)
    if recent is None or start is None or recent >= config.entropy_share * start:
        return None
    stuck = reward_stuck(rows, config) is not None
    if recent >= config.entropy_low and not stuck:
        return None
    no_gain = ", and the reward does not move" if stuck else ""
    return (
        f"the entropy fell from {start:.3g} to {recent:.3g}{no_gain}: the samples of a question become the "
        "same and nothing new is tried; lower the learning rate, or raise clip_ratio_high, entropy_coeff or "
        "the KL loss"
    )


def reward_stuck(rows: Rows, config: GuardConfig) -> str | None:
    """The reward is 0, or its trend cannot be told from noise, and it is not at its ceiling."""
    rewards = _values(rows, REWARD)
    zeros = rewards[-config.reward_zero_steps :]
    if len(zeros) == config.reward_zero_steps and not any(zeros):
        return (
            f"no sample of the last {len(zeros)} steps earned a reward: there is nothing to learn from; read "
            "the reasons in trajectories/, then warm the policy up, take easier questions, or a reward that "
            "also values the format"
        )
    window = rewards[-config.reward_steps :]
    mean = statistics.fmean(window) if window else 0.0
    if len(window) < config.reward_steps or mean >= config.reward_ceiling or not _flat(window, config):
        return None
    return (
        f"the reward stays at {mean:.3f}, its trend over {len(window)} steps is within the noise: the policy "
        "has learned what it can, or cannot learn; look at equal groups and entropy, then try more samples a "
        "question, another learning rate or other questions"
    )


def format_collapse(rows: Rows, config: GuardConfig) -> str | None:
    """The share of valid formats is far below its best."""
    values = _values(rows, "search/format_valid")
    if not values or max(values) - values[-1] <= config.format_drop:
        return None
    return (
        f"valid formats fell from {max(values):.0%} at best to {values[-1]:.0%}: the policy forgets the "
        "protocol; lower the learning rate, use the KL loss, or a reward with a format part (f1_format, "
        "em_format)"
    )


def equal_groups(rows: Rows, config: GuardConfig) -> str | None:
    """Nearly all questions have samples of one and the same reward: GRPO's advantages are zero."""
    share = _recent(rows, "search/equal_groups", config)
    if share is None or share < config.equal_groups:
        return None
    # A gain says nothing about how hard a question is.
    level = _recent(rows, "search/ndcg_at_10", config)
    hard = ((_recent(rows, REWARD, config) if level is None else level) or 0.0) < 0.5
    cause, remedy = ("hard", "easier") if hard else ("easy", "harder")
    return (
        f"for {share:.0%} of the questions all samples earned the same, which teaches GRPO nothing: the "
        f"questions are too {cause}; take {remedy} ones, more samples a question (rollout.n), or a graded "
        "reward"
    )


def length_cut(rows: Rows, config: GuardConfig) -> str | None:
    """Many responses, or many more than before, end because there is no room left."""
    key = "search/cut_by_length"
    share, lowest = _recent(rows, key, config), min(_values(rows, key), default=0.0)
    if share is None or (share < config.cut_share and share - lowest < config.cut_rise):
        return None
    return (
        f"{share:.0%} of the responses are cut by their length (lowest so far {lowest:.0%}) and cannot "
        "answer: the policy rambles, or passages fill the room; raise data.max_response_length, show fewer "
        "or shorter passages, or lower research.limits.turn_tokens"
    )


def failed_searches(rows: Rows, config: GuardConfig) -> str | None:
    """Searches of the step failed."""
    share = failed_share(rows[-1])
    if not share or "search/scoring_failed" in rows[-1]:
        return None
    return (
        f"{share:.1%} of the searches failed, and the policy read a notice instead of passages: the "
        "retriever is gone, overloaded, or out of reach of some nodes; the reasons stand in trajectories/"
    )


def scoring_failures(rows: Rows, config: GuardConfig) -> str | None:
    """Texts of the step could not be judged."""
    share = rows[-1].get("search/scoring_failed", 0.0)
    if not share:
        return None
    return (
        f"{share:.1%} of the texts could not be scored and count as no gain: the retriever or the encoder "
        "failed; the reasons stand in trajectories/"
    )


def rollout_mismatch(rows: Rows, config: GuardConfig) -> str | None:
    """Rollout engine and actor give the sampled tokens different probabilities."""
    difference = rows[-1].get(ROLLOUT_DIFFERENCE, 0.0)
    if not difference > config.rollout_difference:
        return None
    return (
        f"rollout and actor differ by {difference:.1e} in the probability of a token, over "
        f"{config.rollout_difference:.0e}: the gradient is not that of the policy that sampled; check that "
        "the new weights arrive, the precision of both, and the masks"
    )


def search_collapse(rows: Rows, config: GuardConfig) -> str | None:
    """The policy does not search (any more)."""
    values, recent = _values(rows, "search/searches"), _recent(rows, "search/searches", config)
    if recent is None or recent >= config.few_searches:
        return None
    return (
        f"{recent:.2f} searches an episode, {max(values):.2f} at most so far: the policy answers from "
        "memory; check that searches return useful passages, that the questions need them, and the prompt"
    )


def validation_drop(rows: Rows, config: GuardConfig) -> str | None:
    """A data set's newest validation is below its best one, their 95% intervals apart."""
    validated = {int(row["step"]): scores for row in rows if (scores := data_set_scores(row))}
    if not validated:
        return None
    drops = []
    for name, now in validated[max(validated)].items():
        step, best = _best_of(validated, name)
        if now.interval[1] < best.interval[0]:
            drops.append(f"{name} fell from {_with_interval(best)} at step {step} to {_with_interval(now)}")
    if not drops:
        return None
    summit = best_of_all(rows)
    return (
        f"validation: {', '.join(drops)}: the training takes away what was learned; "
        f"{f'step {summit}' if summit else 'the start'} was the best on the whole (see research.keep); lower "
        "the learning rate, let it decay (lr_scheduler_type=cosine), or use the KL loss"
    )


def _best_of(validated: Mapping[int, Mapping[str, Score]], name: str) -> tuple[int, Score]:
    found = ((step, scores[name]) for step, scores in validated.items() if name in scores)
    return max(found, key=lambda each: each[1].value)


def _with_interval(score: Score) -> str:
    return "{:.2f} [{:.2f}, {:.2f}]".format(score.value, *score.interval)


GUARDS: dict[str, Callable[[Rows, GuardConfig], str | None]] = {
    guard.__name__: guard
    for guard in (
        not_finite,
        entropy_collapse,
        reward_stuck,
        format_collapse,
        equal_groups,
        length_cut,
        rollout_mismatch,
        search_collapse,
        failed_searches,
        scoring_failures,
        validation_drop,
    )
}


def _values(rows: Rows, key: str) -> list[float]:
    """The finite values of a metric, oldest first; those that are not are ``not_finite``'s business."""
    return [row[key] for row in rows if key in row and math.isfinite(row[key])]


def _recent(rows: Rows, key: str, config: GuardConfig) -> float | None:
    """Mean of the newest values; None until there are enough of them."""
    values = _values(rows, key)[-config.recent_steps :]
    return statistics.fmean(values) if len(values) == config.recent_steps else None


def _start(rows: Rows, key: str, config: GuardConfig) -> float | None:
    """Mean of the first values."""
    values = _values(rows, key)[: config.recent_steps]
    return statistics.fmean(values) if values else None


def _flat(values: list[float], config: GuardConfig) -> bool:
    """Whether the least-squares slope is within ``reward_noise`` of its standard errors."""
    if max(values) == min(values):
        return True
    steps = range(len(values))
    slope, intercept = statistics.linear_regression(steps, values)
    residual = sum((y - intercept - slope * x) ** 2 for x, y in zip(steps, values, strict=True))
    spread = sum((x - statistics.fmean(steps)) ** 2 for x in steps)
    error = math.sqrt(residual / (len(values) - 2) / spread)
    return abs(slope) <= config.reward_noise * error
