"""ReSearch's own evaluation (Agent-RL/ReSearch, branch re-search), and ours, on a script.

Theirs is flashrag's pipeline with its generator, retriever, data set and evaluator, under the values of its
eval_config.yaml; ours is the evaluation's runner with its client of servers. What both ask over HTTP is
answered by the scripted model and the script's passages; our search is a function.
"""

import asyncio
import contextlib
import io
import re
import string
from collections import Counter
from collections.abc import Generator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from copy import deepcopy
from functools import cache, wraps
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Optional

import yaml

from benchmarks.references.checkout import Answer, definitions
from benchmarks.references.model import Outcome, ScriptedModel
from benchmarks.references.scripts import Script
from research.datasets.question_forms import Question
from research.episode.trajectory import Passage, Trajectory
from research.evaluation.config import EvaluationConfig
from research.evaluation.engines.openai_server import OpenAIServer
from research.evaluation.runner import Runner, Task

MODEL_TOKENS = 32_768  # Qwen2.5-7B-Instruct
END = 151_645  # <|im_end|>, whose number the pipeline knows
SCORES = ("em", "f1", "acc")
TYPES = {"Any": Any, "Dict": dict, "Generator": Generator, "List": list, "Optional": Optional}


class _Settings(dict[str, Any]):
    """What its Config is to its classes: None for what nobody set."""

    def __missing__(self, _: str) -> None:
        return None


@cache
def parts_of(checkout: Path) -> SimpleNamespace:
    """Its classes, `settings`, and `requests` and `tokenizers`, whose functions are to be set."""
    flashrag, requests = checkout / "src/flashrag", SimpleNamespace(post=None)
    tokenizers = SimpleNamespace(from_pretrained=lambda *_, **__: None)
    never = SimpleNamespace(sleep=lambda _: None)
    shared = {**TYPES, "requests": requests, "wraps": wraps, "time": never}
    generator = definitions(
        flashrag / "generator/generator.py",
        {"BaseGenerator", "SGLRemoteGenerator", "retry"},
        deepcopy=deepcopy,
        AutoTokenizer=tokenizers,
        **shared,
    )
    retriever = definitions(
        flashrag / "retriever/retriever.py",
        {"cache_manager", "rerank_manager", "BaseRetriever", "BaseTextRetriever", "RemoteRetriever"},
        functools=SimpleNamespace(wraps=wraps),
        retry=generator.retry,
        **shared,
    )
    dataset = definitions(flashrag / "dataset/dataset.py", {"Item", "Dataset"}, **TYPES)
    settings = yaml.safe_load((checkout / "scripts/evaluation/eval_config.yaml").read_text("utf-8"))
    return SimpleNamespace(
        requests=requests,
        tokenizers=tokenizers,
        generator=generator.SGLRemoteGenerator,
        retriever=retriever.RemoteRetriever,
        dataset=dataset.Dataset,
        pipeline=_pipeline(checkout, tokenizers),
        settings=settings,
    )


def _pipeline(checkout: Path, tokenizers: SimpleNamespace) -> Any:
    """ReSearchPipeline."""
    pipelines, verl = checkout / "src/flashrag/pipeline", checkout / "src/verl/utils"
    templates = definitions(verl / "dataset/template.py", {"re_search_template_sys", "re_search_template"})
    answer_names = {"remove_boxed", "last_boxed_only_string", "extract_answer"}
    answer = definitions(verl / "reward_score/re_search.py", answer_names, re=re)
    base = definitions(
        pipelines / "pipeline.py",
        {"BasicPipeline"},
        Evaluator=_evaluator(checkout / "src/flashrag/evaluator"),
        PromptTemplate=lambda _: None,  # which ReSearchPipeline replaces
    )
    return definitions(
        pipelines / "active_pipeline.py",
        {"ReSearchPipeline"},
        AutoTokenizer=tokenizers,
        ThreadPoolExecutor=ThreadPoolExecutor,
        as_completed=as_completed,
        tqdm=lambda futures, **_: futures,
        prompt_template_dict=vars(templates),
        **{**vars(base), **vars(answer)},
    ).ReSearchPipeline


def _evaluator(folder: Path) -> Any:
    """Evaluator, with the metrics that eval_config.yaml names."""
    utilities = definitions(folder / "utils.py", {"normalize_answer"}, re=re, string=string)
    metrics = definitions(
        folder / "metrics.py",
        {"BaseMetric", "F1_Score", "Recall_Score", "Precision_Score", "ExactMatch", "Sub_ExactMatch"},
        re=re,
        Counter=Counter,
        **vars(utilities),
    )
    return definitions(folder / "evaluator.py", {"Evaluator"}, BaseMetric=metrics.BaseMetric).Evaluator


class _Borders:
    """The servers of model and passages, and what was asked of the first."""

    def __init__(self, script: Script, tokenizer: Any, top_k: int = 0) -> None:
        self.script, self.tokenizer, self.top_k = script, tokenizer, top_k
        self.model, self.requests = ScriptedModel(script, tokenizer), list[Any]()

    def post(self, url: str, json: dict[str, Any]) -> Answer:
        """As SGLang and ReSearch's retriever answer."""
        if "query" in json:
            found = self.script.search(json["query"], json["top_n"])
            return Answer(([{"contents": each} for each in found], [0.0] * len(found)))
        (text,), sampling = json["text"], json["sampling_params"]
        context = self.tokenizer.encode(text, add_special_tokens=False)
        sampled, reason = self._sample(
            context, sampling["stop"], sampling["max_new_tokens"], sampling["temperature"]
        )
        said = self.tokenizer.decode(sampled, skip_special_tokens=True)
        finish: dict[str, Any] = {"type": "stop", "matched": END if reason == "eos" else reason}
        if reason is None:
            finish = {"type": "length", "length": len(sampled)}
        counts = {"prompt_tokens": len(context), "completion_tokens": len(sampled)}
        text = said.partition(reason)[0] if reason else said  # the text it stopped at is left out
        return Answer([{"text": text, "meta_info": {"finish_reason": finish, **counts}}])

    async def call(self, path: str, body: dict[str, Any], deadline: float | None = None) -> dict[str, Any]:
        """As ``vllm serve`` answers."""
        sampled, reason = self._sample(body["prompt"], body["stop"], body["max_tokens"], body["temperature"])
        finish = "stop" if reason else "length"
        return {"choices": [{"token_ids": sampled, "finish_reason": finish}]}

    async def search(self, query: str) -> list[Passage]:
        """As our client of a retriever."""
        found = self.script.search(query, self.top_k)
        return [Passage(str(rank), each) for rank, each in enumerate(found)]

    def _sample(
        self, context: Sequence[int], stops: Sequence[str], most: int, temperature: float
    ) -> tuple[list[int], str | None]:
        self.requests.append((most, list(stops), float(temperature)))
        return self.model.sample(context, stops, most)


def play(script: Script, checkout: Path, tokenizer: Any, chat: bool) -> Outcome:
    """One question through ``ReSearchPipeline.run``."""
    parts, borders = parts_of(checkout), _Borders(script, tokenizer)
    settings = _Settings(parts.settings, dataset_name="scripted", generator_model_path="scripted")
    settings |= {"save_metric_score": False, "save_intermediate_data": False}
    parts.requests.post = borders.post
    parts.tokenizers.from_pretrained = lambda *_, **__: tokenizer
    pipeline = parts.pipeline(settings, parts.retriever(settings), parts.generator(settings), chat)
    row = {"id": "1", "question": script.question, "golden_answers": list(script.golden_answers)}
    with contextlib.redirect_stdout(io.StringIO()):
        (item,) = pipeline.run(parts.dataset(settings, data=[row])).data
    return _outcome(borders, item.final_response, item.pred, item.metric_score)


def evaluate(script: Script, config: EvaluationConfig, tokenizer: Any) -> Outcome:
    """One question through our evaluation."""
    borders, finished = _Borders(script, tokenizer, config.retriever.top_k), list[Trajectory]()
    engine = OpenAIServer(borders, "scripted", tokenizer, MODEL_TOKENS, config.sampling)  # type: ignore[arg-type]
    task = Task("scripted", "research", Question("1", script.question, script.golden_answers))
    runner = Runner(config, engine, borders.search)
    asyncio.run(runner.run([task], lambda trajectory, _: finished.append(trajectory)))
    (trajectory,) = finished
    if "error" in trajectory.metadata:
        raise RuntimeError(trajectory.metadata["error"])
    return _outcome(borders, trajectory.text, trajectory.metadata["prediction"], trajectory.metrics)


def _outcome(borders: _Borders, text: str, answer: str, scores: dict[str, float]) -> Outcome:
    response_ids = borders.tokenizer.encode(text, add_special_tokens=False)
    return Outcome(
        borders.model.contexts,
        response_ids,
        [1] * len(response_ids),
        answer,
        requests=borders.requests,
        scores={name: float(scores[name]) for name in SCORES},
    )
