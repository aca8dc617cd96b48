"""How far the actor's probabilities are from those of the rollout, measured in the update itself.

veRL measures it in a separate forward pass (old_log_prob), which costs as much as a third of an update.
Before the first update of a batch the actor IS the policy that sampled, so the update's own forward pass will
do. Sums are reported, not means, so that micro-batches and ranks add up exactly.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
from tensordict import TensorDict
from verl.utils.metric import AggregationType, Metric
from verl.workers.utils.padding import no_padding_2_padding

PREFIX = "agreement/"


def measured(loss_function: Callable[..., Any]) -> Callable[..., Any]:
    """The loss function, with the sums of :func:`sums` among its metrics."""

    def loss(
        model_output: dict[str, torch.Tensor], data: TensorDict, dp_group: Any = None
    ) -> tuple[torch.Tensor, dict[str, Any]]:
        value, metrics = loss_function(model_output=model_output, data=data, dp_group=dp_group)
        actor = no_padding_2_padding(model_output["log_probs"].detach(), data)
        padded = data.select("rollout_log_probs", "response_mask").to_padded_tensor()
        mask = padded["response_mask"].bool()
        for name, number in sums(actor[mask], padded["rollout_log_probs"][mask]).items():
            kind = AggregationType.MAX if name == "max" else AggregationType.SUM
            metrics[PREFIX + name] = Metric(kind, number)
        return value, metrics

    return loss


def sums(actor_log_probs: torch.Tensor, rollout_log_probs: torch.Tensor) -> dict[str, float]:
    """Sums over the sampled tokens' probabilities under the actor (a) and the rollout (r)."""
    a, r = actor_log_probs.double().exp(), rollout_log_probs.double().exp()
    difference = (a - r).abs()
    summands = {"difference": difference, "difference2": difference.square(), "a": a, "r": r, "ar": a * r}
    summands |= {"a2": a.square(), "r2": r.square()}
    numbers = {name: float(each.sum()) for name, each in summands.items()}
    return {"count": float(len(a)), "max": float(difference.max()) if len(a) else 0.0, **numbers}


def statistics(metrics: dict[str, float]) -> dict[str, float]:
    """veRL's own metrics of this kind (verl.utils.debug.metrics.calculate_debug_metrics) from the sums."""
    s = {name.removeprefix(PREFIX): value for name, value in metrics.items() if name.startswith(PREFIX)}
    n = s.get("count", 0.0)
    if not n:
        return {"training/rollout_probs_diff_valid": 0.0}
    mean = s["difference"] / n
    spread = (s["a2"] / n - (s["a"] / n) ** 2) * (s["r2"] / n - (s["r"] / n) ** 2)
    covariance = s["ar"] / n - s["a"] * s["r"] / n**2
    variance = (s["difference2"] - n * mean**2) / max(n - 1, 1)
    correlation = covariance / math.sqrt(spread) if spread > 0 else math.nan
    return {
        "training/rollout_probs_diff_valid": 1.0,
        "training/rollout_probs_diff_max": s["max"],
        "training/rollout_probs_diff_mean": mean,
        "training/rollout_probs_diff_std": math.sqrt(max(variance, 0.0)),
        "training/rollout_actor_probs_pearson_corr": correlation,
    }
