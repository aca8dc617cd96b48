"""ReCall's own rollout, inference loop, sandbox and reward (Agent-RL/ReCall) on a script."""

import asyncio
import contextlib
import io
import json
import re
import string
import threading
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import replace
from functools import cache, wraps
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Optional, Union
from unittest.mock import patch

import numpy as np
import requests
import torch
from tensordict import TensorDict
from verl import DataProto
from verl.utils.torch_functional import pad_sequence_to_length

from benchmarks.references import ours
from benchmarks.references.checkout import Answer, definitions
from benchmarks.references.model import Outcome, ScriptedModel
from benchmarks.references.research import RolloutBase
from benchmarks.references.scripts import Script
from benchmarks.references.tool_scripts import KNOWN_TO_PYTHON, OTHER_TURN, UNTYPED
from research.evaluation.config import EvaluationConfig

RESPONSE_TOKENS, TURNS = 6656, 5  # scripts/train/train.sh
IM_START = 151644  # which its rollout names by its number in Qwen's vocabulary
UNBOUNDED = 50_000  # tokens, more than a script can fill
TAGS = "tags and special tokens of question, calls or passages are defused"
LENGTH = "the length of a response cuts a block anywhere there; here the lowest passages go first"
KNOWN = "its sandbox runs whatever Python knows"
TYPED = "its server checks the types of arguments, here the tool does"
TYPES = {"Any": Any, "Union": Union, "Optional": Optional, "List": list, "Dict": dict}


@cache
def parts_of(checkout: Path) -> Any:
    source = checkout / "src/verl"
    reward_names = {"remove_boxed", "last_boxed_only_string", "normalize_answer", "get_f1_score"}
    reward = definitions(
        source / "utils/reward_score/re_call.py",
        reward_names | {"validate_template_format", "compute_score_with_format"},
        **TYPES,
        re=re,
        string=string,
        Counter=Counter,
    )
    inference = definitions(
        checkout / "src/re_call/inference/re_call.py",
        {"ReCall", "retry"},
        **TYPES,
        **{"re": re, "json": json, "requests": requests, "time": time, "wraps": wraps},
    )
    pipeline = definitions(
        checkout / "src/flashrag/pipeline/active_pipeline.py",
        {"ReCallPipeline", "wikipedia_search_env", "wikipedia_search_schemas"},
        BasicPipeline=object,
        **{"re": re, "json": json, **vars(reward)},
    )
    return SimpleNamespace(
        reward=reward,
        inference=inference,
        pipeline=pipeline,
        prompt=_prompt_parts(source / "utils/dataset"),
        rollout=_rollout(source / "workers/rollout/vllm_rollout/vllm_rollout_spmd.py"),
        execute=definitions(
            checkout / "scripts/serving/sandbox.py",
            {"execute_code"},
            **TYPES,
            **{"contextlib": contextlib, "io": io, "CodeRequest": Any},
            app=SimpleNamespace(post=lambda _: lambda function: function),
        ).execute_code,
    )


def _prompt_parts(folder: Path) -> Any:
    template = definitions(folder / "template.py", {"re_call_template_sys"}).re_call_template_sys
    others = dict.fromkeys(("PreTrainedTokenizer", "ProcessorMixin", "DictConfig"), Any)
    rows = definitions(folder / "rl_dataset.py", {"RLHFDataset"}, Dataset=object, **TYPES, **others)
    return SimpleNamespace(template=template, pack=rows.RLHFDataset._pack_re_call_input)


def _rollout(path: Path) -> Any:
    ranks = SimpleNamespace(broadcast_object=lambda value, src: value)
    return definitions(
        path,
        {"vLLMRolloutWithTool", "_pre_process_inputs"},
        **TYPES,
        **{"torch": torch, "np": np, "re": re, "json": json, "requests": requests},
        **{"ThreadPoolExecutor": ThreadPoolExecutor, "as_completed": as_completed},
        **{"DataProto": DataProto, "TensorDict": TensorDict, "DictConfig": Any},
        pad_sequence_to_length=pad_sequence_to_length,
        vLLMRollout=RolloutBase,
        vllm_version="",
        vllm_ps=SimpleNamespace(get_tensor_model_parallel_rank=lambda: 0, _TP=ranks),
    ).vLLMRolloutWithTool


@contextlib.contextmanager
def _served(script: Script, parts: Any, generate: Callable[[str], str] | None = None) -> Iterator[None]:
    """Its sandbox, the search of a script, and a model behind ``requests.post``."""
    lock = threading.RLock()  # its sandbox runs one call at a time, and takes all that is printed

    def post(url: str, json: dict[str, Any], timeout: float = 0) -> Answer:
        if url.endswith("/generate"):
            assert generate is not None
            return Answer({"text": generate(json["text"])})
        if url.endswith("/search"):
            return Answer(_found(script, **json))
        with lock, contextlib.redirect_stdout(io.StringIO()):
            return Answer(asyncio.run(parts.execute(SimpleNamespace(**json))))

    with patch.object(requests, "post", post):
        yield


def _found(script: Script, query: Any, top_n: int) -> Any:
    if not isinstance(query, str):  # its server checks the type
        return {"detail": [{"msg": "str type expected"}]}
    return [{"contents": each} for each in script.search(query, top_n)]


class _Engine:
    """The scripted model behind vLLM's interface."""

    def __init__(self, model: ScriptedModel) -> None:
        self.model = model

    def generate(self, prompts: list[Any], sampling_params: Any, **_: Any) -> Any:
        ((context),) = (each["prompt_token_ids"] for each in prompts)
        assert sampling_params.stop_token_ids == [IM_START]
        stops = [self.model.tokenizer.convert_tokens_to_ids(OTHER_TURN)]
        sampled, reason = self.model.sample(context, (), sampling_params.max_tokens, stops)
        finish = "length" if reason is None else "stop"
        stop = None if reason in (None, "eos") else IM_START
        return [
            SimpleNamespace(
                outputs=[SimpleNamespace(token_ids=sampled, finish_reason=finish, stop_reason=stop)]
            )
        ]


def play(script: Script, checkout: Path, tokenizer: Any, response_tokens: int) -> Outcome:
    """An episode of training: data set's prompt, ``vLLMRolloutWithTool``, ``compute_score_with_format``."""
    parts = parts_of(checkout)
    holder, schemas = SimpleNamespace(tokenizer=tokenizer), parts.pipeline.wikipedia_search_schemas
    chat = parts.prompt.pack(holder, parts.prompt.template, schemas, script.question)
    prompt_ids = list(tokenizer.encode(chat, add_special_tokens=False))
    model = ScriptedModel(script, tokenizer)
    config = SimpleNamespace(
        free_cache_engine=False, response_length=response_tokens, sandbox_url="", n=1, max_turns=TURNS
    )
    rollout = parts.rollout(None, config, tokenizer, None)
    rollout.sampling_params.max_tokens, rollout.config = response_tokens, config
    rollout.pad_token_id, rollout.inference_engine = tokenizer.pad_token_id, _Engine(model)
    ids = torch.tensor([prompt_ids])
    prompts = DataProto.from_dict(
        {
            "input_ids": ids,
            "attention_mask": torch.ones_like(ids),
            "position_ids": torch.arange(len(prompt_ids))[None],
        },
        {"env": np.array([parts.pipeline.wikipedia_search_env], dtype=object)},
    )
    prompts.meta_info = {"eos_token_id": tokenizer.eos_token_id, "do_sample": True}
    with _served(script, parts):
        output = rollout.generate_sequences(prompts).batch
    length = int(output["attention_mask"][0, len(prompt_ids) :].sum())
    response_ids, mask = output["responses"][0, :length].tolist(), output["loss_mask"][0, :length].tolist()
    text = tokenizer.decode(prompt_ids + response_ids)
    reward = _reward(text, script, parts, tokenizer)
    cut = mask[-1] == 1 and not text.endswith("<|im_end|>")  # its evaluation ends each turn itself
    answer = _answer(text + "<|im_end|>" * cut, parts)
    return Outcome(model.contexts, response_ids, mask, answer, reward)


def _reward(text: str, script: Script, parts: Any, tokenizer: Any) -> float:
    reward, _ = parts.reward.compute_score_with_format(tokenizer, text, list(script.golden_answers))
    return float(reward)


def _answer(text: str, parts: Any) -> str | None:
    """As its evaluation reads it."""
    pipeline = parts.pipeline.ReCallPipeline.__new__(parts.pipeline.ReCallPipeline)
    last = pipeline.extract_last_assistant_response(text)
    with contextlib.suppress(Exception):
        return str(parts.reward.remove_boxed(parts.reward.last_boxed_only_string(last)))
    return None


def play_evaluation(script: Script, checkout: Path, tokenizer: Any) -> Outcome:
    """An episode of evaluation: ``ReCallPipeline.run_item``, which tokenizes all again at each turn."""
    parts, model, texts = parts_of(checkout), ScriptedModel(script, tokenizer), []
    output: dict[str, str] = {}

    def encode(text: str) -> list[int]:
        return list(tokenizer.encode(text, add_special_tokens=False))

    def generate(context: str) -> str:
        sampled, _ = model.sample(encode(context), (), 512)
        texts.append((context, str(tokenizer.decode(sampled, skip_special_tokens=True))))
        return texts[-1][1]

    pipeline = parts.pipeline.ReCallPipeline.__new__(parts.pipeline.ReCallPipeline)
    pipeline.re_call, pipeline.config = parts.inference.ReCall("", ""), {"remote_retriever_url": ""}
    with _served(script, parts, generate):
        pipeline.run_item(SimpleNamespace(question=script.question, update_output=output.__setitem__))
    whole, response_ids, mask = output["final_response"], [], []
    ends = [*(context for context, _ in texts[1:]), whole]
    for (context, said), after in zip(texts, ends, strict=True):
        said_ids = encode(f"{said}<|im_end|>")
        block_ids = encode(after.removeprefix(f"{context}{said}<|im_end|>"))
        response_ids += said_ids + block_ids
        mask += [1] * len(said_ids) + [0] * len(block_ids)
    reward = _reward(whole, script, parts, tokenizer)
    return Outcome(model.contexts, response_ids, mask, output["pred"], reward)


class Players:
    """Both sides of training, or of evaluation; any of the causes that they differ by can be taken away."""

    causes = (TAGS, LENGTH, KNOWN, TYPED)

    def __init__(self, evaluation: bool, checkout: Path, tokenizer: Any, words: tuple[str, ...]) -> None:
        self.checkout, self.tokenizer, self.evaluation = checkout, tokenizer, evaluation
        self.words = (*(() if evaluation else ours.TRAINING["recall"]), *words)

    def theirs(self, script: Script, without: Collection[str] = ()) -> Outcome:
        script = _mended(script, without)
        if self.evaluation:
            return play_evaluation(script, self.checkout, self.tokenizer)
        length = UNBOUNDED if LENGTH in without else RESPONSE_TOKENS
        return play(script, self.checkout, self.tokenizer, length)

    def ours(self, script: Script, without: Collection[str] = ()) -> Outcome:
        config = _config(self.words, TAGS in without, LENGTH in without)
        return ours.play(_mended(script, without), config, self.tokenizer, "recall_reference")

    def again(self, script: Script, without: Collection[str]) -> tuple[Outcome, Outcome]:
        """What both make of a script without some of the causes."""
        return self.theirs(script, without), self.ours(script, without)


@cache
def _config(words: tuple[str, ...], plain: bool, unbounded: bool) -> EvaluationConfig:
    added = ("protocol.neutralise=false",) * plain + (f"limits.response_tokens={UNBOUNDED}",) * unbounded
    return ours.preset("recall", *words, *added)


def _mended(script: Script, causes: Collection[str]) -> Script:
    """The script with a tool that nobody knows for what Python knows, and a text for what is none."""
    pairs = [(f'"{KNOWN_TO_PYTHON}"', '"web_search"')] * (KNOWN in causes)
    pairs += [(f'"query": {json.dumps(each)}', '"query": "x"') for each in UNTYPED] * (TYPED in causes)
    turns = list(script.turns)
    for old, new in pairs:
        turns = [replace(turn, text=turn.text.replace(old, new)) for turn in turns]
    return replace(script, turns=tuple(turns))
