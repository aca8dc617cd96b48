"""The cold start: a small Qwen2 model trained from scratch on imperfect demonstrations, to be improved by RL.

Plain torch on a CPU, about four minutes on two cores; saves an ordinary Hugging Face folder:

    python -m research.datasets.mini.policy --out DIR --seed 0

A model this small learns to copy unseen names in so few steps because it starts wired for copying
(`wire_copying`), trains its hidden matrices with Muon, sees one-hop episodes first, and wastes no work in its
batches (equal lengths, no attention mask, logits only where there is a loss). With --steps (the default) the
same seed gives the same weights on the same machine and thread count; with --seconds the clock decides.
"""

import json
import math
import random
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import click
import torch
from omegaconf import OmegaConf
from torch import Tensor
from torch.nn import functional
from transformers import GenerationConfig, Qwen2Config, Qwen2ForCausalLM, Qwen2Tokenizer

from research.datasets.mini.demonstrations import (
    CLEAN,
    FAULTS,
    PATIENT,
    RESEARCH,
    Demonstration,
    demonstrations,
)
from research.datasets.mini.muon import Muon
from research.datasets.mini.tokenizer import LONGEST, train_tokenizer
from research.datasets.mini.world import hops_option
from research.episode.protocol import Protocol
from research.errors import DataError
from research.files import filling, require_new
from research.places import CONFIG_DIR
from research.values import Number

DEFAULT_STEPS = 1500
TOKENS_PER_STEP = 2560
POOL = 160  # episodes that are sorted by length together
MUON_RATE, ADAM_RATE, WARM_UP_STEPS, LAST_RATE = 0.02, 3e-3, 40, 0.05
WEIGHT_DECAY = 0.05
REPORT_STEPS = 50


@dataclass(frozen=True)
class Size:
    """The shape of a Qwen2 model; heads are 32 wide, which vLLM's CPU attention supports."""

    hidden: int
    layers: int
    feed_forward: int


SIZES = {"tiny": Size(128, 4, 256), "small": Size(192, 5, 512)}
HEAD = 32


Example = tuple[list[int], list[int]]
"""Token ids of a whole episode with its prompt, and 1 where the policy wrote the token, else 0."""


def tokenised(tokenizer: Qwen2Tokenizer, episode: Demonstration) -> Example:
    """Tokenise each segment by itself, as in a rollout: turns and injected blocks never merge."""
    user = [{"role": "user", "content": episode.question}]
    prompt = str(tokenizer.apply_chat_template(user, tokenize=False, add_generation_prompt=True))
    ids: list[int] = []
    mask: list[int] = []
    for text, is_policy in [(prompt, False), *episode.segments, (str(tokenizer.eos_token), True)]:
        tokens = tokenizer.encode(text, add_special_tokens=False)
        ids += tokens
        mask += [int(is_policy)] * len(tokens)
    return ids, mask


def build_model(tokenizer: Qwen2Tokenizer, size: Size, seed: int) -> Qwen2ForCausalLM:
    """A fresh float32 model with tied embeddings, wired for copying."""
    torch.manual_seed(seed)
    config = Qwen2Config(
        vocab_size=len(tokenizer),
        hidden_size=size.hidden,
        intermediate_size=size.feed_forward,
        num_hidden_layers=size.layers,
        num_attention_heads=size.hidden // HEAD,
        num_key_value_heads=size.hidden // HEAD,
        max_position_embeddings=LONGEST,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        dtype=torch.float32,
    )
    model = Qwen2ForCausalLM._from_config(config, attn_implementation="sdpa").float()
    wire_copying(model)
    return model


@torch.no_grad()
def wire_copying(model: Qwen2ForCausalLM) -> None:
    """Let every head attend to equal tokens and pass them on, and wire one induction head.

    Queries and keys of a head share a random projection ("mimetic" initialisation). Head 0 of layer 0 looks
    one token back, by its biases alone, and writes what it sees into directions that the keys of layer 1's
    head 0 read: so that head finds the token after an earlier copy of the current one. All stays trainable.
    """
    hidden = model.config.hidden_size
    model.model.embed_tokens.weight.normal_(0, 0.1)
    for layer in model.model.layers:
        attention = layer.self_attn
        for start in range(0, hidden, HEAD):
            rows = slice(start, start + HEAD)
            match, content = _directions(hidden), _directions(hidden)
            attention.q_proj.weight[rows] = attention.k_proj.weight[rows] = math.sqrt(2) * match
            attention.v_proj.weight[rows] = content / 2
            attention.o_proj.weight[:, rows] = content.T / 4
    back, follow = (layer.self_attn for layer in model.model.layers[:2])
    seen, written = _directions(hidden), _directions(hidden)
    _look_one_back(model, back.q_proj, back.k_proj)
    back.v_proj.weight[:HEAD], back.o_proj.weight[:, :HEAD] = seen / 2, written.T / 2
    follow.q_proj.weight[:HEAD], follow.k_proj.weight[:HEAD] = math.sqrt(2) * seen, math.sqrt(2) * written


def _directions(hidden: int) -> Tensor:
    """(HEAD, hidden): random orthonormal rows."""
    return torch.linalg.qr(torch.randn(hidden, HEAD))[0].T


def _look_one_back(model: Qwen2ForCausalLM, query: torch.nn.Linear, key: torch.nn.Linear) -> None:
    """Set biases of head 0 whose rotary product is largest at distance one, whatever the tokens are."""
    # Rotary embedding turns pair (i, i + HEAD / 2) by position * frequency; a key turned ahead by one
    # frequency meets the query of the next position. Only the fast pairs tell neighbours apart.
    frequencies = model.model.rotary_emb.inv_freq[:6]
    pairs, strength = len(frequencies), 5.0
    query.weight[:HEAD], key.weight[:HEAD] = 0, 0
    query.bias[:pairs] = strength
    key.bias[:pairs] = strength * frequencies.cos()
    key.bias[HEAD // 2 : HEAD // 2 + pairs] = strength * frequencies.sin()


def batches(examples: Iterator[Example], rng: random.Random, pad: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Endless (ids, mask) pairs, each (episodes, tokens) of at most TOKENS_PER_STEP, padded on the right.

    Examples are sorted by length within a pool, so that little is padding; its batches are shuffled.
    """
    while True:
        groups: list[list[Example]] = [[]]
        for example in sorted(islice(examples, POOL), key=lambda example: len(example[0])):
            if (len(groups[-1]) + 1) * len(example[0]) > TOKENS_PER_STEP:
                groups.append([])
            groups[-1].append(example)
        rng.shuffle(groups)
        for group in groups:
            longest = len(group[-1][0])
            ids = torch.tensor([ids + [pad] * (longest - len(ids)) for ids, _ in group])
            yield ids, torch.tensor([mask + [0] * (longest - len(mask)) for _, mask in group])


def loss_of(model: Qwen2ForCausalLM, ids: Tensor, mask: Tensor) -> Tensor:
    """Mean cross-entropy over the policy's own tokens; ids and mask are (episodes, tokens).

    Padding is on the right and attention is causal, so no attention mask is needed; logits are computed only
    at positions whose next token counts.
    """
    states = model.model(input_ids=ids, use_cache=False).last_hidden_state[:, :-1]
    counted = mask[:, 1:].bool()
    return functional.cross_entropy(model.lm_head(states[counted]), ids[:, 1:][counted])


def optimisers_of(model: Qwen2ForCausalLM, adam_rate: float) -> dict[torch.optim.Optimizer, float]:
    """Muon for the hidden matrices and AdamW for the rest, each with its full learning rate."""
    named = list(model.named_parameters())
    matrices = [p for name, p in named if p.dim() == 2 and "embed" not in name]
    tables = [p for name, p in named if p.dim() == 2 and "embed" in name]
    vectors = [p for _, p in named if p.dim() == 1]
    groups = [{"params": tables, "weight_decay": WEIGHT_DECAY}, {"params": vectors, "weight_decay": 0.0}]
    muon = Muon(matrices, lr=MUON_RATE, weight_decay=WEIGHT_DECAY)
    return {muon: MUON_RATE, torch.optim.AdamW(groups, lr=adam_rate, betas=(0.9, 0.98)): adam_rate}


def rate_factor(step: int, progress: float) -> float:
    """Linear warm-up over the first steps, then a cosine from 1 to LAST_RATE as progress goes from 0 to 1."""
    cosine = LAST_RATE + (1 - LAST_RATE) * 0.5 * (1 + math.cos(math.pi * progress))
    return min(1.0, (step + 1) / WARM_UP_STEPS) * cosine


# What to train on until a share of the training, of which the last is 1.
Stages = Sequence[tuple[float, Iterator[Demonstration]]]


@dataclass(frozen=True)
class Training:
    """What to train on, and how long: a number of steps, or wall-clock seconds if given."""

    stages: Stages
    seed: int
    steps: int = DEFAULT_STEPS
    seconds: float | None = None
    adam_rate: float = ADAM_RATE

    def progress(self, step: int, elapsed: float) -> float:
        """The share of the training that is done, 1 or more when it is over."""
        return step / self.steps if self.seconds is None else elapsed / self.seconds


def stages_of(seed: int, hops: tuple[int, ...], clean: bool = False, protocol: Protocol = RESEARCH) -> Stages:
    """One hop first, where copying and searching again are learnt, then all hops with the faults."""
    rates = CLEAN if clean else FAULTS
    first, rest = (1,), hops
    return (
        (0.3, demonstrations(seed, first, PATIENT, protocol)),
        (1.0, demonstrations(seed, rest, rates, protocol)),
    )


def named_protocol(name: str) -> Protocol:
    """A protocol of research/config/protocol. Raises DataError if there is none of that name."""
    path = CONFIG_DIR / "protocol" / f"{name}.yaml"
    if not path.is_file():
        raise DataError(f"there is no protocol {name!r} in {path.parent}")
    values: dict[str, Any] = OmegaConf.to_container(OmegaConf.load(path))  # type: ignore[assignment]
    base = [vars(named_protocol(each)) for each in values.pop("defaults", [])]
    return Protocol(**{key: value for each in [*base, values] for key, value in each.items()})


def cold_start(model: Qwen2ForCausalLM, tokenizer: Qwen2Tokenizer, training: Training) -> Iterator[float]:
    """Train the model in place and yield the loss of every step, in nats per token of the policy."""
    lessons = []
    for end, episodes in training.stages:
        examples = (tokenised(tokenizer, episode) for episode in episodes)
        lessons.append((end, batches(examples, random.Random(training.seed), tokenizer.pad_token_id)))
    model.train()
    optimisers, start, step = optimisers_of(model, training.adam_rate), time.monotonic(), 0
    while (progress := training.progress(step, time.monotonic() - start)) < 1:
        loss = loss_of(model, *next(next(lesson for end, lesson in lessons if progress < end)))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimiser, rate in optimisers.items():
            for group in optimiser.param_groups:
                group["lr"] = rate_factor(step, progress) * rate
            optimiser.step()
            optimiser.zero_grad()
        step += 1
        yield loss.item()
    model.eval()


def make_policy(out: Path, tokenizer: Qwen2Tokenizer, size: Size, training: Training) -> None:
    """Train a fresh model, printing how it goes, and save the folder whole. Raises DataError."""
    model = build_model(tokenizer, size, training.seed)
    weights = sum(parameter.numel() for parameter in model.parameters())
    click.echo(f"{weights / 1e6:.2f} M parameters, {len(tokenizer)} tokens")
    seconds = _report(cold_start(model, tokenizer, training))
    model.generation_config = GenerationConfig(
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id
    )
    with filling(out) as scratch:
        model.save_pretrained(scratch)
        tokenizer.save_pretrained(scratch)
        (scratch / "cold_start.json").write_text(json.dumps({"seconds": round(seconds, 1)}) + "\n")
    click.echo(f"saved in {out}")


def check_options(out: Path, steps: int | None, seconds: float | None) -> None:
    """Fail before anything is computed. Raises UsageError, and DataError for a folder that is in use."""
    if steps and seconds:
        raise click.UsageError("give --steps or --seconds, not both")
    require_new(out)


def _report(losses: Iterator[float]) -> float:
    """Train to the end, printing the mean loss of every REPORT_STEPS steps; returns the seconds it took."""
    start, steps = time.monotonic(), 0
    while recent := list(islice(losses, REPORT_STEPS)):
        steps += len(recent)
        click.echo(f"step {steps}: loss {sum(recent) / len(recent):.3f}, {time.monotonic() - start:.0f} s")
    return time.monotonic() - start


@click.command()
@click.option("--out", type=click.Path(path_type=Path), required=True, help="New folder.")
@click.option("--seed", default=0, show_default=True, help="Same seed and steps, same weights.")
@click.option("--steps", type=click.IntRange(1), help=f"Training steps.  [default: {DEFAULT_STEPS}]")
@click.option("--seconds", type=Number(0, min_open=True), help="Train by the clock instead.")
@click.option("--size", type=click.Choice(list(SIZES)), default="tiny", show_default=True, help="Model size.")
@hops_option(least=1, default="2,3,4")
@click.option("--clean", is_flag=True, help="Demonstrations without faults: a supervised baseline for RL.")
@click.option("--protocol", default="research", show_default=True, help="File of research/config/protocol.")
def main(
    out: Path,
    seed: int,
    steps: int | None,
    seconds: float | None,
    size: str,
    hops: tuple[int, ...],
    clean: bool,
    protocol: str,
) -> None:
    """Train the tiny policy from scratch and save it as a Hugging Face folder.

    Example: python -m research.datasets.mini.policy --out cache/policy
    """
    check_options(out, steps, seconds)
    form = named_protocol(protocol)
    stages = stages_of(seed, hops, clean, form)
    training = Training(stages, seed, steps or DEFAULT_STEPS, seconds)
    make_policy(out, train_tokenizer(form), SIZES[size], training)


if __name__ == "__main__":
    main()
