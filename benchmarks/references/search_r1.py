"""Search-R1's own generation manager and reward (PeterGriffinJin/Search-R1) on a script."""

import contextlib
import io
import re
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from verl import DataProto

from benchmarks.references.checkout import Answer, definitions, module
from benchmarks.references.model import Outcome, ScriptedModel
from benchmarks.references.scripts import Script

# scripts/nq_hotpotqa/v0.3/train_grpo_format.sh
LENGTHS = {
    "max_start_length": 2048,
    "max_prompt_length": 4096,
    "max_response_length": 500,
    "max_obs_length": 500,
}
TURNS, TOP_K = 4, 3
REWARD = {"structure_format_score": 0.2, "final_format_score": 0.1, "retrieval_score": 0.0}


@cache
def parts_of(checkout: Path) -> Any:
    folder = checkout / "search_r1/llm_agent"
    module("search_r1_llm_agent", "tensor_helper", folder / "tensor_helper.py")
    return SimpleNamespace(
        generation=module("search_r1_llm_agent", "generation", folder / "generation.py"),
        reward=module(
            "search_r1_reward", "qa_em_format", checkout / "verl/utils/reward_score/qa_em_format.py"
        ),
        prefix=definitions(
            checkout / "scripts/data_process/qa_search_test_merge.py", {"make_prefix"}
        ).make_prefix,
    )


def play(script: Script, checkout: Path, tokenizer: Any) -> Outcome:
    """One episode: prompt of the data script, ``run_llm_loop``, ``compute_score_em``."""
    parts = parts_of(checkout)
    prompt_ids = _prompt(script, parts, tokenizer)
    model, worker = ScriptedModel(script, tokenizer), SimpleNamespace()

    def generate_sequences(batch: DataProto) -> DataProto:
        (row,), pad = batch.batch["input_ids"], tokenizer.pad_token_id
        sampled, _ = model.sample(row[row != pad].tolist(), (), LENGTHS["max_response_length"])
        return DataProto.from_dict({"responses": torch.tensor([sampled])})

    def post(url: str, json: dict[str, Any]) -> Answer:
        found = [script.search(query, json["topk"]) for query in json["queries"]]
        return Answer({"result": [[{"document": {"contents": each}} for each in row] for row in found]})

    worker.generate_sequences = generate_sequences
    parts.generation.requests = SimpleNamespace(post=post)
    config = parts.generation.GenerationConfig(
        max_turns=TURNS, num_gpus=1, search_url="", topk=TOP_K, **LENGTHS
    )
    manager = parts.generation.LLMGenerationManager(tokenizer, worker, config)
    ids = torch.tensor([prompt_ids])
    batch = DataProto.from_dict(
        {
            "input_ids": ids,
            "attention_mask": torch.ones_like(ids),
            "position_ids": torch.arange(len(prompt_ids))[None],
        }
    )
    with contextlib.redirect_stdout(io.StringIO()):
        output = manager.run_llm_loop(batch, ids)
    return _outcome(script, parts, tokenizer, model, output, prompt_ids)


def _prompt(script: Script, parts: Any, tokenizer: Any) -> list[int]:
    question = script.question.strip()
    question += "" if question[-1] == "?" else "?"
    prompt = parts.prefix({"question": question}, template_type="base")
    chat = tokenizer.apply_chat_template(
        [{"role": "user", "content": prompt}], add_generation_prompt=True, tokenize=False
    )
    return list(tokenizer.encode(chat, add_special_tokens=False))


def _outcome(
    script: Script, parts: Any, tokenizer: Any, model: ScriptedModel, output: DataProto, prompt_ids: list[int]
) -> Outcome:
    pad = tokenizer.pad_token_id
    (response,), (shown,) = output.batch["responses"], output.batch["responses_with_info_mask"]
    kept = (response != pad).nonzero().flatten()
    response_ids, mask = response[kept].tolist(), (shown[kept] != pad).int().tolist()
    text = tokenizer.decode(prompt_ids + response_ids)
    with contextlib.redirect_stdout(io.StringIO()):
        reward = parts.reward.compute_score_em(text, {"target": list(script.golden_answers)}, **REWARD)
    # The prompt's own example is an answer to the reference; here that is none.
    own = re.search("<answer>.*?</answer>", tokenizer.decode(response_ids), re.DOTALL)
    answer = parts.reward.extract_solution(text) if own else None
    return Outcome(model.contexts, response_ids, mask, answer, float(reward))
