"""The protocol with tokenizers, chat templates and end tokens of many models, and any text from outside."""

import asyncio
import json
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from conftest import LIMITS, ScriptedEngine, search_for
from evaluation_stack import ModelServer, SayingEngine
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_evaluation_parts import config
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from research.datasets.questions import Question
from research.episode.loop import run_episode
from research.episode.prompts import build_prompt, load_prompt
from research.episode.protocol import Protocol, neutralise
from research.episode.rewriting import rewritten_query, run_rewriting
from research.episode.tokens import TokenProtocol
from research.episode.tools import search_tool
from research.episode.trajectory import Passage, Trajectory
from research.evaluation.config import EngineConfig, EvaluationError, Sampling
from research.evaluation.engines import Stops, tokens_of
from research.evaluation.engines.openai_server import OpenAIServer
from research.evaluation.runner import Runner, Task

# What models call their ends, and all that a tokenizer here knows besides single bytes.
ENDS = ["<end_of_turn>", "<|eot_id|>", "<|end|>", "<|im_end|>", "</s>", "[/INST]", "<eos>"]
TEMPLATE = "{% for m in messages %}[{{ m.role }}]{{ m.content }}\n{% endfor %}"
ANY_TEXT = st.text(st.characters(exclude_categories=()), max_size=60)  # half surrogates too
quick = settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])


def make_tokenizer(
    template: str | None = TEMPLATE, front: str = "", back: str = ""
) -> PreTrainedTokenizerFast:
    """Bytes and special tokens; ``front`` and ``back`` are what it puts around a text."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    special = ["<bos>", "<pad>", *ENDS]
    vocabulary = {token: number for number, token in enumerate([*special, *letters])}
    tokenizer = Tokenizer(models.BPE(vocabulary, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(special)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{front} $A {back}".strip(), special_tokens=[(each, vocabulary[each]) for each in special]
    )
    made = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<bos>", pad_token="<pad>")
    made.chat_template = template
    return made


def saved(
    folder: Path, ends: Any, eos: str | None = "<eos>", file: str = "generation_config.json"
) -> TokenProtocol:
    """A model's folder as far as tokens go, whose ``file`` names the ends, loaded again."""
    made = make_tokenizer()
    made.eos_token = eos
    made.save_pretrained(folder)
    (folder / file).write_text(json.dumps({"eos_token_id": ends}))
    return TokenProtocol(AutoTokenizer.from_pretrained(folder), Protocol())


def id_of(token: str) -> int:
    return make_tokenizer().convert_tokens_to_ids(token)


def episode(tokens: TokenProtocol, *turns: str, found: tuple[str, ...] = ("T\ntext",)) -> Trajectory:
    engine = ScriptedEngine(tokens, list(turns))
    return asyncio.run(
        run_episode([1, 2, 3], engine.generate, [search_tool(search_for(*found))], tokens, LIMITS)
    )


configured = cache(config)


def answered(tokens: TokenProtocol, method: str, speak: Any) -> Trajectory:
    """The evaluation of one question whose answer is Paris."""
    done: list[Trajectory] = []
    engine = SayingEngine(tokens, speak=speak)
    runner = Runner(configured(), engine, search_for("T\ntext"))
    tasks = [Task("set", method, Question("q", "the capital?", ("Paris",)))]
    asyncio.run(runner.run(tasks, lambda trajectory, seconds: done.append(trajectory)))
    return done[0]


# ------------------------------------------------------------------------------------------- end tokens


@pytest.mark.parametrize("end", ENDS)
@pytest.mark.parametrize("form", [id_of, lambda end: [id_of("<eos>"), id_of(end)]])
def test_end_tokens_of_the_generation_config(tmp_path: Path, end: str, form: Any) -> None:
    tokens = saved(tmp_path, form(end))
    assert {id_of(end), id_of("<eos>"), id_of("<pad>")} == tokens.eos_token_ids
    assert id_of(end) in tokens.stop_token_ids
    trajectory = episode(tokens, f"<think>no</think> the terms{end} and more</search>")
    assert (trajectory.finish_reason, trajectory.text) == ("eos", "<think>no</think> the terms")
    assert trajectory.response_ids[-1] == id_of(end)
    assert end not in tokens.clean(f"a {end} b")


def test_without_a_generation_config_the_model_config_counts(tmp_path: Path) -> None:
    assert id_of("<|end|>") in saved(tmp_path, [id_of("<|end|>")], file="config.json").eos_token_ids


@pytest.mark.parametrize("ends", ["<eos>", [1.5], [[1]], {"a": 1}, True])
def test_end_tokens_that_are_no_ids_are_named(tmp_path: Path, ends: Any) -> None:
    with pytest.raises(ValueError, match=r"generation_config\.json: eos_token_id must be token ids, not"):
        saved(tmp_path, ends)


def test_a_damaged_generation_config_ends_an_evaluation_in_one_line(tmp_path: Path) -> None:
    tokens = saved(tmp_path, None)
    for content in ("{", "[1]", "\ufeff"):
        (tmp_path / "generation_config.json").write_text(content)
        with pytest.raises(EvaluationError, match=r"generation_config\.json is not a JSON object"):
            tokens_of(SayingEngine(tokens), Protocol(), "direct")


@quick
@given(
    end=st.sampled_from(ENDS),
    others=st.lists(st.sampled_from(ENDS), max_size=2),
    single=st.booleans(),
    eos=st.sampled_from([None, *ENDS]),
    padding=st.integers(0, 3),
    after=ANY_TEXT,
)
def test_an_answer_counts_whatever_ends_it(
    tmp_path_factory: Any,
    end: str,
    others: list[str],
    single: bool,
    eos: str | None,
    padding: int,
    after: str,
) -> None:
    ends = id_of(end) if single else [*map(id_of, others), id_of(end)]
    tokens = saved(tmp_path_factory.mktemp("model"), ends, eos)
    rest = end + "<pad>" * padding + after.encode(errors="replace").decode()
    direct = answered(tokens, "direct", lambda text: f"Paris{rest}")
    assert (direct.metrics["em"], direct.metrics["cut_by_length"], direct.finish_reason) == (1.0, 0.0, "eos")
    assert direct.metadata["prediction"] == "Paris"
    searched = answered(
        tokens, "research", lambda text: "<think>x</think><answer>\\boxed{Paris}</answer>" + rest
    )
    assert (searched.metrics["em"], searched.metrics["format_valid"], searched.finish_reason) == (
        1.0,
        1.0,
        "answer",
    )
    engine = ScriptedEngine(tokens, [f" terms {rest}"])
    written = asyncio.run(run_rewriting([1], engine.generate, tokens, LIMITS))
    assert rewritten_query(written, tokens, think=False) == "terms"


def test_a_sentence_that_ends_where_it_should_is_not_cut_by_length(tmp_path: Path) -> None:
    tokens = saved(tmp_path, None)
    trajectory = answered(tokens, "ircot", lambda text: "So the answer is: Paris.\n")
    assert (trajectory.metrics["em"], trajectory.metrics["cut_by_length"]) == (1.0, 0.0)


def test_a_server_of_texts_ends_with_what_the_model_ends_with(tmp_path: Path) -> None:
    tokens = saved(tmp_path, [id_of("<|eot_id|>")], eos=None)
    with ModelServer(tokens, by_ids=False).running() as url:
        sampled = asyncio.run(_sampled(url, tmp_path, tokens.encode("the king?")))
    assert sampled[-1] in tokens.eos_token_ids and "king" in tokens.said(sampled)


async def _sampled(url: str, folder: Path, prompt: list[int]) -> list[int]:
    names = ("dtype", "max_model_len", "tensor_parallel_size", "gpu_memory_utilization")
    rest = dict.fromkeys(names) | {
        "api_key_variable": "NONE",
        "served_name": None,
        "timeout": 5.0,
        "deadline": 5.0,
    }
    engine = await OpenAIServer.connect(EngineConfig(url, str(folder), **rest), Sampling(0.0, 1.0, 0))
    try:
        return await engine.generate(prompt, 100, Stops(()), 0)
    finally:
        await engine.close()


# --------------------------------------------------------------------------------------- prompts

REFUSE = "{{ raise_exception('System role not supported') }}"
FIRST = "{% if messages[0].role == 'system' %}" + REFUSE + "{% endif %}"
ALTERNATE = (
    "{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles must alternate') }}{% endif %}{% endfor %}"
)
TURNS = "{% for m in messages %}<|im_end|>[{{ m.role }}]{{ m.content | trim }}{% endfor %}"
DROPPED = TURNS.replace("messages %}", "messages if m.role != 'system' %}")
DEFAULT = "{% if messages[0].role != 'system' %}[system]You are a helpful assistant.{% endif %}"
IN_FRONT = (
    "{% if messages[0].role == 'system' %}{% set s = messages[0].content %}{% set messages = messages[1:] %}"
    "{% endif %}{% for m in messages %}[INST]{% if loop.first and s %}<<SYS>>{{ s }}<</SYS>>{% endif %}"
    "{{ m.content }}[/INST]{% endfor %}"
)
BOS = "{{ bos_token }}"
TEMPLATES = {
    "plain": TURNS,
    "refuses": FIRST + TURNS,
    "alternating": BOS + ALTERNATE + TURNS,
    "drops": DROPPED,
    "appends a default": DEFAULT + TURNS,
    "its default alone": "[system]You are a helpful assistant." + DROPPED,
    "in front": BOS + IN_FRONT,
    "fails on other roles": "{% for m in messages %}{{ {'user': '[user]'}[m.role] + m.content }}{% endfor %}",
}


def prompted(template: str | None, name: str, question: str, front: str = "", back: str = "") -> str:
    tokens = TokenProtocol(make_tokenizer(template, front, back), Protocol())
    return tokens.decode(build_prompt(name, question, tokens))


@pytest.mark.parametrize("template", TEMPLATES.values(), ids=TEMPLATES.keys())
def test_the_model_reads_system_text_and_question_once(template: str) -> None:
    system = load_prompt("rqr_think").system
    assert system
    text = prompted(template, "rqr_think", "Who is it?", front="<bos>")
    assert text.count(system) == text.count("Who is it?") == 1
    assert text.index(system) < text.index("Who is it?")
    assert text.count("<bos>") == template.count(BOS)


def test_a_template_that_takes_a_system_message_gets_one() -> None:
    system = load_prompt("rqr").system
    assert prompted(TURNS, "rqr", "Who?") == f"<|im_end|>[system]{system}<|im_end|>[user]Who?"
    assert prompted(FIRST + TURNS, "rqr", "Who?") == f"<|im_end|>[user]{system}\n\nWho?"


@pytest.mark.parametrize("template", ["{{ nonsense(", REFUSE, "{{ 1 + 'a' }}", "no place for a question"])
def test_a_template_that_cannot_ask_ends_in_one_line(template: str) -> None:
    tokens = TokenProtocol(make_tokenizer(template), Protocol())
    with pytest.raises(EvaluationError, match="the model's chat template"):
        tokens_of(SayingEngine(tokens), Protocol(), "rqr")


@pytest.mark.parametrize("template", [None, ""])
@pytest.mark.parametrize("name", ["research_base_own", "rqr"])
@pytest.mark.parametrize(
    ("front", "back"), [("", ""), ("<bos>", ""), ("<bos>", "<eos>"), ("", "<eos>"), ("<s> <bos>", "")]
)
def test_without_a_template_a_prompt_begins_as_the_tokenizer_begins(
    template: str | None, name: str, front: str, back: str
) -> None:
    front = front.replace("<s>", "<|end|>")
    text = prompted(template, name, "Who?", front, back)
    begun = front.replace(" ", "")
    assert text.startswith(begun) and not text.startswith(begun * 2 or "<") and not text.endswith("<eos>")
    assert text.count("<bos>") == begun.count("<bos>")


def test_a_server_of_texts_adds_bos_itself(tmp_path: Path) -> None:
    made = make_tokenizer(None, front="<bos>")
    made.eos_token = "<eos>"
    made.save_pretrained(tmp_path)
    tokens = TokenProtocol(AutoTokenizer.from_pretrained(tmp_path), Protocol())
    server = ModelServer(tokens, by_ids=False)
    with server.running() as url:
        asyncio.run(_sampled(url, tmp_path, build_prompt("research_base_own", "the king?", tokens)))
    assert server.bodies[-1]["prompt"].startswith("The following is a dialogue")


@quick
@given(
    bos=st.booleans(),
    check=st.sampled_from(["", FIRST, ALTERNATE, DEFAULT]),
    turns=st.sampled_from(
        [TURNS, DROPPED, IN_FRONT, TEMPLATE, "{{ messages[0].content }}", "{{ messages[-1].content }}"]
    ),
    adds_bos=st.booleans(),
    name=st.sampled_from(["rqr", "research_instruct_own", "question", "search_r1_own"]),
    question=ANY_TEXT,
)
def test_any_template_shows_the_whole_prompt_or_says_why_not(
    bos: bool, check: str, turns: str, adds_bos: bool, name: str, question: str
) -> None:
    text = prompted(BOS * bos + check + turns, name, f"q{question}q", front="<bos>" * adds_bos)
    asked = TokenProtocol(make_tokenizer(), Protocol()).clean(f"q{question}q")
    assert asked in text and text.count("<bos>") == bos
    assert (load_prompt(name).system or "") in text


# ------------------------------------------------------------------------------- any text from outside


@quick
@given(passages=st.lists(ANY_TEXT, max_size=3), question=ANY_TEXT, model=ANY_TEXT)
def test_any_text_goes_in_and_can_be_kept(
    tokens: TokenProtocol, passages: list[str], question: str, model: str
) -> None:
    said = model.encode(errors="replace").decode()
    trajectory = episode(
        tokens, f"<search>{said}q</search>", "<answer>\\boxed{x}</answer>", "</answer>", found=tuple(passages)
    )
    trajectory.metadata = {"question": question, "error": f"of {model}"}
    line = trajectory.to_json()
    assert Trajectory.from_json(line.encode().decode()).segments == trajectory.segments
    kept = [each.contents for each in trajectory.searches[0].passages] if trajectory.searches else []
    assert all(each.encode() is not None and "\ud800" not in each for each in kept)
    assert tokens.decode(build_prompt("question", question, tokens)).encode() is not None


@pytest.mark.parametrize("half", ["\ud800", "\udfff", "a\udc00b"])
def test_half_a_surrogate_pair_is_replaced_where_it_comes_in(tokens: TokenProtocol, half: str) -> None:
    assert Passage(half, f"T\n{half}").contents == "T\n" + half.encode(errors="replace").decode()
    assert "?" in tokens.decode(build_prompt("question", half, tokens))
    assert Trajectory([], metadata={"question": half}).to_json().encode()


@pytest.mark.parametrize("text", ["＜answer＞x＜/answer＞", "<answ\u200ber>", "＜｜eot｜＞", "<\ufb01nal>"])
def test_a_tokenizer_that_normalises_makes_no_tag_of_other_characters(text: str) -> None:
    made = make_tokenizer()
    made.backend_tokenizer.normalizer = normalizers.Sequence(
        [normalizers.NFKC(), normalizers.Replace("\u200b", "")]
    )
    tokens = TokenProtocol(made, Protocol(search="final"))
    read = tokens.decode(tokens.encode(tokens.clean(f"é {text}")))
    assert neutralise(read, tokens.protocol, tokens.special_tokens) == read


def test_no_tag_comes_about_where_two_passages_meet(tag_tokens: TokenProtocol) -> None:
    block = tag_tokens.result_block([Passage("1", "one <"), Passage("2", "answer> two")], 200, 50)
    assert block is not None
    inside = block.text.removeprefix(" <result>\n").removesuffix("\n</result>")
    assert neutralise(inside, tag_tokens.protocol) == inside and "one (" in inside


def test_a_huge_passage_is_looked_at_as_far_as_it_is_shown(tokens: TokenProtocol) -> None:
    words = episode(tokens, "<search>q</search>", "<answer>", "", found=("T\n" + "<é " * 2_000_000,))
    assert words.segments[1].text.startswith(" <result>\nT\n<é <é")


@pytest.mark.parametrize(
    "text",
    [
        "Kyoto city\n" + "京都は日本の都市である。" * 200,
        "ประเทศไทย " + "กรุงเทพมหานครเป็นเมืองหลวง" * 200,
        "Sequence\n" + "ACGT" * 900,
        "A table\n" + "word\tword\n" * 900,
    ],
)
@pytest.mark.parametrize("room", [60, 300])
def test_what_is_cut_keeps_most_of_its_room_with_blanks_or_without(
    tokens: TokenProtocol, text: str, room: int
) -> None:
    [shown] = tokens.passage_texts([Passage("1", text)], room)
    assert 0.7 * room < len(tokens.encode(shown)) <= room


def test_what_is_cut_ends_between_words(tokens: TokenProtocol) -> None:
    for room in range(20, 60):
        [shown] = tokens.passage_texts([Passage("1", "The Title\nnumbers, orders\tand letters " * 30)], room)
        assert set(shown.split()) <= {"The", "Title", "numbers,", "orders", "and", "letters"}
