"""ReSearch's own rollout and reward (Agent-RL/ReSearch, branch re-search) on a script."""

import contextlib
import re
import string
import time
from collections import Counter
from contextlib import contextmanager
from functools import cache, wraps
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Union

import torch
from tensordict import TensorDict
from verl import DataProto
from verl.utils.torch_functional import pad_sequence_to_length

from benchmarks.references.checkout import Answer, definitions
from benchmarks.references.model import Outcome, ScriptedModel
from benchmarks.references.scripts import Script

RESPONSE_TOKENS = 8192
ROLLOUT = "src/verl/workers/rollout/vllm_rollout/vllm_rollout.py"


class RolloutBase:
    """What the reference's class takes from vLLM's: settings and a context of sampling parameters."""

    def __init__(self, *_: Any, **__: Any) -> None:
        self.sampling_params = SimpleNamespace(n=1, max_tokens=RESPONSE_TOKENS)

    @contextmanager
    def update_sampling_params(self, **values: Any) -> Any:
        before = dict(vars(self.sampling_params))
        vars(self.sampling_params).update(values)
        yield
        vars(self.sampling_params).clear()
        vars(self.sampling_params).update(before)


@cache
def parts_of(checkout: Path) -> Any:
    names = {"vLLMRolloutWithSearch", "retry", "_pre_process_inputs"}
    functional = definitions(
        checkout / "src/verl/utils/torch_functional.py", {"get_eos_mask"}, torch=torch, Union=Union, List=list
    )
    requests = SimpleNamespace(post=None)
    rollout = definitions(
        checkout / ROLLOUT,
        names,
        vLLMRollout=RolloutBase,
        nn=torch.nn,
        torch=torch,
        DictConfig=Any,
        Union=Union,
        List=list,
        requests=requests,
        wraps=wraps,
        time=time,
        DataProto=DataProto,
        TensorDict=TensorDict,
        pad_sequence_to_length=pad_sequence_to_length,
        get_eos_mask=functional.get_eos_mask,
    )
    template = definitions(
        checkout / "src/verl/utils/dataset/template.py", {"re_search_template_sys", "re_search_template"}
    )
    reward_names = {"validate_format", "extract_answer", "remove_boxed", "last_boxed_only_string"}
    reward = definitions(
        checkout / "src/verl/utils/reward_score/re_search.py",
        reward_names | {"normalize_answer", "get_f1_score", "compute_score"},
        re=re,
        string=string,
        Counter=Counter,
        Union=Union,
        List=list,
    )
    return SimpleNamespace(rollout=rollout, requests=requests, template=template, reward=reward)


class _Engine:
    """The scripted model behind the old vLLM's interface."""

    def __init__(self, model: ScriptedModel) -> None:
        self.model = model

    def generate(self, sampling_params: Any, prompt_token_ids: list[list[int]], **_: Any) -> Any:
        (context,) = prompt_token_ids
        sampled, reason = self.model.sample(context, sampling_params.stop, sampling_params.max_tokens)
        finish = "length" if reason is None else "stop"
        return torch.tensor([sampled]), None, [finish], [None if reason in (None, "eos") else reason]


def play(script: Script, checkout: Path, tokenizer: Any) -> Outcome:
    """One episode: system prompt, ``vLLMRolloutWithSearch.generate_sequences``, ``compute_score``."""
    parts = parts_of(checkout)
    messages = [
        {"role": "system", "content": parts.template.re_search_template_sys},
        {"role": "user", "content": script.question},
    ]
    chat = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    prompt_ids = list(tokenizer.encode(chat, add_special_tokens=False))
    model = ScriptedModel(script, tokenizer)

    def post(url: str, json: dict[str, Any]) -> Answer:
        found = [script.search(query, json["top_n"]) for query in json["query"]]
        return Answer([[{"contents": each} for each in row] for row in found])

    parts.requests.post = post
    config = SimpleNamespace(free_cache_engine=False, response_length=RESPONSE_TOKENS, search_url="", n=1)
    rollout = parts.rollout.vLLMRolloutWithSearch(None, config, tokenizer, None)
    rollout.config, rollout.pad_token_id, rollout.inference_engine = (
        config,
        tokenizer.pad_token_id,
        _Engine(model),
    )
    ids = torch.tensor([prompt_ids])
    prompts = DataProto.from_dict(
        {
            "input_ids": ids,
            "attention_mask": torch.ones_like(ids),
            "position_ids": torch.arange(len(prompt_ids))[None],
        }
    )
    prompts.meta_info = {"eos_token_id": tokenizer.eos_token_id, "do_sample": True}
    output = rollout.generate_sequences(prompts).batch
    return _outcome(script, parts, tokenizer, model, output, prompt_ids)


def _outcome(
    script: Script, parts: Any, tokenizer: Any, model: ScriptedModel, output: Any, prompt_ids: list[int]
) -> Outcome:
    length = int(output["attention_mask"][0, len(prompt_ids) :].sum())
    response_ids, mask = output["responses"][0, :length].tolist(), output["loss_mask"][0, :length].tolist()
    while response_ids and response_ids[-1] == tokenizer.pad_token_id:  # padding, where no end token came
        response_ids.pop(), mask.pop()
    text = tokenizer.decode(prompt_ids + response_ids)
    reward, _ = parts.reward.compute_score(tokenizer, text, list(script.golden_answers))
    answer, part = None, parts.reward.extract_answer(text.split("<|im_start|>assistant\n")[1])
    if response_ids[-1:] == [tokenizer.eos_token_id]:  # as its evaluation does: what length cut off is none
        with contextlib.suppress(Exception):
            answer = parts.reward.remove_boxed(parts.reward.last_boxed_only_string(part))
    return Outcome(model.contexts, response_ids, mask, answer, float(reward))
