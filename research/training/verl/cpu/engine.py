"""FSDP on a CPU, registered through veRL's engine registry. Imported by research/training/verl/worker.py.

It computes what veRL's engine computes (tests/test_cpu_engine.py compares them), in a fraction of the time:
common parts of samples are computed once, nothing is padded, and only sampled tokens get logits.
"""

import dataclasses
import os
from collections.abc import Iterator
from typing import Any, cast

import torch
from tensordict import TensorDict
from torch.distributed.tensor import DTensor
from verl.utils import tensordict_utils as tu
from verl.utils.fsdp_utils import merged_lora_context, normalize_peft_param_name
from verl.workers.engine.base import EngineRegistry
from verl.workers.engine.fsdp.transformer_impl import FSDPEngineWithLMHead

from research.training.verl.cpu.agreement import measured
from research.training.verl.cpu.equal_groups import SKIP, advantages_alone, informative
from research.training.verl.cpu.micro_batches import TREES
from research.training.verl.cpu.prefix_tree import PrefixTree, takes_trees

# Switches of veRL whose outputs need the logits of all positions.
WHOLE_LOGITS = (
    "use_remove_padding",
    "use_fused_kernels",
    "distillation_use_topk",
    "calculate_sum_pi_squared",
)


@EngineRegistry.register(model_type="language_model", backend=["fsdp", "fsdp2"], device="cpu")
class CPUFSDPEngine(FSDPEngineWithLMHead):
    """veRL's FSDP engine, made fast for small models on a CPU."""

    # True from the moment the rollout gets the weights until they change.
    weights_are_the_rollouts = False
    engine_config: Any

    def _build_fsdp_module(self, module: Any) -> Any:
        """Without the offload of a reference policy: it pins memory, which needs an accelerator."""
        config = self.engine_config
        self.engine_config = dataclasses.replace(config, forward_only=False, offload_policy=False)
        try:
            return super()._build_fsdp_module(module)
        finally:
            self.engine_config = config

    # ------------------------------------------------------------------------------ micro-batches

    def forward_backward_batch(self, data: TensorDict, loss_function: Any, forward_only: bool = False) -> Any:
        """As veRL's, without samples that add nothing, in our own micro-batches."""
        torch.set_num_threads(os.cpu_count() or 1)  # OMP_NUM_THREADS is the rollout's number
        skip = tu.get_non_tensor_data(data=data, key=SKIP, default=False) and not forward_only
        if skip and self.get_data_parallel_size() == 1 and advantages_alone(loss_function):
            data, loss_function = informative(data, loss_function)
        if self.weights_are_the_rollouts and loss_function is not None and "rollout_log_probs" in data:
            loss_function = measured(loss_function)
        tu.assign_non_tensor(data, **{TREES: _is_plain(data) and takes_trees(self.module)})
        return super().forward_backward_batch(data, loss_function, forward_only)

    # ------------------------------------------------------------------------------- one micro-batch

    def prepare_model_inputs(self, micro_batch: TensorDict) -> tuple[dict[str, Any], dict[str, Any]]:
        """A tree of prefixes, else inputs without mask and positions: PyTorch's fast kernel takes none.

        Sequences are padded on the right then, so causal attention alone keeps tokens from seeing the
        padding, and positions count from 0.
        """
        inputs, arguments = super().prepare_model_inputs(micro_batch=micro_batch)
        self.sampled = sampled_tokens(micro_batch) if _is_plain(micro_batch) else None
        if self.sampled is None:
            return inputs, arguments
        if self._logits_hook is None:
            head = self.module.get_output_embeddings()
            self._logits_hook = head.register_forward_pre_hook(self._keep_predicting)
        ids, longest = micro_batch["input_ids"], inputs["input_ids"].shape[1]
        rows = torch.searchsorted(ids.offsets()[1:].contiguous(), self.sampled, right=True)
        labels = ids.values()[self.sampled]
        if takes_trees(self.module):
            tree = PrefixTree(ids.unbind())
            inputs, places = tree.inputs(), torch.cat(tree.paths)[self.sampled - 1]
        else:
            padding_before = torch.arange(len(ids.offsets()) - 1) * longest - ids.offsets()[:-1]
            inputs |= {"attention_mask": None, "position_ids": None}
            places = self.sampled - 1 + padding_before[rows]
        pairs = torch.stack([places, labels])
        (self.predicting, self.labels), self.of = pairs.unique(dim=1, return_inverse=True)
        temperature = arguments.get("temperature")
        if temperature is not None:
            arguments["temperature"] = torch.ones(len(self.labels)).index_put((self.of,), temperature[rows])
        return inputs, arguments

    # Of the current micro-batch: the positions of its sampled tokens in the packed sequences (None: not a
    # plain one), the positions in the model's input that predict them and what they predict, each pair once,
    # and which pair is a sampled token's.
    sampled: torch.Tensor | None = None
    predicting: torch.Tensor
    labels: torch.Tensor
    of: torch.Tensor
    _logits_hook: Any = None

    def _keep_predicting(self, head: torch.nn.Module, inputs: tuple[torch.Tensor]) -> tuple[torch.Tensor]:
        """Give the model's head only hidden states that predict a sampled token, as one sequence."""
        if self.sampled is None:
            return inputs
        return (inputs[0].flatten(0, 1)[self.predicting].unsqueeze(0),)

    def prepare_model_outputs(
        self, output: Any, output_args: dict[str, Any], micro_batch: TensorDict, logits_processor_func: Any
    ) -> dict[str, torch.Tensor]:
        """Log-probabilities and entropy of sampled tokens; 0 for all others, which no loss looks at."""
        if self.sampled is None:
            return super().prepare_model_outputs(output, output_args, micro_batch, logits_processor_func)
        logits = output.logits.squeeze(0).float()
        if not output_args["temperature_is_one"]:
            logits = logits / output_args["temperature"].clamp(min=1e-8).unsqueeze(1)
        log_probs = logits.log_softmax(-1)
        chosen = log_probs.gather(1, self.labels.unsqueeze(1)).squeeze(1)
        result = {"log_probs": self._nested(chosen, micro_batch)}
        wanted = tu.get_non_tensor_data(data=micro_batch, key="calculate_entropy", default=False)
        if wanted or torch.is_grad_enabled():
            # In an update always, as a metric; part of the loss only where veRL asks for it.
            of = log_probs if wanted else log_probs.detach()
            result["entropy"] = self._nested(-(of.exp() * of).sum(-1), micro_batch)
        self.sampled = None
        return result

    def _nested(self, values: torch.Tensor, micro_batch: TensorDict) -> torch.Tensor:
        """Values in veRL's layout: at the token that predicts, the one before the sampled one."""
        ids, places = micro_batch["input_ids"], cast(torch.Tensor, self.sampled) - 1
        flat = values.new_zeros(len(ids.values())).index_put((places,), values[self.of])
        return torch.nested.nested_tensor_from_jagged(flat, ids.offsets())

    # ------------------------------------------------------------------------ whose weights these are

    def get_per_tensor_param(self, *args: Any, **kwargs: Any) -> Any:
        """The weights for the rollout."""
        self.weights_are_the_rollouts = True
        return super().get_per_tensor_param(*args, **kwargs)

    def _merged_lora_per_tensor_param(self) -> Iterator[tuple[str, torch.Tensor]]:
        """Weights with the adapters merged in, in full precision: veRL rounds them to bfloat16."""
        with merged_lora_context(self.module, backup_adapters=True):
            for name, weight in normalize_peft_param_name(self.module.state_dict()).items():
                yield name, weight.full_tensor() if isinstance(weight, DTensor) else weight.detach().clone()

    def optimizer_step(self) -> Any:
        """Change the weights."""
        self.weights_are_the_rollouts = False
        return super().optimizer_step()


def _is_plain(batch: TensorDict) -> bool:
    """Whether the batch is only text, and only log-probabilities and entropy are wanted."""
    switches = (
        tu.get_non_tensor_data(data=batch, key=key, default=key == "use_remove_padding")
        for key in WHOLE_LOGITS
    )
    return batch["position_ids"].dim() == 2 and not any(switches) and bool(batch["response_mask"].is_nested)


def sampled_tokens(batch: TensorDict) -> torch.Tensor:
    """Positions of the tokens that the policy sampled, in the packed sequences of the batch."""
    prompts, mask = batch["prompts"].offsets().diff(), batch["response_mask"]
    in_mask = mask.values().bool().nonzero().squeeze(1)
    row = torch.repeat_interleave(torch.arange(len(prompts)), mask.offsets().diff())[in_mask]
    return in_mask + prompts.cumsum(0)[row]
