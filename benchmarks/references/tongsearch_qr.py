"""TongSearch-QR's own prompts, reading of a text, and reward (bigai-nlco/TongSearch-QR) on a script."""

import ast
import asyncio
import json
import logging
import re
from collections.abc import Callable
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from benchmarks.references.checkout import definitions
from benchmarks.references.model import Outcome, ScriptedModel
from benchmarks.references.scripts import Script
from research.datasets.reference_prompts import prompt_to_keep
from research.datasets.rewriting_tasks import RewritingTask
from research.episode.loop import Generation, Limits
from research.episode.prompts import build_prompt
from research.episode.protocol import Protocol
from research.episode.rewriting import rewritten_query, run_rewriting
from research.episode.tokens import TokenProtocol
from research.rewards.rewriting.embedding_gain import TextReward


class WordEncoder:
    """Unit vectors by a text's words, for both sides: which encoder it is does not matter to a formula."""

    def encode(self, texts: list[str], normalize_embeddings: bool = True) -> np.ndarray:
        """Float32 of shape (texts, 64)."""
        return np.stack([self._vector(text) for text in texts])

    def _vector(self, text: str) -> np.ndarray:
        vector = np.full(64, 0.01, np.float32)
        for word in text.lower().split():
            vector[sum(word.encode()) % 64] += 1
        return vector / np.linalg.norm(vector)


@cache
def parts(checkout: Path) -> Any:
    """``extract_query_text`` and ``compute_score_bge``, with the words' encoder."""
    return definitions(
        checkout / "scripts/train/reward.py",
        {"extract_query_text", "compute_score_bge"},
        re=re,
        json=json,
        np=np,
        logging=SimpleNamespace(info=lambda *_: None, ino=logging.error),
        scoring_model=WordEncoder(),
    )


def score(script: Script, text: str, checkout: Path, think: bool) -> tuple[str, float]:
    """What is searched with, and the reward, of a completion."""
    loaded = parts(checkout)
    truth = json.dumps({"query": script.question, "pos_docs_list": list(script.pool), "think_flag": think})
    return loaded.extract_query_text(text, think), float(loaded.compute_score_bge(text, truth))


def prompt_ids(script: Script, checkout: Path, tokenizer: Any, think: bool) -> list[int]:
    """The prompt of its evaluation (question_rewriting.py), whose texts stand inside functions."""
    path = checkout / "scripts/evaluation/question_rewriting.py"
    tree = ast.parse(path.read_text(encoding="utf-8"))
    values: dict[str, list[ast.expr]] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            values.setdefault(node.targets[0].id, []).append(node.value)
    (prompt,) = values["prompt"]
    systems = [ast.literal_eval(each) for each in values["system_prompt"]]
    user = eval(compile(ast.Expression(prompt), str(path), "eval"), {"question": script.question})
    messages = [
        {"role": "system", "content": max(systems) if think else min(systems)},
        {"role": "user", "content": user},
    ]
    chat = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    return list(tokenizer.encode(chat, add_special_tokens=False))


def our_player(think: bool, tokenizer: Any) -> Callable[[Script], Outcome]:
    """Our reading of a rewritten text and embedding_gain, as the reference's training has them."""

    protocol = Protocol(stop="end", answer_rule="after_think", boxed=False)
    tokens = TokenProtocol(tokenizer, protocol)
    prompt = prompt_to_keep("tongsearch_qr_think" if think else "tongsearch_qr")
    encoder = WordEncoder()

    async def encode(texts: list[str]) -> Any:
        return encoder.encode(texts)

    reward = TextReward(SimpleNamespace(load_encoder=lambda: None, encode=encode))  # type: ignore[arg-type]

    async def play(script: Script) -> Outcome:
        model = ScriptedModel(script, tokenizer)

        async def generate(context: list[int], most: int) -> Generation:
            sampled, _ = model.sample(context, tokens.stop_strings, most)
            return Generation(sampled, [-1.0] * len(sampled))

        asked = build_prompt(prompt, script.question, tokens)
        trajectory = await run_rewriting(asked, generate, tokens, Limits(0, 500, 500, 0))
        text = rewritten_query(trajectory, tokens, think)
        task = RewritingTask("1", script.question, script.pool, ("1",), ())
        gain = (await reward(task, text)).score if text else -1.0
        return Outcome(model.contexts, trajectory.response_ids, trajectory.response_mask, text, gain)

    return lambda script: asyncio.run(play(script))


def their_player(think: bool, checkout: Path, tokenizer: Any) -> Callable[[Script], Outcome]:
    def play(script: Script) -> Outcome:
        model = ScriptedModel(script, tokenizer)
        sampled, _ = model.sample(prompt_ids(script, checkout, tokenizer, think), (), 500)
        text = tokenizer.decode(sampled, skip_special_tokens=True)
        query, reward = score(script, text, checkout, think)
        return Outcome(model.contexts, sampled, [1] * len(sampled), query, reward)

    return play
