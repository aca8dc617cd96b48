"""Prompts: built in, of a file, or as a text; with a system message, an empty one, or none."""

from pathlib import Path

import pytest
from omegaconf import OmegaConf

from research.episode.prompts import Prompt, load_prompt, prompt_names, with_text
from research.episode.protocol import Protocol
from research.episode.tokens import TokenProtocol
from research.evaluation.config import EvaluationError
from research.evaluation.config import compose_multihop as compose_evaluation
from research.training.run.options import RecipeOptions, RunFailed
from research.training.run.plan import compose_config, make_plan

MINE = "# Task\nSearch, then: answer.\n--- \nQuestion: {question}\n"


@pytest.fixture
def mine(tmp_path: Path) -> Path:
    path = tmp_path / "mine.txt"
    path.write_text(MINE)
    return path


def training(run_dir: Path, prompt: object) -> str:
    plan = make_plan(RecipeOptions("cpu", run_dir, overrides=(f"research.prompt={prompt}",)))
    return str(compose_config(plan.on_port(1)).research.prompt)


def evaluation(prompt: object) -> str:
    words = ["engine.model=none", "retriever.url=http://127.0.0.1:1", "datasets=[x]", f"prompt={prompt}"]
    return str(compose_evaluation(words).prompt)


def test_a_prompt_of_ones_own_is_kept_by_its_text(mine: Path, tmp_path: Path) -> None:
    kept = training(tmp_path / "run", mine)
    assert load_prompt(kept) == Prompt("# Task\nSearch, then: answer.", "Question: {question}", chat=True)
    assert evaluation(mine) == evaluation(kept) == training(tmp_path / "run", kept) == kept
    assert training(tmp_path / "run", "research_base_own") == "research_base_own"


def test_a_run_that_is_resumed_keeps_the_text_that_it_was_trained_with(mine: Path, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    before = training(run_dir, mine)
    mine.write_text("Another: {question}")
    assert "Another" in training(run_dir, mine)
    (run_dir / "checkpoints" / "global_step_2").mkdir(parents=True)
    (run_dir / "checkpoints" / "latest_checkpointed_iteration.txt").write_text("2")
    OmegaConf.save({"research": {"prompt": before}}, run_dir / "config.yaml")
    assert training(run_dir, mine) == before
    mine.unlink()
    assert training(run_dir, mine) == before


def test_files_of_other_editors_are_read_alike(mine: Path, tmp_path: Path) -> None:
    kept = training(tmp_path / "run", mine)
    mine.write_bytes(b"\xef\xbb\xbf" + MINE.replace("\n", "\r\n").encode())
    assert training(tmp_path / "run", mine) == kept
    mine.write_text("One\x0ctwo\u2028three {question}")
    assert load_prompt(training(tmp_path / "run", mine)).user == "One\x0ctwo\u2028three {question}"


def test_a_text_needs_no_file() -> None:
    assert load_prompt("Who? {question}") == Prompt(None, "Who? {question}", chat=False)
    assert load_prompt('""\n---\n{question}') == Prompt("", "{question}", chat=True)
    assert load_prompt("---\n{question}") == Prompt(None, "{question}", chat=True)


def test_an_empty_system_message_can_be_said(text_tokens: TokenProtocol) -> None:
    tokenizer = text_tokens.tokenizer
    template = (
        "{% if messages[0].role != 'system' %}[its own]{% endif %}"
        "{% for m in messages %}[{{ m.role }}|{{ m.content }}]{% endfor %}"
    )
    before, tokenizer.chat_template = tokenizer.chat_template, template
    try:
        tokens = TokenProtocol(tokenizer, Protocol())
        said = [tokens.decode(tokens.chat(system, "Who?")) for system in (None, "", "Search.")]
    finally:
        tokenizer.chat_template = before
    assert said == ["[its own][user|Who?]", "[system|][user|Who?]", "[system|Search.][user|Who?]"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "and there is no such file"),
        (b"\xff\xfe", "and as a file: 'utf-8' codec"),
        (b"Who asks nothing?", "lacks {question}"),
        (b"{question} ${oc.env:HOME}", "a prompt cannot hold"),
    ],
)
def test_what_is_no_prompt_is_refused_in_one_line(
    tmp_path: Path, content: bytes | None, message: str
) -> None:
    path = tmp_path / "mine.txt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(RunFailed) as of_training:
        training(tmp_path / "run", path)
    with pytest.raises(EvaluationError) as of_evaluation:
        evaluation(path)
    for refused in (of_training, of_evaluation):
        assert message in str(refused.value) and len(str(refused.value).splitlines()) == 1


def test_built_in_ones_are_kept_by_name() -> None:
    for name in prompt_names():
        assert "{question}" in load_prompt(name).user
        assert with_text(name) == name
