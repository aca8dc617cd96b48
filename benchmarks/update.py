"""An update of the actor on a CPU: veRL's padded one, packed, and ours over trees of prefixes.

    python -m benchmarks.update --model cache/smollm2 --lengths 200 2000 --rows 16
    python -m benchmarks.update --model MODEL --trajectories RUN_DIR/trajectories/step_1.jsonl --skip

One process, one engine of each kind in turn, the same batch with veRL's own loss of the actor. Prints
seconds (the best of the repetitions, which take turns), the loss and the norm of the gradient. `--skip`
leaves samples of equal rewards out, as a run does with research.skip_equal_groups.
"""

import functools
import json
import os
import tempfile
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import click
import torch
from tensordict import TensorDict

os.environ["VERL_PLATFORM"] = "cpu"

from verl.utils import tensordict_utils as tu
from verl.workers.config import FSDPActorConfig, FSDPEngineConfig, FSDPOptimizerConfig, HFModelConfig
from verl.workers.engine.fsdp.transformer_impl import FSDPEngineWithLMHead
from verl.workers.utils.losses import ppo_loss

import research.training.verl.packed_attention  # noqa: F401  (registers packed_sdpa)
from research.episode.trajectory import Trajectory
from research.training.precision import has_bfloat16
from research.training.verl.cpu.engine import CPUFSDPEngine

# Name -> engine, use_remove_padding, attention.
KINDS = {
    "padded (veRL)": (FSDPEngineWithLMHead, False, "sdpa"),
    "packed, sdpa (veRL)": (FSDPEngineWithLMHead, True, "sdpa"),
    "packed, packed_sdpa": (FSDPEngineWithLMHead, True, "packed_sdpa"),
    "trees": (CPUFSDPEngine, False, "sdpa"),
}
Rows = list[dict[str, list[Any]]]


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


def batch_of(rows: Rows, tokens: int, packed: bool, skip: bool) -> TensorDict:
    """As veRL's transfer queue hands it to an engine; micro-batches of at most so many tokens."""
    columns = {
        name: torch.nested.as_nested_tensor([torch.tensor(row[name]) for row in rows], layout=torch.jagged)
        for name in rows[0]
    }
    batch = TensorDict(columns, batch_size=len(rows))
    settings = {"max_token_len_per_gpu": tokens, "skip_equal_groups": skip, "global_batch_size": len(rows)}
    tu.assign_non_tensor(batch, use_remove_padding=packed, use_dynamic_bsz=True, temperature=1.0, **settings)
    return batch


def engine_of(name: str, model: str, half: bool) -> Any:
    """An engine as a worker makes it."""
    kind, packed, attention = KINDS[name]
    precision = {"param_dtype": "bf16" if half else "fp32", "reduce_dtype": "fp32", "buffer_dtype": "fp32"}
    engine = kind(
        HFModelConfig(
            path=model,
            use_remove_padding=packed,
            enable_gradient_checkpointing=False,
            override_config={"attn_implementation": attention},
        ),
        FSDPEngineConfig(
            strategy="fsdp2", model_dtype="fp32", mixed_precision=precision, use_torch_compile=False
        ),
        FSDPOptimizerConfig(lr=1e-5, total_training_steps=10),
        None,
    )
    engine.initialize()
    return engine


def update(engine: Any, batch: TensorDict, loss: Any) -> tuple[float, float, float]:
    """(seconds, loss, norm of the gradient) of one forward and backward pass over a batch."""
    with engine.train_mode():
        start = time.perf_counter()
        output = engine.forward_backward_batch(batch, loss)
        seconds = time.perf_counter() - start
        squares = [
            each.grad.double().square().sum() for each in engine.module.parameters() if each.grad is not None
        ]
        engine.optimizer_zero_grad()
    return seconds, sum(output["loss"]), float(torch.stack(squares).sum().sqrt())


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
    half = has_bfloat16("cpu") and not float32
    with tempfile.TemporaryDirectory() as folder:
        torch.distributed.init_process_group(
            "gloo", init_method=f"file://{folder}/store", rank=0, world_size=1
        )
        found: dict[str, list[tuple[float, float, float]]] = defaultdict(list)
        for _ in range(repetitions):
            for name in kinds or KINDS:
                engine = engine_of(name, model, half)
                found[name].append(update(engine, batch_of(data, tokens, KINDS[name][1], skip), loss))
                del engine
                seconds, value, norm = found[name][-1]
                click.echo(f"{name:24} {seconds:8.2f} s  loss {value:.6f}  gradient {norm:.5f}")
        torch.distributed.destroy_process_group()
    count = sum(len(row["input_ids"]) for row in data)
    click.echo(
        f"\n{len(data)} sequences, {count:,} tokens, {'bfloat16' if half else 'float32'}; the best of each:"
    )
    for name, results in found.items():
        best = min(seconds for seconds, _, _ in results)
        click.echo(f"{name:24} {best:8.2f} s  {count / best:7.0f} tokens/s")


if __name__ == "__main__":
    main()
