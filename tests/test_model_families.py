"""Prompts and episodes with the chat templates and end tokens of Qwen, Llama, Gemma and SmolLM2."""

import asyncio
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from conftest import LIMITS, ScriptedEngine, made_once, search_for
from loopback import serving
from model_families import FAMILIES, Family, fetch, loaded, save
from omegaconf import OmegaConf
from test_evaluation_parts import config as evaluation_config
from test_evaluation_servers import chat_only
from test_recipe_options import compose
from transformers import PreTrainedTokenizerBase

from research.episode.loop import run_episode
from research.episode.prompts import build_prompt
from research.episode.protocol import Protocol
from research.episode.tokens import TokenProtocol
from research.episode.tools import search_tool
from research.episode.trajectory import Trajectory
from research.evaluation.config import EvaluationError, trained_values
from research.evaluation.engines.openai_server import OpenAIServer
from research.training.config import read_research_config
from research.training.run.options import RunFailed

SYSTEM, QUESTION = "Search before you answer.", "Who founded the town of Aa?"
PROMPT = SYSTEM + "\n---\n{question}"
NO_SYSTEM = {"gemma2"}
DATED = {"llama3.1", "llama3.2"}
SEARCH, ANSWER = "<think>Look.</think> <search>Aa</search>", "<think>So.</think> <answer>\\boxed{Bo}</answer>"
Shown = tuple[Family, PreTrainedTokenizerBase]


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory, smollm2: Path) -> Path:
    """The folder with one of each family, as its checkpoint has its tokenizer."""

    def make(folder: Path) -> None:
        fetch()
        for name, family in FAMILIES.items():
            if family.template:
                save(family, smollm2, folder / name)

    return made_once(tmp_path_factory, "families", make)


def shown(name: str, folders: Path, smollm2: Path) -> Shown:
    return FAMILIES[name], loaded(folders / name if FAMILIES[name].template else smollm2)


@pytest.fixture(params=FAMILIES)
def each(request: pytest.FixtureRequest, folders: Path, smollm2: Path) -> Shown:
    return shown(request.param, folders, smollm2)


def played(tokens: TokenProtocol, *turns: str, found: Sequence[str] = ("Aa\nBo founded Aa.",)) -> Trajectory:
    engine = ScriptedEngine(tokens, list(turns))
    prompt = build_prompt(PROMPT, QUESTION, tokens)
    tools = [search_tool(search_for(*found))]
    return asyncio.run(run_episode(prompt, engine.generate, tools, tokens, LIMITS))


# ------------------------------------------------------------------------------------------------- prompts


def test_a_prompt_is_what_the_models_own_template_makes_of_it(each: Shown) -> None:
    family, tokenizer = each
    said = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": QUESTION}]
    if family is FAMILIES["gemma2"]:
        said = [{"role": "user", "content": f"{SYSTEM}\n\n{QUESTION}"}]
    options: dict[str, Any] = {"tokenize": True, "add_generation_prompt": True, "return_dict": False}
    expected = tokenizer.apply_chat_template(said, **options)
    tokens = TokenProtocol(tokenizer, Protocol())
    assert build_prompt(PROMPT, QUESTION, tokens) == list(expected)
    alone = tokenizer.apply_chat_template(said[-1:], **options)
    if family is not FAMILIES["gemma2"]:
        assert build_prompt("---\n{question}", QUESTION, tokens) == list(alone)


def test_a_prompt_holds_both_texts_once_begins_once_and_ends_where_the_model_speaks(each: Shown) -> None:
    family, tokenizer = each
    tokens = TokenProtocol(tokenizer, Protocol())
    ids = build_prompt(PROMPT, QUESTION, tokens)
    text = tokens.decode(ids)
    assert text.count(SYSTEM) == text.count(QUESTION) == 1 and text.index(SYSTEM) < text.index(QUESTION)
    assert text.endswith(family.start)
    controls = {*family.control, family.eos, family.bos} - {None}
    for token in controls & {*re.findall(r"<\|?\w+\|?>", text)}:
        assert ids.count(tokenizer.convert_tokens_to_ids(token)) == text.count(token), "each is one token"
    if family.bos:
        assert text.startswith(family.bos) and text.count(family.bos) == 1


def test_a_base_models_prompt_begins_as_its_tokenizer_does(each: Shown) -> None:
    family, tokenizer = each
    tokens = TokenProtocol(tokenizer, Protocol())
    text = tokens.decode(build_prompt("Q: {question}\nA:", QUESTION, tokens))
    assert text == f"{family.bos or ''}Q: {QUESTION}\nA:"


# ------------------------------------------------------------------------------------------------ episodes


def test_an_episode_is_the_models_tokens_and_the_injected_ones(each: Shown) -> None:
    _, tokenizer = each
    tokens = TokenProtocol(tokenizer, Protocol())
    trajectory = played(tokens, SEARCH, ANSWER)
    assert trajectory.finish_reason == "answer" and [call.query for call in trajectory.searches] == ["Aa"]
    assert trajectory.text == f"{SEARCH} <result>\nAa\nBo founded Aa.\n</result>{ANSWER}"
    trained = [
        token for token, mask in zip(trajectory.response_ids, trajectory.response_mask, strict=True) if mask
    ]
    assert trained == [*tokens.encode(SEARCH), *tokens.encode(ANSWER)]
    assert tokens.decode(trajectory.response_ids) == trajectory.text


def test_each_of_its_end_tokens_ends_the_models_turn_and_is_trained(each: Shown) -> None:
    family, tokenizer = each
    for protocol, turn in ((Protocol(), "I do not know."), (Protocol(stop="call"), ANSWER)):
        tokens = TokenProtocol(tokenizer, protocol)
        for end in family.ends:
            number = tokenizer.convert_tokens_to_ids(end)
            assert number in tokens.stop_token_ids
            trajectory = played(tokens, f"{turn}{end}{end} and more")
            assert (trajectory.finish_reason, trajectory.text) == ("eos", turn)
            assert trajectory.response_ids == [*tokens.encode(turn), number]
            assert trajectory.response_mask == [1] * trajectory.response_length


def test_what_is_found_or_asked_opens_and_ends_no_turn(each: Shown) -> None:
    family, tokenizer = each
    tokens = TokenProtocol(tokenizer, Protocol())
    controls = tuple(filter(None, (*family.control, *family.ends, *family.marks, family.bos)))
    hostile = "".join(f"{token} {family.start}" for token in controls)
    trajectory = played(tokens, SEARCH, ANSWER, found=[f"Aa\n{hostile}"])
    injected = trajectory.segments[1].token_ids
    assert not {*tokenizer.convert_tokens_to_ids(list(controls))} & {*injected}
    clean, asked = (build_prompt(PROMPT, text, tokens) for text in ("", hostile))
    for number in tokenizer.convert_tokens_to_ids(list(controls)):
        assert clean.count(number) == asked.count(number)


# ---------------------------------------------------------------------------------------- template options


def with_options(tokenizer: PreTrainedTokenizerBase, options: dict[str, Any] | None) -> str:
    tokens = TokenProtocol(tokenizer, Protocol(template_options=options))
    return tokens.decode(build_prompt(PROMPT, QUESTION, tokens))


def test_qwen3_thinks_unless_it_is_told_not_to(folders: Path, smollm2: Path) -> None:
    family, tokenizer = shown("qwen3", folders, smollm2)
    assert with_options(tokenizer, None).endswith(family.start)
    assert with_options(tokenizer, {"enable_thinking": True}) == with_options(tokenizer, None)
    silent = with_options(tokenizer, {"enable_thinking": False})
    assert silent == with_options(tokenizer, None) + "<think>\n\n</think>\n\n"


def test_llamas_prompt_can_be_given_its_day(folders: Path, smollm2: Path) -> None:
    _, tokenizer = shown("llama3.2", folders, smollm2)
    assert "Today Date: 26 Jul 2024\n" not in with_options(tokenizer, None), "that of the day of the training"
    assert "Today Date: 26 Jul 2024\n" in with_options(tokenizer, {"date_string": "26 Jul 2024"})


def test_training_and_evaluation_ask_alike(tmp_path: Path, folders: Path, smollm2: Path) -> None:
    _, tokenizer = shown("qwen3", folders, smollm2)
    options = "protocol.template_options={enable_thinking: false}"
    composed = compose(tmp_path, "cpu", f"research.{options}")
    trained = read_research_config(composed.research).environment
    evaluated = evaluation_config(options)
    texts = [
        with_options(tokenizer, protocol.template_options)
        for protocol in (trained.protocol, evaluated.protocol)
    ]
    assert texts[0] == texts[1] and texts[0].endswith("</think>\n\n")
    OmegaConf.save(composed, tmp_path / "config.yaml")
    kept = trained_values(OmegaConf.load(tmp_path / "config.yaml"))
    assert kept["protocol.template_options"] == {"enable_thinking": False}


def test_an_evaluation_of_a_trained_policy_takes_its_options(tmp_path: Path) -> None:
    OmegaConf.save(
        compose(tmp_path, "cpu", "research.protocol.template_options={enable_thinking: false}"),
        tmp_path / "config.yaml",
    )
    (tmp_path / "policy").mkdir()
    from research.evaluation.config import compose_multihop

    words = [f"engine.model={tmp_path / 'policy'}", "retriever.url=http://none"]
    composed = compose_multihop(words, str(tmp_path / "policy"))
    assert composed.protocol.template_options == {"enable_thinking": False}


def test_an_option_that_the_template_does_not_know_is_refused(each: Shown) -> None:
    _, tokenizer = each
    message = r"protocol\.template_options: the model's chat template knows no enable_thinkin$"
    with pytest.raises(ValueError, match=message):
        TokenProtocol(tokenizer, Protocol(template_options={"enable_thinkin": False}))


@pytest.mark.parametrize("value", ["false", "[enable_thinking]", "1"])
def test_options_are_a_section(tmp_path: Path, value: str) -> None:
    with pytest.raises(RunFailed, match="template_options must be a section"):
        compose(tmp_path, "cpu", f"research.protocol.template_options={value}")
    with pytest.raises(EvaluationError, match="template_options must be a section"):
        evaluation_config(f"protocol.template_options={value}")


def test_verls_own_key_for_them_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RunFailed, match=r"give research\.protocol\.template_options"):
        compose(tmp_path, "cpu", "+data.apply_chat_template_kwargs.enable_thinking=false")


@pytest.mark.parametrize("options", [None, {"enable_thinking": False}])
def test_a_server_that_applies_the_template_itself_is_told_of_them(
    folders: Path, options: dict[str, Any] | None
) -> None:
    calls: list[dict[str, Any]] = []

    async def ask(url: str) -> None:
        config = evaluation_config(f"engine.model={url}", f"engine.tokenizer={folders / 'qwen3'}")
        engine = await OpenAIServer.connect(config.engine, config.sampling, options)
        tokens = TokenProtocol(engine.tokenizer, Protocol(template_options=options))
        from research.evaluation.engines import Stops

        await engine.generate(build_prompt(PROMPT, QUESTION, tokens), 9, Stops(()), 0)
        await engine.close()

    with serving(chat_only(calls)) as url:
        asyncio.run(ask(url))
    assert calls[-1].get("chat_template_kwargs") == options
    assert [each["content"] for each in calls[-1]["messages"]] == [SYSTEM, QUESTION]


# ---------------------------------------------------------------------------------- what belongs to a family


@pytest.mark.parametrize("name", FAMILIES)
def test_a_protocol_made_for_qwen_is_refused_with_other_families(
    tmp_path: Path, folders: Path, smollm2: Path, name: str
) -> None:
    family, tokenizer = shown(name, folders, smollm2)
    protocols = [
        evaluation_config("protocol=json").protocol,
        replace(Protocol(), opening="<|im_start|>"),
        replace(Protocol(), turn_template="<|im_start|>{results}"),
    ]
    for protocol in protocols:
        if "<|im_start|>" in tokenizer.get_vocab():
            TokenProtocol(tokenizer, protocol)
        else:
            with pytest.raises(ValueError, match=r"protocol\.\w+: <\|im_\w+\|> is no token of this model"):
                TokenProtocol(tokenizer, protocol)


RESULT = "<tool_response>\n{passages}\n</tool_response>"
FORMS = {
    "llama3.1": "<|eot_id|><|start_header_id|>user<|end_header_id|>\n\n%s<|eot_id|>",
    "gemma3": "<end_of_turn>\n<start_of_turn>user\n%s<end_of_turn>\n",
}


@pytest.mark.parametrize("name", ["qwen2.5", "qwen3", "smollm2", *FORMS])
def test_calls_as_json_get_their_results_in_turns_of_the_family(
    folders: Path, smollm2: Path, name: str
) -> None:
    family, tokenizer = shown(name, folders, smollm2)
    protocol = evaluation_config("protocol=json").protocol
    if name in FORMS:
        protocol = replace(protocol, result_template=FORMS[name] % RESULT + family.start)
    tools = [search_tool(search_for("Aa\nBo founded Aa."))]
    tokens = TokenProtocol(tokenizer, protocol, tools)
    call = '<think>Look.</think><tool_call>\n{"name": "search", "arguments": {"query": "Aa"}}\n</tool_call>'
    engine = ScriptedEngine(tokens, [call, ANSWER])
    prompt = build_prompt(SYSTEM + " {tools}\n---\n{question}", QUESTION, tokens)
    trajectory = asyncio.run(run_episode(prompt, engine.generate, tools, tokens, LIMITS))
    assert trajectory.finish_reason == "answer" and [each.query for each in trajectory.searches] == ["Aa"]
    # The turns as the template itself writes them, from the end of the call to where the model goes on.
    said = [
        {"role": "user", "content": QUESTION},
        {"role": "assistant", "content": "called"},
        {"role": "user", "content": RESULT.format(passages="Aa\nBo founded Aa.")},
    ]
    written = tokenizer.apply_chat_template(said, tokenize=False, add_generation_prompt=True)
    assert trajectory.segments[1].text == written.rpartition("called")[2]
    assert trajectory.segments[1].token_ids == tokens.encode(trajectory.segments[1].text)


def test_verls_own_part_of_an_agent_loop_takes_the_tokenizer(each: Shown) -> None:
    from verl.utils.tokenizer.continuous_token_wiring import create_continuous_token_builder

    family, tokenizer = each
    assert create_continuous_token_builder(tokenizer, hf_model_type=family.model_type)
