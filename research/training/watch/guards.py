"""Guards: from the metrics of each step, warnings about trainings that go wrong.

Pure functions of the rows of ``metrics.jsonl``, so the trainer, the terminal and the report agree on the
warnings. A guard is a function ``(rows, limits) -> message | None``, named in ``GUARDS``.
"""

import math
import statistics
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from research.environments.headline import REWARD
from research.training.config import GuardConfig
from research.training.run_files import History, StepMetrics
from research.training.watch.validations import best_step, data_set_scores

ENTROPY = "actor/entropy"
ROLLOUT_DIFFERENCE = "training/rollout_probs_diff_mean"


@dataclass
class Alarm:
    """A guard that fires from step ``first`` to ``last``.

    Attributes:
        name: the guard's.
        message: one line, of the first step: what was measured, what it means and what to do.
    """

    name: str
    message: str
    first: int
    last: int


class GuardWatch:
    """Follows a training row by row, and keeps all alarms of the run and those that are active.

    A row of an evaluation alone, before the first step or after a resume, raises none.
    """

    def __init__(self, config: GuardConfig, rows: History = ()) -> None:
        self.config = config
        self.rows: list[StepMetrics] = []
        self.alarms: list[Alarm] = []  # in the order in which they began
        self.firing: dict[str, Alarm] = {}
        for row in rows:
            self.observe(row)

    def observe(self, row: StepMetrics) -> list[Alarm]:
        """Take the next row and return the alarms that begin with it."""
        self.rows.append(row)
        if REWARD not in row:
            return []
        messages, step = check_guards(self.rows, self.config), int(row["step"])
        new = [Alarm(name, text, step, step) for name, text in messages.items() if name not in self.firing]
        self.firing = {name: alarm for name, alarm in self.firing.items() if name in messages}
        for alarm in self.firing.values():
            alarm.last = step
        self.firing |= {alarm.name: alarm for alarm in new}
        self.alarms += new
        return new

    def metrics(self) -> dict[str, float]:
        """``guard/<name>`` of every guard at the last row: 1.0 if it fires, else 0.0."""
        return {f"guard/{name}": float(name in self.firing) for name in GUARDS}


def check_guards(rows: History, config: GuardConfig) -> dict[str, str]:
    """Messages by name of the guards that fire at the last of ``rows``.

    A guard whose metrics are missing, or that needs more steps, does not fire.
    """
    messages = {name: guard(rows, config) for name, guard in GUARDS.items()}
    return {name: message for name, message in messages.items() if message is not None}


def equal_group_share(groups: Sequence[str], rewards: Sequence[float]) -> float:
    """Share of the groups whose trajectories all have the same reward, from the group of each trajectory."""
    by_group: dict[str, set[float]] = defaultdict(set)
    for group, reward in zip(groups, rewards, strict=True):
        by_group[group].add(reward)
    return sum(len(values) == 1 for values in by_group.values()) / len(by_group)


def failed_share(row: StepMetrics) -> float:
    """Share of the searches of a step that failed, or of its texts that could not be scored.

    Searches without a query do not count: no retriever was asked.
    """
    asked = row.get("search/asked_searches", row.get("search/searches", 0.0))
    failed = row.get("search/failed_searches", 0.0)
    return row.get("search/scoring_failed", failed / asked if asked else 0.0)


class Series:
    """A metric over the steps: `now`, its `highest` and `lowest`, means of the first and newest few.

    Only finite values count; the others are for `not_finite`. What is missing is NaN, which is
    neither above nor below any threshold, so that its guard does not fire.
    """

    def __init__(self, rows: History, key: str, limits: GuardConfig) -> None:
        self.values = [row[key] for row in rows if key in row and math.isfinite(row[key])]
        count = limits.recent_steps
        self.now = rows[-1].get(key, math.nan)
        self.recent = statistics.fmean(self.values[-count:]) if len(self.values) >= count else math.nan
        self.start = statistics.fmean(self.values[:count] or [math.nan])
        self.highest, self.lowest = (each(self.values, default=math.nan) for each in (max, min))


Guard = Callable[[History, GuardConfig], str | None]


def _guard(key: str, fires: Callable[[Series, GuardConfig], bool], message: str) -> Guard:
    """A guard of a single metric; `message` may name ``seen``, its Series, and ``limits``."""

    def guard(rows: History, limits: GuardConfig) -> str | None:
        seen = Series(rows, key, limits)
        return message.format(seen=seen, limits=limits) if fires(seen, limits) else None

    return guard


def not_finite(rows: History, limits: GuardConfig) -> str | None:
    """NaN or infinity in any metric. Losses and norms are named first: they are more often the cause."""
    wrong = [key for key, value in rows[-1].items() if not math.isfinite(value)]
    if not wrong:
        return None
    wrong.sort(key=lambda key: (not key.endswith(("loss", "grad_norm")), key))
    more = f" and {len(wrong) - 3} more" if len(wrong) > 3 else ""
    values = ", ".join(f"{key} is {rows[-1][key]}" for key in wrong[:3])
    return (
        f"{values}{more}: the numbers overflow, and veRL skips an update whose gradient norm is not finite; "
        "lower the learning rate, clip harder, or go back to a checkpoint from before this step"
    )


def entropy_collapse(rows: History, limits: GuardConfig) -> str | None:
    """Entropy far below its start, and either low in itself or with a reward that does not move."""
    entropy, stuck = Series(rows, ENTROPY, limits), reward_stuck(rows, limits) is not None
    fallen = entropy.recent < limits.entropy_share * entropy.start
    if not fallen or not (stuck or entropy.recent < limits.entropy_low):
        return None
    no_gain = ", and the reward does not move" if stuck else ""
    return (
        f"the entropy fell from {entropy.start:.3g} to {entropy.recent:.3g}{no_gain}: the samples of a "
        "question become the same and nothing new is tried; lower the learning rate, or raise "
        "clip_ratio_high, entropy_coeff or the KL loss"
    )


def reward_stuck(rows: History, limits: GuardConfig) -> str | None:
    """The reward is 0, or its trend cannot be told from noise and it is not at its ceiling."""
    rewards = Series(rows, REWARD, limits).values
    zeros = rewards[-limits.reward_zero_steps :]
    if len(zeros) == limits.reward_zero_steps and not any(zeros):
        return (
            f"no sample of the last {len(zeros)} steps earned a reward: there is nothing to learn from; read "
            "the reasons in trajectories/, then warm the policy up, take easier questions, or a reward that "
            "also values the format"
        )
    window = rewards[-limits.reward_steps :]
    mean = statistics.fmean(window or [0.0])
    if len(window) < limits.reward_steps or mean >= limits.reward_ceiling or not _flat(window, limits):
        return None
    return (
        f"the reward stays at {mean:.3f}, its trend over {len(window)} steps is within the noise: the policy "
        "has learned what it can, or cannot learn; look at equal groups and entropy, then try more samples "
        "per question, another learning rate or other questions"
    )


def _flat(values: list[float], limits: GuardConfig) -> bool:
    """Whether the least-squares slope is within ``reward_noise`` of its standard errors."""
    if max(values) == min(values):
        return True
    steps = range(len(values))
    slope, intercept = statistics.linear_regression(steps, values)
    residual = sum((y - intercept - slope * x) ** 2 for x, y in zip(steps, values, strict=True))
    error = math.sqrt(residual / (len(values) - 2) / (len(values) * statistics.pvariance(steps)))
    return abs(slope) <= limits.reward_noise * error


def equal_groups(rows: History, limits: GuardConfig) -> str | None:
    """For nearly all questions all samples have the same reward: GRPO's advantages are zero."""
    keys = ("search/equal_groups", "search/ndcg_at_10", REWARD)
    share, gain, reward = (Series(rows, key, limits).recent for key in keys)
    if not share >= limits.equal_groups:
        return None
    # The reward of a rewriting is a gain, which does not show how hard a question is.
    easy = (reward if math.isnan(gain) else gain) >= 0.5
    cause, remedy = ("easy", "harder") if easy else ("hard", "easier")
    return (
        f"for {share:.0%} of the questions all samples earned the same, which teaches GRPO nothing: the "
        f"questions are too {cause}; take {remedy} ones, more samples per question (rollout.n), or a graded "
        "reward"
    )


def failed_searches(rows: History, limits: GuardConfig) -> str | None:
    """Searches of the step failed."""
    share = failed_share(rows[-1])
    if not share or "search/scoring_failed" in rows[-1]:
        return None
    return (
        f"{share:.1%} of the searches failed, and the policy read a notice instead of passages: the "
        "retriever is gone, overloaded, or out of reach of some nodes; the reasons are in trajectories/"
    )


def validation_drop(rows: History, limits: GuardConfig) -> str | None:
    """The newest validation of a data set is below its best one, and their 95% intervals do not overlap."""
    validated = {int(row["step"]): scores for row in rows if (scores := data_set_scores(row))}
    drops = []
    for name, now in validated[max(validated)].items() if validated else ():
        history = ((step, scores[name]) for step, scores in validated.items() if name in scores)
        step, best = max(history, key=lambda each: each[1].value)
        if now.interval[1] < best.interval[0]:
            drops.append(f"{name} fell from {best} at step {step} to {now}")
    if not drops:
        return None
    summit = best_step(rows, least=0)
    return (
        f"validation: {', '.join(drops)}: the training destroys what was learned; "
        f"{f'step {summit}' if summit else 'the start'} was the best overall (see research.keep); lower "
        "the learning rate, let it decay (lr_scheduler_type=cosine), or use the KL loss"
    )


GUARDS: dict[str, Guard] = {
    "not_finite": not_finite,
    "entropy_collapse": entropy_collapse,
    "reward_stuck": reward_stuck,
    "format_collapse": _guard(
        "search/format_valid",
        lambda seen, limits: seen.highest - seen.now > limits.format_drop,
        "valid formats fell from {seen.highest:.0%} at best to {seen.now:.0%}: the policy forgets the "
        "protocol; lower the learning rate, use the KL loss, or a reward with a format part (f1_format, "
        "em_format)",
    ),
    "equal_groups": equal_groups,
    "length_cut": _guard(
        "search/cut_by_length",
        lambda seen, limits: seen.recent >= limits.cut_share or seen.recent - seen.lowest >= limits.cut_rise,
        "{seen.recent:.0%} of the responses are cut by their length (lowest so far {seen.lowest:.0%}) and "
        "cannot answer: the policy rambles, or passages fill the room; raise data.max_response_length, show "
        "fewer or shorter passages, or lower research.limits.turn_tokens",
    ),
    "rollout_mismatch": _guard(
        ROLLOUT_DIFFERENCE,
        lambda seen, limits: seen.now > limits.rollout_difference,
        "rollout and actor differ by {seen.now:.1e} in the probability of a token, over "
        "{limits.rollout_difference:.0e}: the gradient is not that of the policy that sampled; check that "
        "the new weights arrive, the precision of both, and the masks",
    ),
    "search_collapse": _guard(
        "search/searches",
        lambda seen, limits: seen.recent < limits.few_searches,
        "{seen.recent:.2f} searches per episode, {seen.highest:.2f} at most so far: the policy answers from "
        "memory; check that searches return useful passages, that the questions need them, and the prompt",
    ),
    "failed_searches": failed_searches,
    "scoring_failures": _guard(
        "search/scoring_failed",
        lambda seen, limits: seen.now > 0,
        "{seen.now:.1%} of the texts could not be scored and count as no gain: the retriever or the encoder "
        "failed; the reasons are in trajectories/",
    ),
    "validation_drop": validation_drop,
}
