"""TongSearch-QR's own prompts, reading of a text, and reward (bigai-nlco/TongSearch-QR) on a script."""

import ast
import json
import logging
import re
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from benchmarks.references.checkout import definitions
from benchmarks.references.scripts import Script


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
