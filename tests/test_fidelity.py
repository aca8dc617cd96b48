"""Our loop, answers and rewards under the references' presets, against what their own code did.

tests/fidelity holds episodes that benchmarks/reference.py recorded from the own loops and rewards of
Search-R1, ReSearch and ReCall, and from ReSearch's evaluation: what the model said, what they made of it.
Their prompts and notices are their wording, so the test has others in their place.
"""

import asyncio
import json
import re
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from conftest import LIMITS, SHARED, ScriptedEngine, search_for
from omegaconf import OmegaConf
from test_recipe_options import compose

from benchmarks.references.cases import NOTICE
from benchmarks.references.model import byte_tokenizer
from benchmarks.references.ours import TRAINING, play, preset
from benchmarks.references.research_eval import SCORES, evaluate
from benchmarks.references.scripts import Script, Turn
from research.datasets import reference_prompts
from research.datasets.mini.demonstrations import CLEAN, demonstrations
from research.datasets.mini.policy import named_protocol
from research.episode.loop import run_episode
from research.episode.prompts import build_prompt
from research.episode.protocol import answer_of, extract_answer, render_passage, render_result
from research.episode.tokens import TokenProtocol
from research.episode.tools import make_tool, search_tool
from research.episode.trajectory import Passage, Segment, Trajectory
from research.evaluation.config import EvaluationConfig
from research.rewards import DOOR, Reference
from research.tools.wikipedia_search import wikipedia_tool
from research.training.run.options import RunFailed

CASES = Path(__file__).parent / "fidelity"
QUESTION = "---\n{question}"
OWN_NOTICE = "\nThat was no action.\n"
PRESETS = {
    "research": "research_instruct",
    "research_eval": "research_instruct",
    "search_r1": "search_r1",
    "recall": "recall",
}


@pytest.fixture(autouse=True)
def own_wording(monkeypatch: pytest.MonkeyPatch) -> None:
    """No test fetches."""
    monkeypatch.setattr(
        reference_prompts, "PROMPTS", dict.fromkeys(reference_prompts.PROMPTS, lambda: QUESTION)
    )
    monkeypatch.setattr(reference_prompts, "NOTICES", {"search_r1": lambda: OWN_NOTICE})


def cases(*systems: str) -> list[Any]:
    """Each recorded episode."""
    paths = [CASES / f"{system}.jsonl" for system in systems]
    rows = [json.loads(line) for path in paths for line in path.open(encoding="utf-8")]
    return [pytest.param(row, id=f"{row['system']}-{number}") for number, row in enumerate(rows)]


@cache
def configured(system: str) -> EvaluationConfig:
    return preset(PRESETS[system], *TRAINING.get(system, ()))


def script_of(case: dict[str, Any]) -> Script:
    turns = tuple(Turn(**each) for each in case["turns"])
    return Script(case["question"], tuple(case["golden_answers"]), turns, tuple(case["pool"]))


@pytest.mark.parametrize("case", cases("research_eval"))
def test_an_evaluation_is_what_the_reference_made_of_it(case: dict[str, Any]) -> None:
    tokenizer = byte_tokenizer()
    outcome = evaluate(script_of(case), configured("research_eval"), tokenizer)
    assert tokenizer.decode(outcome.response_ids) == case["response"]
    assert len(outcome.contexts) == len(case["turns"]) and outcome.answer == case["answer"]
    assert outcome.scores == pytest.approx({name: case[name] for name in SCORES})
    assert {(most, *stops) for most, stops, _ in outcome.requests} == {(8192, "</search>")}


@pytest.mark.parametrize("case", cases("research", "search_r1", "recall"))
def test_an_episode_is_what_the_reference_made_of_it(case: dict[str, Any]) -> None:
    tokenizer = byte_tokenizer()
    config = configured(case["system"])
    outcome = play(script_of(case), config, tokenizer, f"{case['system']}_reference")
    texts = [OWN_NOTICE if text == NOTICE else text for _, text in case["parts"]]
    expected = [tokenizer.encode(text) for text in texts]
    assert tokenizer.decode(outcome.response_ids) == "".join(texts)
    assert outcome.response_ids == [token for part in expected for token in part]
    authors = [
        author == "model" for (author, _), part in zip(case["parts"], expected, strict=True) for _ in part
    ]
    assert outcome.mask == list(map(int, authors))
    assert (outcome.answer or "") == (case["answer"] or "")
    assert outcome.reward == pytest.approx(case["reward"], abs=1e-6)


def test_real_blocks_of_search_r1_are_rendered_as_they_stand() -> None:
    """All blocks that follow a search in 189 real episodes, but one that ends in a blank."""
    path = SHARED / "crosscheck" / "bamboogle_trajectories.jsonl"
    if not path.is_file():
        pytest.skip("no real episodes here")
    responses = [json.loads(line)["final_response"] for line in path.open(encoding="utf-8")]
    blocks = [
        each
        for text in responses
        for each in re.findall(r"</search>(\n\n<information>.*?</information>\n\n)", text, re.DOTALL)
    ]
    protocol = configured("search_r1").protocol
    different = [block for block in blocks if _rendered(block, protocol) != block]
    assert len(blocks) == 235 and [each[-17:] for each in different] == [" </information>\n\n"]


def _rendered(block: str, protocol: Any) -> str:
    inside = block.removeprefix("\n\n<information>").removesuffix("</information>\n\n")
    texts = []
    for rank, document in enumerate(re.split(r"(?:\A|\n)Doc \d+\(Title: ", inside)[1:], start=1):
        title, _, text = document.partition(") ")
        texts.append(render_passage(Passage(str(rank), f"{title}\n{text}"), rank, protocol))
    return render_result(texts, protocol)


def test_every_preset_composes() -> None:
    paths = [*(Path(reference_prompts.__file__).parents[1] / "config" / "preset").glob("*.yaml")]
    assert len(paths) >= 8 and all(preset(path.stem).prompt for path in paths)


def test_recall_makes_the_calls_of_a_turn_and_reads_the_last_box() -> None:
    config, tokenizer = preset("recall"), byte_tokenizer()
    asked: list[tuple[str, int]] = []

    async def wikipedia_search(query: str, top_n: int = 5) -> list[Passage] | str:
        """Search."""
        asked.append((query, top_n))
        return [Passage("1", f"About {query}\ntext")] if query else "invalid query"

    tools = [make_tool(wikipedia_search)]
    tokens = TokenProtocol(tokenizer, config.protocol.with_tools(["wikipedia_search"]), tools)
    calls = [_call(query="one"), _call(query="two", top_n=2), _call(query="")]
    turns = [f"a</think>{''.join(calls)}", "so</think> It is \\boxed{\\text{X}}."]
    engine = ScriptedEngine(tokens, [f"{turn}<|im_end|>" for turn in turns])
    prompt_ids = build_prompt("---\n{question}", "Q?", tokens)
    trajectory = asyncio.run(run_episode(prompt_ids, engine.generate, tools, tokens, config.limits))
    assert tokens.decode(prompt_ids).endswith("assistant\n<think>")
    assert sorted(asked) == [("", 5), ("one", 5), ("two", 2)] and trajectory.finish_reason == "eos"
    results = [f"result: \n{text}" for text in ("About one\ntext", "About two\ntext", "invalid query")]
    responses = [
        f"<tool_response>{call.removeprefix('<tool_call>').removesuffix('</tool_call>')}\n{result}\n</tool_response>\n"
        for call, result in zip(calls, results, strict=True)
    ]
    block = f"\n<|im_start|>user\n{''.join(responses)}<|im_end|>\n<|im_start|>assistant\n<think>"
    assert trajectory.segments[1].text == block
    assert extract_answer(trajectory.model_turns, config.protocol) == "\\text{X}"


def _call(**arguments: Any) -> str:
    return f"<tool_call>{json.dumps({'name': 'wikipedia_search', 'arguments': arguments})}</tool_call>"


def played_by_recall(turns: list[str], *words: str) -> Trajectory:
    config, tokenizer = preset("recall", *words), byte_tokenizer()

    async def search(query: str, top_n: int) -> list[Passage]:
        return [Passage("1", "T\ntext")] * top_n

    tools = [wikipedia_tool(search)]
    tokens = TokenProtocol(tokenizer, config.protocol, tools)
    engine = ScriptedEngine(tokens, turns)
    return asyncio.run(run_episode([1], engine.generate, tools, tokens, config.limits))


@pytest.mark.parametrize(
    ("call", "parsed", "executed"),
    [
        ('{"name": ', "Parse tool call failed: Expecting value", "error: \ninvalid syntax (<call>, line 1)"),
        ('{"tool": 1}', "Parse tool call failed: 'name'", "error: \ninvalid syntax (<call>, line 1)"),
        ('{"name": "f", "arguments": {}}', "error: \nname 'f' is not defined", None),
        ('{"name": "f g"}', "error: \ninvalid syntax (<call>, line 1)", None),
        (_call(), "error: \nwikipedia_search() missing 1 required positional argument: 'query'", None),
        (_call(query="q", k=1), "error: \nwikipedia_search() got an unexpected keyword argument 'k'", None),
        (_call(query=1), "error: \nwikipedia_search: query: Input should be a valid string", None),
        (_call(query="q", top_n=1), "result: \nT\ntext\n", None),
        (_call(query="q", top_n=0), "\n\n</tool_response>", None),
    ],
)
def test_calls_that_fail_read_to_recall_as_in_its_sandbox(
    call: str, parsed: str, executed: str | None
) -> None:
    turns = [f"</think>{call if call.startswith('<') else f'<tool_call>{call}</tool_call>'}<|im_end|>"]
    for faults, text in (("parsed", parsed), ("executed", executed or parsed)):
        trajectory = played_by_recall([*turns, "x<|im_end|>"], f"protocol.faults={faults}")
        assert text in trajectory.segments[1].text and trajectory.finish_reason == "eos"


def test_a_turn_of_recall_that_is_not_ended_calls_nothing_in_training() -> None:
    call = _call(query="q")
    for turn in (f"</think>{call}<|im_start|>user", f"</think>{call}{'x' * 600}"):
        trained = played_by_recall([turn, "x<|im_end|>"], "protocol.retokenise=false")
        assert trained.finish_reason == "length" and not trained.calls
        said = trained.segments[-1].text
        assert said.endswith("<|im_start|>") or len(trained.response_ids) == 512
        evaluated = played_by_recall([turn, "x<|im_end|>"])
        assert evaluated.calls and evaluated.finish_reason == "eos"
        assert evaluated.segments[0].token_ids[-1] == byte_tokenizer().eos_token_id
    crossed = played_by_recall([f"</tool_call>{call}<tool_call><|im_end|>"])
    assert not crossed.calls and crossed.finish_reason == "eos"


@pytest.mark.parametrize(
    ("last", "expected"),
    [
        ("t</think> \\boxed{Lem}", 1.0),
        ("\\boxed{Lem}</think> so it is", 1.0),  # a box in a thought counts
        ("t</think> \\boxed{Rome}", 0.1),
        ("t</think> \\boxed{Rome} \\boxed Lem$", 1.0),
        ("t</think> \\fbox{Lem}", 0.0),
        ("t</think> Lem", 0.0),
        ("t \\boxed{Lem}", 0.0),
        ("t</think></think> \\boxed{Lem}", 0.0),
        ("t</think></tool_call> \\boxed{Lem}", 0.0),
        ('t</think><tool_call>{"name": "x"}</tool_call> \\boxed{Lem}', 0.0),
        ('t</think><tool_call>"name" "arguments"</tool_call> \\boxed{Lem}', 0.0),
    ],
)
def test_recalls_reward_to_the_letter(last: str, expected: float) -> None:
    protocol = preset("recall").protocol
    score, reference = DOOR.load("recall_reference"), Reference("q", ("Lem",), protocol)
    block = protocol.turn_template.replace("{results}", "<tool_response>Rome</tool_response>\n")
    first = Segment("model", [], [], f"a</think>{_call(query='q')}")
    segments = [first, Segment("environment", [], [], block), Segment("model", [], [], last)]
    assert score(Trajectory([1], segments, finish_reason="eos"), reference).score == expected
    for reason in ("length", "search_limit"):
        assert score(Trajectory([1], segments, finish_reason=reason), reference).score == 0.0
    broken = [replace(first, text=f"a{_call(query='q')}"), *segments[1:]]
    assert score(Trajectory([1], broken, finish_reason="eos"), reference).score == 0.0


def test_a_policy_that_is_to_end_its_answers_itself_is_trained_on_its_end(tokens: TokenProtocol) -> None:
    protocol = replace(tokens.protocol, stop="call")
    bound = TokenProtocol(tokens.tokenizer, protocol)
    end = tokens.tokenizer.eos_token
    engine = ScriptedEngine(bound, [f"<think>t</think><answer>\\boxed{{x}}</answer>{end}"])
    trajectory = asyncio.run(run_episode([1], engine.generate, [], bound, LIMITS))
    assert trajectory.finish_reason == "eos" and trajectory.response_ids[-1] in bound.eos_token_ids
    assert trajectory.response_mask[-1] == 1 and not {bound.answer_stop} & {*bound.stop_strings}
    assert extract_answer(trajectory.model_turns, protocol) == "x"


def test_nothing_is_trained_on_tokens_that_were_not_sampled(tmp_path: Path) -> None:
    with pytest.raises(RunFailed, match="retokenise must be false"):
        compose(tmp_path, "cpu", "research.protocol.retokenise=true")


def test_rewards_to_the_letter_read_what_ours_do_not() -> None:
    protocol = replace(configured("search_r1").protocol, retokenise=False)
    held = "<think>a</think><search>q</search>\n<information>in Rome</information>\n<think>b</think>"
    for answer, right, wrong in (("Rome", 1.0, 0.2), ("Oslo", 0.2, 1.0)):
        trajectory = Trajectory([1], [Segment("model", [], [], f"{held}<answer>{answer}</answer>")])
        for golden, expected in (("Rome", right), ("Oslo", wrong)):
            reference = Reference("q", (golden,), protocol)
            assert DOOR.load("search_r1_reference")(trajectory, reference).score == expected
    silent = Trajectory([1], [Segment("model", [], [], f"{held}I do not know")])
    scores = [
        DOOR.load("search_r1_reference")(silent, Reference("q", (golden,), protocol)).score
        for golden in ("Rome", "Beijing")
    ]
    assert scores == [0.1, 0.8]  # the example in the prompt is read as the answer
    valid = Trajectory([1], [Segment("model", [], [], f"{held}<answer>Oslo</answer>")])
    reference = Reference("q", ("Rome",), protocol)
    assert DOOR.load("search_r1_reference")(valid, reference, retrieval=0.1).score == pytest.approx(0.3)
    assert DOOR.load("search_r1_reference")(valid, reference, structure=0.0, final_format=0.0).score == 0


@pytest.mark.parametrize(
    ("recipe", "name", "expected"),
    [
        (
            "musique",
            "reference",
            {"reward": "research_reference", "protocol.stop": "call", "limits.searches": 1000},
        ),
        (
            "musique",
            "search_r1",
            {"reward": "search_r1_reference", "limits.block_tokens": 500, "prompt": QUESTION},
        ),
        (
            "musique",
            "recall",
            {"reward": "recall_reference", "protocol.calls": "json", "protocol.faults": "parsed"},
        ),
        ("musique", "own", {"prompt": "research_instruct_own", "protocol.stop": "answer"}),
        ("rqr", "reference", {"prompt": QUESTION, "protocol.answer_rule": "after_think"}),
    ],
)
def test_trainings_take_the_settings_of_a_reference(
    tmp_path: Path, recipe: str, name: str, expected: dict[str, Any]
) -> None:
    config = compose(tmp_path, "gpu", f"research.preset={name}", recipe=recipe, gpus=8)
    values = {key: OmegaConf.select(config.research, key) for key in expected}
    assert values == expected and not config.research.protocol.retokenise
    if name in ("own", "reference"):
        own = compose(tmp_path / "cpu", "cpu", f"research.preset={name}", recipe=recipe)
        assert own.research.prompt == "question"  # the tiny policy's
    else:
        with pytest.raises(RunFailed, match="the tiny policy knows"):
            compose(tmp_path / "cpu", "cpu", f"research.preset={name}", recipe=recipe)
    truncated = recipe == "rqr"
    assert config.algorithm.rollout_correction.rollout_is == ("token" if truncated else None)


def test_an_unknown_preset_of_a_training_is_named(tmp_path: Path) -> None:
    with pytest.raises(RunFailed, match="no_such"):
        compose(tmp_path, "cpu", "research.preset=no_such")


def test_the_tiny_policy_of_search_r1_learns_its_protocol_without_a_network(tmp_path: Path) -> None:
    config = compose(tmp_path, "cpu", recipe="search_r1")
    protocol = config.research.protocol
    assert (protocol.result, protocol.parse, protocol.invalid_turn) == (
        "information",
        "first_pair",
        "\nnot there\n",
    )
    assert config.research.reward == "search_r1_reference" and config.data.train_batch_size == 16
    shown = next(demonstrations(0, (2,), CLEAN, named_protocol("search_r1")))
    text = "".join(text for text, _ in shown.segments)
    assert "<information>Doc 1(Title: " in text and "boxed" not in text
    trajectory = Trajectory([1], [Segment("model", [], [], text)])
    reference = Reference("q", shown.golden_answers, named_protocol("search_r1"))
    expected = 1.0 if shown.right else 0.2  # 0.2: wrong in a valid format
    assert DOOR.load("search_r1_reference")(trajectory, reference).score == expected


@pytest.mark.parametrize("name", ["search_r1", "research_instruct", "recall"])
@pytest.mark.parametrize("turn", ["<|im_end|>", "<|im_start|>", "x"])
def test_turns_of_special_tokens_alone_end_an_episode_without_an_error(name: str, turn: str) -> None:
    config, tokenizer = preset(name), byte_tokenizer()
    tokens = TokenProtocol(tokenizer, config.protocol)
    limits = replace(config.limits, turn_tokens=1)
    engine = ScriptedEngine(tokens, [turn] * 9)
    trajectory = asyncio.run(run_episode([1], engine.generate, [], tokens, limits))
    assert trajectory.finish_reason in ("eos", "length", "search_limit")
    assert len(trajectory.response_ids) == len(trajectory.response_mask)


def test_what_stands_in_a_thought_is_no_answer_of_recall() -> None:
    protocol = preset("recall").protocol
    turns = ["I think \\boxed{Lem}</think> It is \\boxed{Danube}."]
    assert extract_answer(turns, protocol) == "Danube"
    assert extract_answer(["\\boxed{Lem}</think> I do not know."], protocol) is None


def test_an_answer_that_its_length_cut_off_does_not_count_for_research() -> None:
    protocol = preset("research_instruct").protocol
    text = "<think>t</think><answer>\\boxed{Lem}</answer> and on and on"
    trajectory = Trajectory([1], [Segment("model", [], [], text)], finish_reason="length")
    assert answer_of(trajectory, protocol) is None
    assert answer_of(replace(trajectory, finish_reason="eos"), protocol) == "Lem"


def test_no_turn_begins_behind_the_total_of_tokens() -> None:
    config, tokenizer = preset("research_instruct"), byte_tokenizer()
    tokens = TokenProtocol(tokenizer, config.protocol)
    limits = replace(config.limits, total_tokens=60)
    engine = ScriptedEngine(tokens, ["<search>a</search>", "<search>" + "b" * 60 + "</search>", "x"])
    tools = [search_tool(search_for("T\ntext"))]
    trajectory = asyncio.run(run_episode([1] * 10, engine.generate, tools, tokens, limits))
    assert trajectory.finish_reason == "length" and len(engine.calls) == 2
    assert [each.author for each in trajectory.segments] == ["model", "environment"] * 2


def test_an_answer_counts_that_was_given_before_the_total_of_tokens() -> None:
    config, tokenizer = preset("research_instruct"), byte_tokenizer()
    tokens = TokenProtocol(tokenizer, config.protocol)
    limits = replace(config.limits, total_tokens=20)
    engine = ScriptedEngine(tokens, ["<answer>\\boxed{Lem}</answer><search>a</search>"])
    tools = [search_tool(search_for("T\ntext"))]
    trajectory = asyncio.run(run_episode([1], engine.generate, tools, tokens, limits))
    assert trajectory.finish_reason == "length" and answer_of(trajectory, config.protocol) == "Lem"


def test_turns_are_sampled_behind_one_text() -> None:
    config, tokenizer = preset("research_instruct"), byte_tokenizer()
    tokenizer.add_tokens(["><"])  # which a result and the turn behind it make together
    tokens = TokenProtocol(tokenizer, config.protocol)
    engine = ScriptedEngine(tokens, ["<search>a</search>", "<think>b</think><search>c</search>", "d"])
    tools = [search_tool(search_for("T\ntext"))]
    asyncio.run(run_episode(tokens.encode("q"), engine.generate, tools, tokens, config.limits))
    contexts = [context for context, _ in engine.calls]
    assert contexts == [tokens.encode(tokens.decode(context)) for context in contexts]
    assert "</result><think>b" in tokens.decode(contexts[2])
