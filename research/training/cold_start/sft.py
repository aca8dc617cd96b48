"""Train a causal language model on demonstrations, on a CPU or a GPU: on the tokens of the policy.

python -m research.training cold-start train --demonstrations demonstrations.parquet --model DIR --out DIR
"""

import json
import random
import shutil
import time
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import pyarrow.parquet as pq
import torch
from torch import Tensor

from research.errors import DataError, warn
from research.files import filling, link_or_copy, require_new
from research.model_folder import load_tokenizer, named, require_model
from research.training.cold_start.demonstrations import UNTRAINED
from research.training.precision import autocast
from research.training.run.index import cache_key
from research.values import Number

REPORT_SECONDS = 20.0
FILE = click.Path(path_type=Path)
WARM_UP = 10  # updates over which the rate rises
LAST_RATE = 0.05  # share of the rate that is left at the end
LENGTH_STEP = 32
CHUNK = 64  # demonstrations among which those of similar length go together


Example = tuple[list[int], list[int]]
"""Token ids and labels of one episode."""


@dataclass(frozen=True)
class Schedule:
    """How long and how fast: `seconds` bound the epochs; a batch has at most `batch_tokens`, padding too."""

    epochs: int
    rate: float
    batch_tokens: int
    seconds: float | None
    seed: int


@click.command(context_settings={"help_option_names": ["-h", "--help"], "show_default": True})
@click.option("--demonstrations", "files", required=True, multiple=True, type=FILE, help="One or several.")
@click.option("--model", required=True, help="To start from: a folder or a name on the hub.")
@click.option("--out", required=True, type=FILE, help="New folder.")
@click.option("--epochs", default=2, type=click.IntRange(1), help="Passes over all demonstrations.")
@click.option("--rate", default=2e-4, type=Number(0, min_open=True), help="Highest learning rate of AdamW.")
@click.option("--batch-tokens", default=1500, type=click.IntRange(1), help="Per update.")
@click.option("--seconds", type=Number(0, min_open=True), help="End after that long, if not before.")
@click.option("--seed", default=0, help="Seed of the order.")
@click.option("--cache", type=FILE, help="Folder in which an equal policy is kept or found.")
def train(
    files: tuple[Path, ...],
    model: str,
    out: Path,
    epochs: int,
    rate: float,
    batch_tokens: int,
    seconds: float | None,
    seed: int,
    cache: Path | None,
) -> None:
    """Train a model on demonstrations and save it as a Hugging Face folder."""
    require_new(out)
    require_model(model)
    examples = [each for file in files for each in read_demonstrations(file)]
    schedule = Schedule(epochs, rate, batch_tokens, seconds, seed)
    if cache is None:
        _train(examples, model, schedule, out)
        return
    files_of_model = map(_stamp, sorted(Path(model).glob("*")))
    kept = cache / f"cold_start-{cache_key(json.dumps(examples), model, *files_of_model, schedule)}"
    if kept.exists():
        click.echo(f"{kept}: trained before, on the same demonstrations")
        _copy(kept, out)
    elif _train(examples, model, schedule, out):  # what its seconds ended would be another one next time
        _copy(out, kept)


def _copy(folder: Path, target: Path) -> None:
    with filling(target) as scratch:
        shutil.copytree(folder, scratch, copy_function=link_or_copy, dirs_exist_ok=True)


def _stamp(path: Path) -> str:
    return f"{path.name} {path.stat().st_size} {path.stat().st_mtime_ns}"


def _train(examples: Sequence[Example], model: str, schedule: Schedule, out: Path) -> bool:
    """Train and save; whether all epochs were over before the seconds were."""
    from transformers import AutoModelForCausalLM

    tokenizer = load_tokenizer(model)  # which may fail, so before the training
    device = "cuda" if torch.cuda.is_available() else "cpu"
    with named(model):
        policy = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).to(device)
    start = time.monotonic()
    updates, whole = _report(fit(policy, examples, schedule), start)
    if not updates:
        raise DataError(
            f"nothing was trained: {len(examples)} demonstrations, {schedule.seconds or 'unlimited'} seconds"
        )
    if not whole:
        after = f"{schedule.seconds:g} s and {updates} updates"
        click.echo(f"ended after {after}, before {schedule.epochs} epochs were over")
    if updates <= WARM_UP:
        warn(f"{updates} updates teach next to nothing: the learning rate rises over the first {WARM_UP}")
    with filling(out) as scratch:
        policy.save_pretrained(scratch)
        tokenizer.save_pretrained(scratch)
        took = {"seconds": round(time.monotonic() - start, 1), "demonstrations": len(examples)}
        took |= {"updates": updates, "whole": whole}
        (scratch / "cold_start.json").write_text(json.dumps(took) + "\n")
    click.echo(f"saved in {out}, after {updates} updates")
    return whole


def read_demonstrations(path: Path) -> list[Example]:
    """The demonstrations of a file. Raises DataError if it holds none."""
    if not path.is_file():
        raise DataError(f"--demonstrations: there is no file {path}")
    try:
        table = pq.read_table(path, columns=["input_ids", "labels"]).to_pydict()
    except (OSError, KeyError, ValueError) as error:
        raise DataError(f"{path}: is no file of demonstrations ({' '.join(str(error).split())})") from error
    return list(zip(table["input_ids"], table["labels"], strict=True))


def fit(
    model: Any, examples: Sequence[Example], schedule: Schedule
) -> Generator[tuple[float, float], None, bool]:
    """Train in place; yields (share that is done, loss in nats a token of the policy) after each update.

    Returns whether all epochs were over before the seconds were.
    """
    optimiser = torch.optim.AdamW(model.parameters(), lr=schedule.rate, weight_decay=0.0, betas=(0.9, 0.95))
    start, handle, whole = time.monotonic(), _Head(model), True
    model.train()
    for step, (share, ids, labels) in enumerate(_batches(examples, schedule)):
        spent = (time.monotonic() - start) / schedule.seconds if schedule.seconds else 0.0
        if (done := max(share, spent)) >= 1:
            whole = False
            break
        for group in optimiser.param_groups:
            group["lr"] = schedule.rate * min(1.0, (step + 1) / WARM_UP) * max(LAST_RATE, 1 - done)
        loss = handle.loss(ids, labels)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        optimiser.zero_grad()
        yield done, loss.item()
    handle.close()
    model.eval()
    return whole


class _Head:
    """Gives the model's head only the hidden states that predict a label: most tokens are passages."""

    def __init__(self, model: Any) -> None:
        self.model, self.predicting = model, torch.empty(0, dtype=torch.bool)
        self.close = model.get_output_embeddings().register_forward_pre_hook(self._keep).remove

    def _keep(self, head: torch.nn.Module, inputs: tuple[Tensor]) -> tuple[Tensor]:
        return (inputs[0][self.predicting],)

    def loss(self, ids: Tensor, labels: Tensor) -> Tensor:
        """Mean cross-entropy of the labels of (episodes, tokens), padded on the right."""
        ids, labels = ids.to(self.model.device), labels.to(self.model.device)
        following = torch.full_like(labels, UNTRAINED)
        following[:, :-1] = labels[:, 1:]
        self.predicting = following != UNTRAINED
        with autocast(self.model.device.type):
            logits = self.model(input_ids=ids, use_cache=False).logits
        return torch.nn.functional.cross_entropy(logits.float(), following[self.predicting])


def _batches(examples: Sequence[Example], schedule: Schedule) -> Iterator[tuple[float, Tensor, Tensor]]:
    """Batches of all epochs (share before it, ids, labels): similar lengths, padded with any token.

    Causal models do not see the padding.
    """
    rng, order = random.Random(schedule.seed), list(examples)
    for epoch in range(schedule.epochs):
        rng.shuffle(order)
        groups = [g for at in range(0, len(order), CHUNK) for g in _groups(order[at : at + CHUNK], schedule)]
        rng.shuffle(groups)
        for place, group in enumerate(groups):
            yield (epoch + place / len(groups)) / schedule.epochs, *_padded(group)


def _groups(chunk: Sequence[Example], schedule: Schedule) -> list[list[Example]]:
    groups: list[list[Example]] = [[]]
    for example in sorted(chunk, key=lambda each: len(each[0])):
        if groups[-1] and (len(groups[-1]) + 1) * len(example[0]) > schedule.batch_tokens:
            groups.append([])
        groups[-1].append(example)
    return groups


def _padded(group: Sequence[Example]) -> tuple[Tensor, Tensor]:
    """Padded to a multiple of LENGTH_STEP, because memory is kept for every shape that was seen."""
    longest = -(-max(len(ids) for ids, _ in group) // LENGTH_STEP) * LENGTH_STEP
    ids = torch.zeros(len(group), longest, dtype=torch.long)
    labels = torch.full((len(group), longest), UNTRAINED)
    for row, (tokens, wanted) in enumerate(group):
        ids[row, : len(tokens)], labels[row, : len(wanted)] = torch.tensor(tokens), torch.tensor(wanted)
    return ids, labels


def _report(updates: Generator[tuple[float, float], None, bool], start: float) -> tuple[int, bool]:
    """Run the updates, with a line every few seconds; their number, and what `fit` returns."""
    losses: list[float] = []
    said, count = start, 0
    while True:
        try:
            share, loss = next(updates)
        except StopIteration as end:
            return count, bool(end.value)
        losses.append(loss)
        count += 1
        if time.monotonic() - said > REPORT_SECONDS:
            said = time.monotonic()
            click.echo(f"{share:4.0%}  loss {sum(losses) / len(losses):.3f}  {said - start:.0f} s")
            losses = []
