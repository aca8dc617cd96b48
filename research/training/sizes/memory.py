"""How much memory a training takes, by part; docs/gpus.md has the formula and its sources.

Two phases share a GPU: vLLM samples while the actor's states are away or beside it, then vLLM sleeps while
the actor learns. On a CPU all of it is in main memory at once.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from omegaconf import DictConfig

from research.datasets.hub import size_text
from research.training.sizes.model import ModelSizes

GB = 10**9
# Ray, veRL, vLLM and the retriever without any model: measured, as proportional set sizes.
PROCESSES = 6 * GB
CUDA = 1 * GB  # the context of a process, and what libraries take
SINGLE, HALF = 4, 2  # bytes of a number
STATES = 4 * SINGLE  # of a parameter: weight, gradient, both moments of Adam
LOGITS_CPU = 4 * SINGLE  # a logit, its log-softmax and the gradients of both
# Of a logit on a GPU, see `logits`; each was measured with PyTorch on a CPU.
PLAIN = 3 * HALF  # logit, log-softmax, gradient
ENTROPY = 2 * SINGLE + HALF  # beside these: a copy in single precision, its softmax, one more gradient
ENTROPY_PIECE, ENTROPY_TOKENS = 5 * SINGLE, 2048  # of the piece whose gradient is computed
FUSED_PIECE, FUSED_TOKENS = 7 * SINGLE + 1, 512  # of the only piece that is there
SAMPLED = 3 * SINGLE  # of vLLM: a logit, its probability, noise
COLUMNS = {"update": "GPU, learning", "rollout": "GPU, sampling", "main": "main memory"}


@dataclass(frozen=True)
class Part:
    """Bytes of one GPU while the actor learns and while vLLM samples, and of the main memory of a node."""

    what: str
    update: int = 0
    rollout: int = 0
    main: int = 0


def total(parts: Sequence[Part], phase: str) -> int:
    """Bytes of all parts in a column of the table."""
    return sum(getattr(part, phase) for part in parts)


def activations(config: DictConfig, sizes: ModelSizes) -> int:
    """Bytes per token that a backward pass needs, in bfloat16, with norms in float32.

    A layer keeps 8 vectors of the hidden size and 4 of the intermediate one in half precision, and 6 of the
    hidden size in single; with gradient checkpointing only its input, and one layer is computed again.
    """
    layer = (8 * HALF + 6 * SINGLE) * sizes.hidden + 4 * HALF * sizes.intermediate
    if config.actor_rollout_ref.model.enable_gradient_checkpointing:
        return sizes.layers * HALF * sizes.hidden + layer
    return sizes.layers * layer


def logits(config: DictConfig, sizes: ModelSizes) -> tuple[int, int]:
    """Bytes (a token, beside that) on a GPU of the logits and what their loss needs of them.

    veRL's fused log-probs have logits of one piece of the tokens at a time, forward and again backward, and
    the gradient of the last layer twice. Without them an entropy in the loss keeps two copies of all.
    """
    actor = config.actor_rollout_ref.actor
    if config.actor_rollout_ref.model.use_fused_kernels:
        return 0, FUSED_PIECE * FUSED_TOKENS * sizes.vocabulary + 2 * HALF * sizes.largest
    if actor.entropy_coeff or actor.calculate_entropy:
        return (PLAIN + ENTROPY) * sizes.vocabulary, ENTROPY_PIECE * ENTROPY_TOKENS * sizes.vocabulary
    return PLAIN * sizes.vocabulary, 0


def number_bytes(dtype: str) -> int:
    """Bytes of one number of this type."""
    return HALF if dtype in ("bfloat16", "float16") else SINGLE


def token_budget(config: DictConfig) -> int:
    """Tokens of the actor's largest micro-batch."""
    actor, data = config.actor_rollout_ref.actor, config.data
    if actor.use_dynamic_bsz:
        return int(actor.ppo_max_token_len_per_gpu)
    return int(actor.ppo_micro_batch_size_per_gpu) * (data.max_prompt_length + data.max_response_length)


def adapter_parameters(sizes: ModelSizes, rank: int) -> int:
    """Parameters of LoRA on each block's seven linear layers: rank times inputs plus outputs of each."""
    queries = sizes.heads * sizes.cached_width // max(sizes.key_value_heads, 1)
    attention = 4 * sizes.hidden + 2 * queries + 2 * sizes.cached_width
    return rank * sizes.layers * (attention + 3 * (sizes.hidden + sizes.intermediate))


def states(config: DictConfig, sizes: ModelSizes) -> tuple[int, int]:
    """Bytes of (weights, gradients and Adam's moments) of the actor; with LoRA the weights are frozen."""
    adapters = adapter_parameters(sizes, int(config.actor_rollout_ref.model.lora_rank))
    trained = adapters or sizes.parameters
    return SINGLE * (sizes.parameters + adapters), (STATES - SINGLE) * trained


def reference(config: DictConfig, sizes: ModelSizes) -> list[Part]:
    """The reference policy's share of a node, in float32 (veRL's `model_dtype`); none with adapters.

    With those it is the model without them.
    """
    if config.actor_rollout_ref.model.lora_rank or not config.actor_rollout_ref.actor.use_kl_loss:
        return []
    return [Part("reference policy", main=SINGLE * sizes.parameters // config.trainer.nnodes)]


def on_cpu(config: DictConfig, sizes: ModelSizes) -> list[Part]:
    """Parts of the cpu profile: all in main memory at once."""
    rollout, tokens = config.actor_rollout_ref.rollout, token_budget(config)
    cache = int(config.ray_kwargs.ray_init.runtime_env.env_vars.VLLM_CPU_KVCACHE_SPACE) << 30
    parts = [
        Part("processes without a model", main=PROCESSES),
        Part("actor: weights, gradients, Adam", main=sum(states(config, sizes))),
        Part(f"actor: activations of {tokens:,} tokens", main=tokens * activations(config, sizes)),
        Part("actor: logits", main=tokens * sizes.vocabulary * LOGITS_CPU),
        Part("vLLM: weights", main=number_bytes(rollout.dtype) * sizes.parameters),
        Part("vLLM: keys and values", main=cache),
        Part("vLLM: logits", main=rollout.max_num_seqs * sizes.vocabulary * SAMPLED),
    ]
    return [*parts, *reference(config, sizes)]


def on_gpus(config: DictConfig, sizes: ModelSizes, card: int) -> list[Part]:
    """Parts of one GPU of `card` bytes, and of one node's main memory."""
    actor, rollout = config.actor_rollout_ref.actor, config.actor_rollout_ref.rollout
    fsdp, node, tokens = actor.fsdp_config, config.trainer.n_gpus_per_node, token_budget(config)
    world = node * config.trainer.nnodes
    weights, others = (each // world for each in states(config, sizes))
    beside = weights * (not fsdp.param_offload) + others * (not fsdp.optimizer_offload)
    beside = 0 if fsdp.offload_policy else beside
    learning = 0 if fsdp.offload_policy else weights + others
    # The last layer stays, and with it the layer being computed, its gradient and the next one.
    ends = sizes.largest if sizes.tied else 2 * sizes.largest  # embeddings and last layer
    layer = (sizes.parameters - ends) // max(sizes.layers, 1)
    adapted = bool(config.actor_rollout_ref.model.lora_rank)
    logits_each, logits_beside = logits(config, sizes)
    parts = [
        Part("processes", CUDA, 2 * CUDA, PROCESSES),
        Part("actor: weights, gradients, Adam", learning, beside, (weights + others - beside) * node),
        Part("actor: gathered layers", HALF * (sizes.largest + 3 * layer)),
        Part(f"actor: activations of {tokens:,} tokens", tokens * activations(config, sizes)),
        Part("actor: logits", tokens * logits_each + logits_beside),
        Part("vLLM: weights, keys and values", rollout=int(rollout.gpu_memory_utilization * card)),
    ]
    if adapted:  # veRL keeps the weights apart while those with the adapters are sent
        parts.append(Part("LoRA: copy of the weights", main=weights * node))
    return [*parts, *reference(config, sizes)]


def as_table(parts: Sequence[Part], card: int | None, memory: int, there: str = "there is") -> str:
    """The parts, their sums, and what there is. `card`: None on a CPU; `memory`: of this machine."""
    columns = list(COLUMNS) if card else ["main"]
    sums = {each: total(parts, each) for each in COLUMNS}
    rows = [*parts, Part("in all", **sums), Part(there, card or 0, card or 0, memory)]
    lines = [f"{'memory, estimated':40}" + "".join(f"{COLUMNS[each]:>15}" for each in columns)]
    for part in rows:
        cells = (size_text(value) if (value := getattr(part, each)) else "-" for each in columns)
        lines.append(f"{part.what:40}" + "".join(f"{cell:>15}" for cell in cells))
    return "\n".join(lines)
