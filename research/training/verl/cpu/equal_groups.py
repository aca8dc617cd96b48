"""Leave out of an update what adds exactly nothing to its gradient: samples without an advantage.

Where all samples of a question have the same reward their advantages are 0 (patches.py), and so is their
gradient if the loss is that of the advantages alone, without KL and entropy terms. With a small model on hard
questions that is most of a batch (`research.skip_equal_groups`).
"""

from collections.abc import Callable
from typing import Any

import torch
from tensordict import TensorDict
from verl.utils import tensordict_utils as tu
from verl.utils.metric import Metric

SKIP = "skip_equal_groups"
MEASURED = 8  # at least one in so many rows
ENTROPY = "actor/entropy_loss"
Loss = Callable[..., tuple[torch.Tensor, dict[str, Any]]]


def advantages_alone(loss_function: Any) -> bool:
    """Whether the advantages' term is the only one in the loss."""
    config = getattr(loss_function, "keywords", {}).get("config")
    return config is not None and not config.use_kl_loss and config.entropy_coeff == 0


def informative(data: TensorDict, loss_function: Loss) -> tuple[TensorDict, Loss]:
    """The rows with an advantage, and the loss that they have in the whole batch.

    Rows without an advantage, whose gradient is 0, come along where micro-batches have a fixed number of
    rows, and up to an eighth of the batch: entropy and agreement with the rollout are measured on these rows.
    """
    speaks = torch.stack([row.ne(0).any() for row in data["advantages"].unbind()])
    rows, order = len(speaks), (~speaks).int().argsort(stable=True)
    kept = order[: _divisible(max(-(-rows // MEASURED), int(speaks.sum())), rows, data)]
    left = tu.index_select_tensor_dict(data, kept.sort().values)
    return left, _of_whole_batch(loss_function, int(data["loss_mask"].sum()), int(left["loss_mask"].sum()))


def _divisible(count: int, rows: int, data: TensorDict) -> int:
    """The least number of rows from `count` on that micro-batches of equal size hold; at most all."""
    dynamic = tu.get_non_tensor_data(data=data, key="use_dynamic_bsz", default=True)
    size = 1 if dynamic else int(data["micro_batch_size_per_gpu"])
    return min(rows, -(-count // size) * size)


def _of_whole_batch(loss_function: Loss, tokens: int, kept: int) -> Loss:
    """The loss over the tokens of the whole batch, and the entropy of the rows that are left."""

    def loss(
        model_output: dict[str, torch.Tensor], data: TensorDict, dp_group: Any = None
    ) -> tuple[torch.Tensor, dict[str, Any]]:
        tu.assign_non_tensor(data, batch_num_tokens=tokens)
        value, metrics = loss_function(model_output=model_output, data=data, dp_group=dp_group)
        if ENTROPY in metrics:
            entropy = metrics[ENTROPY]
            metrics[ENTROPY] = Metric(entropy.aggregation, entropy.aggregate() * tokens / max(1, kept))
        return value, metrics

    return loss
