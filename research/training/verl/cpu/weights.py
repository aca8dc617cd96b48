"""How vLLM's CPU workers take new weights.

Plugged in by ``rollout.engine_kwargs.vllm.worker_extension_cls``.
"""

from typing import Any

import torch
from verl.workers.rollout.vllm_rollout.bucketed_weight_transfer import BucketedWeightReceiver
from verl.workers.rollout.vllm_rollout.utils import vLLMColocateWorkerExtension


class CPUWorkerExtension(vLLMColocateWorkerExtension):
    """veRL's worker extension with vLLM's layer-wise reload.

    vLLM packs linear weights for the CPU and drops the originals, so that loading a parameter by name, as
    veRL does, finds nothing to load into; ``reload_weights`` builds each layer again.
    """

    model_runner: Any  # vLLM mixes this class into its worker

    def update_weights_from_ipc(
        self, peft_config: dict[str, Any] | None = None, base_sync_done: bool = False, use_shm: bool = False
    ) -> None:
        """Receive all buckets, then reload.

        Raises:
            NotImplementedError: LoRA weights, which the CPU path does not take.
        """
        if peft_config:
            raise NotImplementedError("the CPU rollout takes whole weights, not LoRA adapters")
        weights: list[tuple[str, torch.Tensor]] = []

        def keep(bucket: list[tuple[str, torch.Tensor]], is_last: bool) -> None:
            # The tensors are views of shared memory that is gone after the last bucket.
            weights.extend((name, tensor.clone()) for name, tensor in bucket)

        receiver = BucketedWeightReceiver(
            zmq_handle=self._get_zmq_handle(), device=torch.device("cpu"), use_shm=use_shm
        )
        receiver.receive_weights(on_bucket_received=keep)
        self.model_runner.reload_weights(iter(weights))
