"""The gpu profile on the card that is here: seconds, memory against the estimate, agreement, search on it.

    python -m benchmarks.gpu_profile --out runs/trial                                     # 1.5B, one GPU
    python -m benchmarks.gpu_profile --out runs/trial --size tiny --hardware rehearsal    # the same on a CPU

Needs neither a hub nor data: the model has random weights and SmolLM2's tokenizer, the questions and passages
are the mini world's. It says nothing about learning. `--model FOLDER` takes a real one.
"""

import subprocess
import sys
from pathlib import Path
from typing import Any

import click
import torch
from transformers import AutoTokenizer, Qwen2Config, Qwen2ForCausalLM

from benchmarks.serving import server
from research.datasets.hub import size_text
from research.files import require_new
from research.training.config import load_config
from research.training.run.options import gpu_memory
from research.training.run.small_policy import MODEL as SMOLLM2
from research.training.run_files import read_metrics
from research.training.sizes.memory import on_cpu, on_gpus, total
from research.training.sizes.model import model_sizes

# Of Qwen2.5-1.5B, with SmolLM2's vocabulary 1.4 B parameters; and of a model for a try without a card.
SIZES = {
    "1.5b": {
        "hidden_size": 1536,
        "intermediate_size": 8960,
        "num_hidden_layers": 28,
        "num_attention_heads": 12,
        "num_key_value_heads": 2,
    },
    "tiny": {
        "hidden_size": 256,
        "intermediate_size": 512,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
    },
}
# Two steps, without the evaluations and checkpoints of a real run.
SHORT = (
    *("--steps", "2", "--index", "bm25", "trainer.val_before_train=false", "trainer.test_freq=-1"),
    *("trainer.save_freq=-1", "research.keep=last", "data.train_batch_size=8"),
    *("actor_rollout_ref.actor.ppo_mini_batch_size=8", "actor_rollout_ref.rollout.n=4"),
)
SHOWN = {
    "seconds": "timing_s/step",
    "sampling": "timing_s/gen",
    "update": "timing_s/update_actor",
    "tokens": "perf/total_num_tokens",
    "rollout and actor differ by": "training/rollout_probs_diff_mean",
    "allocated, GiB": "actor/perf/max_memory_allocated_gb",
}


def call(*words: Any) -> None:
    """Run a module of this project; its output is ours. Ends with its exit code if it fails."""
    command = [sys.executable, "-m", *map(str, words)]
    click.echo(f"+ python -m {' '.join(command[2:])}")
    if code := subprocess.run(command).returncode:
        sys.exit(code)


def make_model(folder: Path, size: str) -> Path:
    """A Qwen2 model with random weights, which answers nothing, and a real tokenizer."""
    if not SMOLLM2.exists():
        call("research.training", "cold-start", "model", "--out", SMOLLM2)
    tokenizer = AutoTokenizer.from_pretrained(SMOLLM2)
    torch.manual_seed(0)
    config = Qwen2Config(
        **SIZES[size],
        vocab_size=len(tokenizer),
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        tie_word_embeddings=True,
        max_position_embeddings=32768,
    )
    Qwen2ForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def train(out: Path, model: Path, world: Path, hardware: str, overrides: tuple[str, ...]) -> list[str]:
    """Two steps of the recipe, and what they took, one line a step."""
    run, training, validation = out / "run", "train.questions.jsonl", "validation.questions.jsonl"
    words = ["--hardware", hardware, "--run-dir", run, "--model", model, "--corpus", world / "corpus.jsonl"]
    words += ["--questions", world / training, "--validation", world / validation]
    words += ["--gpus", 1] if hardware == "gpu" else []
    call("research.training", "musique", *words, *SHORT, *overrides)
    rows = read_metrics(run)
    lines = [f"{'step':28}" + "".join(f"{row['step']:>12.0f}" for row in rows)]
    for name, key in SHOWN.items():
        values = (row.get(key) for row in rows)
        lines.append(f"{name:28}" + "".join("-".rjust(12) if v is None else f"{v:>12.4g}" for v in values))
    return [*lines, *estimate(run, str(model))]


def estimate(run: Path, model: str) -> list[str]:
    """What sizes/memory.py expects of the same configuration, beside CUDA's own."""
    config, sizes, cards = load_config(run / "config.yaml"), model_sizes(model), gpu_memory()
    if not cards:
        return [f"estimated, of main memory: {size_text(total(on_cpu(config, sizes), 'main'))}"]
    first, *others = on_gpus(config, sizes, min(cards))
    return [
        f"estimated, of a card while it learns: {size_text(total(others, 'update'))}",
        f"estimated, of main memory: {size_text(total([first, *others], 'main'))}",
    ]


@click.command()
@click.option("--out", required=True, type=click.Path(path_type=Path), help="New folder.")
@click.option("--size", type=click.Choice(list(SIZES)), default="1.5b", show_default=True)
@click.option("--model", type=click.Path(exists=True, file_okay=False, path_type=Path), help="A real one.")
@click.option("--hardware", type=click.Choice(["gpu", "rehearsal"]), default="gpu", show_default=True)
@click.option(
    "--passages",
    default=20000,
    show_default=True,
    type=click.IntRange(600),
    help="Number of passages in the index.",
)
@click.option(
    "--seconds",
    default=10,
    show_default=True,
    type=click.IntRange(1),
    help="Seconds of load for each number of clients.",
)
@click.argument("overrides", nargs=-1)
def main(
    out: Path,
    size: str,
    model: Path | None,
    hardware: str,
    passages: int,
    seconds: int,
    overrides: tuple[str, ...],
) -> None:
    """Try the gpu profile; OVERRIDES are keys of the training's configuration."""
    device = "gpu" if hardware == "gpu" else "cpu"
    if device == "gpu" and not gpu_memory():
        raise click.ClickException("there is no GPU here; --hardware rehearsal --size tiny tries it on a CPU")
    require_new(out)
    out.mkdir(parents=True)
    policy, world, index = model or make_model(out / "model", size), out / "world", out / "index"
    call("research.datasets.mini.world", "--out", world, "--passages", passages)
    lengths = (200, 2000) if device == "gpu" else (50, 200)
    call("benchmarks.update", "--model", policy, "--rows", 16, "--lengths", *lengths, "--tokens", 8192)
    lines = train(out, policy, world, hardware, overrides)
    call("retriever_server", "build", world / "corpus.jsonl", index, "--encoder", "minilm")
    with server(index, "--index-device", device, "--cache-size", "0") as (_, port):
        asked = ("--url", f"http://127.0.0.1:{port}", "--queries", world / "test.questions.jsonl")
        call("retriever_server", "bench", *asked, "--concurrency", "1,64,256", "--seconds", seconds)
    click.echo("\n" + "\n".join(lines))


if __name__ == "__main__":
    main()
