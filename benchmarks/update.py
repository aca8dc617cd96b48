"""An update of the actor: veRL's padded one, packed, with fused log-probs, and over trees of prefixes (CPU).

    python -m benchmarks.update --model cache/smollm2 --lengths 200 2000 --rows 16
    python -m benchmarks.update --model MODEL --trajectories RUN_DIR/trajectories/step_1.jsonl --skip

One process, one engine of each kind in turn, the same batch with veRL's own loss of the actor. Prints
seconds (the best of the repetitions, which take turns), the loss and the norm of the gradient. `--skip`
leaves samples of equal rewards out, as a run does with research.skip_equal_groups. On a GPU, where there is
one, layers are checkpointed as in the gpu profile, and the most memory that torch allocated is printed.
"""

import functools
import json
import os
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import click
import torch
from tensordict import TensorDict
from transformers import AutoConfig, AutoModelForCausalLM

os.environ["VERL_PLATFORM"] = "nvidia" if torch.cuda.is_available() else "cpu"

from verl.utils import tensordict_utils as tu
from verl.workers.config import FSDPActorConfig, FSDPEngineConfig, FSDPOptimizerConfig, HFModelConfig
from verl.workers.engine.fsdp.transformer_impl import FSDPEngineWithLMHead
from verl.workers.utils.losses import ppo_loss

import research.training.verl.packed_attention  # noqa: F401  (registers packed_sdpa)
from research.datasets.hub import size_text
from research.episode.trajectory import Trajectory
from research.training.precision import has_bfloat16
from research.training.verl.cpu.engine import CPUFSDPEngine

ON_GPU = torch.cuda.is_available()


class Kind(NamedTuple):
    """How an update is computed."""

    engine: type
    packed: bool = False
    attention: str = "sdpa"
    fused: bool = False


KINDS = {
    "padded (veRL)": Kind(FSDPEngineWithLMHead),
    "packed, sdpa (veRL)": Kind(FSDPEngineWithLMHead, packed=True),
    "packed, packed_sdpa": Kind(FSDPEngineWithLMHead, packed=True, attention="packed_sdpa"),
    "packed, fused": Kind(FSDPEngineWithLMHead, packed=True, attention="packed_sdpa", fused=True),
}
if not ON_GPU:
    KINDS["trees"] = Kind(CPUFSDPEngine)
Rows = list[dict[str, list[Any]]]
Outcome = tuple[float, float, float]
"""Seconds, loss, norm of the gradient."""


def random_rows(model: str, count: int, shortest: int, longest: int) -> Rows:
    """Sequences of evenly spread lengths without a common prefix, half prompt; advantages of both signs."""
    vocabulary = json.loads((Path(model) / "config.json").read_text())["vocab_size"]
    generator = torch.Generator().manual_seed(0)
    rows = []
    for length in torch.linspace(shortest, longest, count).long().tolist():
        ids = torch.randint(3, vocabulary, (length,), generator=generator).tolist()
        half = length // 2
        rows.append(
            _row(ids[:half], ids[half:], [1] * (length - half), [-8.0] * (length - half), (-1) ** length)
        )
    return rows


def recorded_rows(path: Path) -> Rows:
    """A training step's trajectories, with GRPO's advantages."""
    played = [Trajectory.from_json(line) for line in path.read_text().splitlines()]
    rewards = defaultdict(list)
    for each in played:
        rewards[tuple(each.prompt_ids)].append(each.reward)
    rows = []
    for each in played:
        group = torch.tensor(rewards[tuple(each.prompt_ids)], dtype=torch.float64)
        advantage = float((each.reward - group.mean()) / (group.std() + 1e-6)) if group.std() > 1e-9 else 0.0
        rows.append(
            _row(each.prompt_ids, each.response_ids, each.response_mask, each.response_log_probs, advantage)
        )
    return rows


def _row(
    prompt: list[int], response: list[int], mask: list[int], log_probs: list[float], advantage: float
) -> dict[str, list[Any]]:
    whole = prompt + response
    return {
        "prompts": prompt,
        "responses": response,
        "response_mask": mask,
        "loss_mask": mask,
        "input_ids": whole,
        "position_ids": list(range(len(whole))),
        "rollout_log_probs": log_probs,
        "old_log_probs": log_probs,
        "advantages": [advantage] * len(response),
    }


def batch_of(rows: Rows, tokens: int, kind: Kind, skip: bool) -> TensorDict:
    """As veRL's transfer queue hands it to an engine; micro-batches of at most so many tokens."""
    columns = {
        name: torch.nested.as_nested_tensor([torch.tensor(row[name]) for row in rows], layout=torch.jagged)
        for name in rows[0]
    }
    batch = TensorDict(columns, batch_size=len(rows))
    settings = {"max_token_len_per_gpu": tokens, "skip_equal_groups": skip, "global_batch_size": len(rows)}
    how = {"use_remove_padding": kind.packed, "use_fused_kernels": kind.fused, "use_dynamic_bsz": True}
    tu.assign_non_tensor(batch, temperature=1.0, **how, **settings)
    return batch


def engine_of(kind: Kind, model: str, half: bool) -> Any:
    """An engine as a worker makes it."""
    precision = {"param_dtype": "bf16" if half else "fp32", "reduce_dtype": "fp32", "buffer_dtype": "fp32"}
    engine = kind.engine(
        HFModelConfig(
            path=model,
            use_remove_padding=kind.packed,
            use_fused_kernels=kind.fused,
            fused_kernel_options={"impl_backend": "torch"},
            enable_gradient_checkpointing=ON_GPU,
            override_config={"attn_implementation": kind.attention},
        ),
        FSDPEngineConfig(
            strategy="fsdp2", model_dtype="fp32", mixed_precision=precision, use_torch_compile=False
        ),
        FSDPOptimizerConfig(lr=1e-5, total_training_steps=10),
        None,
    )
    engine.initialize()
    return engine


def update(engine: Any, batch: TensorDict, loss: Any) -> Outcome:
    """One forward and backward pass over a batch."""
    with engine.train_mode():
        start = time.perf_counter()
        output = engine.forward_backward_batch(batch, loss)
        if ON_GPU:
            torch.cuda.synchronize()
        seconds = time.perf_counter() - start
        squares = [
            each.grad.double().square().sum() for each in engine.module.parameters() if each.grad is not None
        ]
        engine.optimizer_zero_grad()
    return seconds, sum(output["loss"]), float(torch.stack(squares).sum().sqrt())


@contextmanager
def one_process() -> Iterator[None]:
    """What FSDP takes for a group of one."""
    backend = "cpu:gloo,cuda:nccl" if ON_GPU else "gloo"
    with tempfile.TemporaryDirectory() as folder:
        store = f"file://{folder}/store"
        torch.distributed.init_process_group(backend, init_method=store, rank=0, world_size=1)
        yield
        torch.distributed.destroy_process_group()


@contextmanager
def plain_forward(model: str) -> Iterator[None]:
    """For fused log-probs veRL replaces the forward pass of the model's class: put it back afterwards."""
    model_class = AutoModelForCausalLM._model_mapping[type(AutoConfig.from_pretrained(model))]
    forward = model_class.forward
    yield
    model_class.forward = forward


def most_memory() -> str:
    """Of the GPU since the last time, in words; empty on a CPU."""
    if not ON_GPU:
        return ""
    most = torch.cuda.max_memory_allocated()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    return f"  at most {size_text(most)}"


@click.command()
@click.option("--model", required=True, type=click.Path(exists=True, file_okay=False))
@click.option("--trajectories", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--lengths", nargs=2, default=(200, 2000), show_default=True, help="Without --trajectories.")
@click.option("--rows", default=16, show_default=True, help="Without --trajectories.")
@click.option("--tokens", default=4096, show_default=True, help="Of a micro-batch.")
@click.option("--repetitions", default=2, show_default=True)
@click.option("--skip", is_flag=True, help="Samples of equal rewards; ours alone can.")
@click.option("--float32", is_flag=True, help="Even where the processor multiplies bfloat16.")
@click.option("--kind", "kinds", multiple=True, type=click.Choice(list(KINDS)), help="Default: all.")
def main(
    model: str,
    trajectories: Path | None,
    lengths: tuple[int, int],
    rows: int,
    tokens: int,
    repetitions: int,
    skip: bool,
    float32: bool,
    kinds: tuple[str, ...],
) -> None:
    """Time one update of each kind."""
    data = recorded_rows(trajectories) if trajectories else random_rows(model, rows, *lengths)
    config = FSDPActorConfig(
        strategy="fsdp2", rollout_n=1, use_dynamic_bsz=True, ppo_mini_batch_size=len(data)
    )
    loss = functools.partial(ppo_loss, config=config)
    half = (ON_GPU or has_bfloat16("cpu")) and not float32
    with one_process():
        found: dict[str, list[Outcome]] = defaultdict(list)
        for name in (kinds or tuple(KINDS)) * repetitions:
            with plain_forward(model):
                engine = engine_of(KINDS[name], model, half)
                found[name].append(update(engine, batch_of(data, tokens, KINDS[name], skip), loss))
                del engine
            seconds, value, norm = found[name][-1]
            line = f"{name:24} {seconds:8.2f} s  loss {value:.6f}  gradient {norm:.5f}"
            click.echo(line + most_memory())
    count = sum(len(row["input_ids"]) for row in data)
    click.echo(
        f"\n{len(data)} sequences, {count:,} tokens, {'bfloat16' if half else 'float32'}; the best of each:"
    )
    for name, results in found.items():
        best = min(seconds for seconds, _, _ in results)
        click.echo(f"{name:24} {best:8.2f} s  {count / best:7.0f} tokens/s")


if __name__ == "__main__":
    main()
