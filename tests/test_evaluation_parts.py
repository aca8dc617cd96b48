"""Parts of the evaluation: the runner without barriers, intervals and tests of differences, support
recall.
"""

import asyncio
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click import UsageError
from evaluation_stack import SayingEngine
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import Qwen2Config

from research.datasets.questions import Question
from research.episode.tokens import TokenProtocol
from research.episode.tools import SearchError
from research.episode.trajectory import Passage, Trajectory
from research.evaluation.command_line import service_of
from research.evaluation.config import (
    EvaluationConfig,
    EvaluationError,
    compose_multihop,
    read_multihop,
    trained_retriever,
    training_of,
)
from research.evaluation.engines.identity import model_identity
from research.evaluation.engines.vllm_engine import _is_float32
from research.evaluation.methods.ircot import first_sentence
from research.evaluation.outputs.judging import JUDGEMENTS, judge_all, judge_metrics
from research.evaluation.outputs.predictions import PREDICTIONS, PredictionKey
from research.evaluation.outputs.summary import markdown, summarise
from research.evaluation.runner import Runner, Task
from research.judge import content_key
from research.metrics.answers import support_recall
from research.metrics.statistics import bootstrap, paired_difference


def config(*words: str) -> EvaluationConfig:
    needed = [
        "engine.model=none",
        "retriever.url=http://none",
        "prompt=question",
        "limits.response_tokens=600",
    ]
    return read_multihop(compose_multihop([*needed, *words]))


def made_tasks(count: int) -> list[Task]:
    return [
        Task("land", "research", Question(f"q{number}", f"the river of {number}?", ("Rhine",)))
        for number in range(count)
    ]


async def found(query: str) -> list[Passage]:
    return [Passage("1", "Rhine\nThe river is called Rhine.")]


def run(engine: Any, tasks: list[Task], search: Any = found, *words: str) -> list[Trajectory]:
    done: list[Trajectory] = []
    runner = Runner(config(*words), engine, search)
    asyncio.run(runner.run(tasks, lambda trajectory, seconds: done.append(trajectory)))
    return done


def test_no_question_waits_for_another(tag_tokens: TokenProtocol) -> None:
    """One question whose search waits until all others have ended."""
    asked, rest_asked = 0, asyncio.Event()

    async def search(query: str) -> list[Passage]:
        nonlocal asked
        asked += 1
        if asked == 1:
            await asyncio.wait_for(rest_asked.wait(), 120)
        if asked == 40:
            rest_asked.set()
        return await found(query)

    done = run(SayingEngine(tag_tokens), made_tasks(40), search, "concurrency=8")
    assert done.index(min(done, key=lambda each: each.metadata["id"])) > 30 and len(done) == 40
    assert all(each.metrics["em"] == 1.0 for each in done)


def test_concurrency_is_bounded(tag_tokens: TokenProtocol) -> None:
    there, most = 0, 0

    async def search(query: str) -> list[Passage]:
        nonlocal there, most
        there += 1
        most = max(most, there)
        await asyncio.sleep(0.001)
        there -= 1
        return await found(query)

    run(SayingEngine(tag_tokens), made_tasks(60), search, "concurrency=5")
    assert most == 5


def test_a_question_has_its_time_and_a_failed_search_its_notice(tag_tokens: TokenProtocol) -> None:
    async def never(query: str) -> list[Passage]:
        await asyncio.sleep(60)
        raise AssertionError

    [late] = run(SayingEngine(tag_tokens), made_tasks(1), never, "question_timeout=0.2")
    assert late.metadata["error"] == "no answer in 0.2 s" and late.metrics["failed"] == 1.0

    async def broken(query: str) -> list[Passage]:
        raise SearchError("gone")

    [trajectory] = run(SayingEngine(tag_tokens), made_tasks(1), broken)
    assert trajectory.metrics["failed_searches"] == 1.0 and trajectory.metrics["failed"] == 0.0


def test_what_ends_the_engine_ends_the_evaluation(tag_tokens: TokenProtocol) -> None:
    def die(text: str) -> str:
        raise EvaluationError("vLLM has died")

    with pytest.raises(EvaluationError, match="vLLM has died"):
        run(SayingEngine(tag_tokens, speak=die), made_tasks(3))


def test_a_bootstrap_interval_holds_the_truth_nineteen_times_of_twenty() -> None:
    random = np.random.default_rng(0)
    held = 0
    for number in range(300):
        interval = bootstrap((random.random(200) < 0.3).astype(float), seed=number)
        held += interval.low <= 0.3 <= interval.high
    assert 270 <= held <= 297


@settings(max_examples=30)
@given(st.lists(st.sampled_from([0.0, 0.5, 1.0]), min_size=1, max_size=80))
def test_an_interval_lies_around_its_mean_and_is_repeatable(values: list[float]) -> None:
    interval = bootstrap(np.array(values))
    assert interval == bootstrap(np.array(values))
    assert interval.low - 1e-9 <= interval.mean <= interval.high + 1e-9
    assert min(values) <= interval.low and interval.high <= max(values)


@pytest.mark.parametrize(("a", "b"), [([], []), ([1.0], [1.0, 2.0]), ([np.nan], [1.0])])
def test_paired_difference_of_what_is_no_pair(a: list[float], b: list[float]) -> None:
    with pytest.raises(ValueError, match="the same questions"):
        paired_difference(np.array(a), np.array(b))


def test_paired_difference_finds_what_is_there_and_nothing_else() -> None:
    random = np.random.default_rng(1)
    a = (random.random(500) < 0.4).astype(float)
    better = np.where(random.random(500) < 0.15, 1.0, a)
    assert paired_difference(a, a).p == 1.0
    found_better = paired_difference(a, better)
    assert found_better.p < 0.001 and 0 < found_better.low < found_better.mean < found_better.high
    small = [paired_difference(random.permutation(a), a, seed).p for seed in range(100)]
    assert sum(p < 0.05 for p in small) <= 12  # by chance about five


def test_figures_are_rounded_once_when_they_are_shown() -> None:
    """.12549996 is .125, by way of six digits it would be .126."""
    scores = {PredictionKey(name, "research", "q"): {"f1": 0.12549996} for name in ("one", "two")}
    shown = markdown(summarise(scores, {})["results"])
    assert shown.count("0.125") == 7 and "0.126" not in shown


def test_a_failed_question_counts_in_the_metrics_of_an_environment_too() -> None:
    key = PredictionKey("land", "research", "a")
    scores = {
        key: {"em": 1.0, "quality": 1.0, "failed": 0.0},
        key._replace(id="b"): {"em": 0.0, "failed": 1.0},
    }
    [row] = summarise(scores, {})["results"]
    assert [(row[name]["mean"], row[name]["questions"]) for name in ("em", "quality")] == [(0.5, 2)] * 2


def test_a_tool_of_ones_own_stays_whatever_its_name(tag_tokens, tmp_path, monkeypatch) -> None:
    (tmp_path / "mine_of_evaluation.py").write_text(
        "def search(query: str) -> str:\n    'Look it up.'\n    return 'The river is called Elbe.'\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    words = ("tools=mine_of_evaluation:search",)
    [trajectory] = run(SayingEngine(tag_tokens), made_tasks(1), found, *words)
    assert [call.text for call in trajectory.calls] == ["The river is called Elbe."]
    [trajectory] = run(SayingEngine(tag_tokens), made_tasks(1), found)
    assert [call.text for call in trajectory.calls] == [""]


def test_support_is_found_by_title_else_by_id() -> None:
    passages = [Passage("7", '"The Rhine"\nA river.'), Passage("9", "Paris\nA city.")]
    assert support_recall(passages, [], ["Rhine", "London"]) == 0.5
    assert support_recall(passages, ["7", "8"], []) == 0.5
    assert support_recall(passages, [], []) is None
    assert support_recall([], ["7"], []) == 0.0
    untitled = [Passage("7", "\nno title"), Passage("8", '"The The"\nA band.')]
    assert support_recall(untitled, [], ["A", "The The"]) == 0.5


@pytest.mark.parametrize("golden", ["A", "The The", "*", "Rhine"])
def test_a_failed_question_and_no_answer_score_nothing_whatever_is_accepted(
    tmp_path: Path, tag_tokens: TokenProtocol, golden: str
) -> None:
    async def never(query: str) -> list[Passage]:
        await asyncio.sleep(60)
        raise AssertionError

    judge = replace(config().judge, url="http://none", model="judge")
    task = Task("land", "research", Question("q", "the river?", (golden,)))
    [late] = run(SayingEngine(tag_tokens), [task], never, "question_timeout=0.1")
    [silent] = run(SayingEngine(tag_tokens, speak=lambda text: "<answer>\\boxed{}</answer>"), [task])
    for trajectory in (late, silent):
        (tmp_path / PREDICTIONS).write_text(trajectory.to_json() + "\n")
        keys = [
            content_key("judge", "the river?", [golden], answer)
            for answer in ("", trajectory.metadata["prediction"])
        ]
        rows = [json.dumps({"key": key, "right": True, "reason": "of another version"}) for key in keys]
        (tmp_path / JUDGEMENTS).write_text("\n".join(rows))
        verdicts = asyncio.run(judge_all(judge, tmp_path))
        figures = trajectory.metrics | judge_metrics(verdicts, trajectory)
        assert [figures[name] for name in ("em", "f1", "acc", "judge", "judge_failed")] == [0.0] * 5
    assert (late.metrics["failed"], silent.metrics["failed"]) == (1.0, 0.0)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [("It is 3.5 km. Then", "It is 3.5 km."), ("no stop", "no stop"), ("", ""), ("Who? He.", "Who?")],
)
def test_the_first_sentence_is_the_next_query(text: str, sentence: str) -> None:
    assert first_sentence(text) == sentence


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_float32_model_is_known_by_its_folder(tmp_path: Path, dtype: str) -> None:
    Qwen2Config(dtype=dtype).save_pretrained(tmp_path)
    assert _is_float32(str(tmp_path)) == (dtype == "float32")


def test_a_trained_policy_brings_its_prompt_protocol_and_limits(tmp_path: Path) -> None:
    (tmp_path / "policy").mkdir()
    (tmp_path / "config.yaml").write_text(
        "research: {prompt: search_r1_own, limits: {searches: 3}, retriever: {top_k: 2},\n"
        "  protocol: {result: information, boxed: false,\n"
        "    result_template: '<information>{passages}</information>'}}\n"
        "actor_rollout_ref: {rollout: {dtype: float32, max_model_len: 512}}\n"
    )
    policy = str(tmp_path / "policy")
    assert training_of(str(tmp_path)) is None
    words = ["engine.model=x", "retriever.url=http://none", "limits.searches=9"]
    read = read_multihop(compose_multihop(words, policy))
    assert (read.prompt, read.protocol.result, read.protocol.boxed) == ("search_r1_own", "information", False)
    assert (read.limits.searches, read.retriever.top_k, read.engine.max_model_len) == (9, 2, 512)
    read = read_multihop(compose_multihop([*words, "preset=research_base_own"], policy))
    assert read.prompt == "research_base_own" and read.protocol.boxed
    own = "limits={turn_tokens: 9}"
    read = read_multihop(compose_multihop([*words[:2], own, "protocol=recall"], policy))
    assert (read.limits.searches, read.limits.turn_tokens, read.protocol.calls) == (3, 9, "json")


def test_a_trained_policy_brings_its_index(tmp_path: Path) -> None:
    (tmp_path / "policy").mkdir()
    policy, corpus = str(tmp_path / "policy"), tmp_path / "corpus.jsonl"
    corpus.touch()
    (tmp_path / "retriever.json").write_text('{"index": "bm25", "encoder": null}')
    assert trained_retriever(policy) == {}  # of no run
    (tmp_path / "config.yaml").write_text("research: {prompt: question}\n")
    trained = trained_retriever(policy)
    kinds = [
        service_of(corpus, None, index, known).kind for index in (None, "sq8") for known in (trained, {})
    ]
    assert kinds == ["bm25", "flat", "sq8", "sq8"]
    assert service_of(corpus, None, None, {"index": "hnsw", "encoder": "org/e5"}).encoder == "org/e5"
    with pytest.raises(UsageError, match="--encoder: an index of kind bm25 has none"):
        service_of(corpus, "org/e5", None, trained)


def test_a_model_is_told_by_what_its_folder_holds(tmp_path: Path) -> None:
    for name in ("first", "copy", "other"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text("{}")
        weights = bytes(3 * 2**20) + (b"x" if name == "other" else b"y")
        (tmp_path / name / "model.safetensors").write_bytes(weights)
    first, copy, other = (
        model_identity(config(f"engine.model={tmp_path / name}").engine)["model_sha256"]
        for name in ("first", "copy", "other")
    )
    assert first == copy != other
    assert model_identity(config("engine.model=org/name").engine) == {"model": "org/name"}
