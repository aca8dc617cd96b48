"""Values of the evaluations' keys, and their folder: each has a meaning and can be written, or is refused by
name, before anything is asked.
"""

import re
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from evaluation_stack import write_questions
from omegaconf import OmegaConf

from research.evaluation import __main__ as multihop
from research.evaluation import config
from research.evaluation.bright import __main__ as bright
from research.evaluation.bright import config as bright_config
from research.evaluation.config import EvaluationError
from research.evaluation.outputs.folder import own_folder
from research.values import flattened

NEEDED = ["engine.model=none", "retriever.url=http://none"]
NUMBERS_OF_BOTH = [
    *(("concurrency", value, "integer of at least 1") for value in ("0", "-3", "nan", "2.5", "null", "true")),
    ("question_timeout", "0", "number above 0"),
    ("question_timeout", "inf", "number above 0"),
    ("sampling.temperature", "nan", "number of at least 0"),
    ("sampling.temperature", "-1", "number of at least 0"),
    ("sampling.temperature", "9" * 400, "number of at least 0"),
    ("sampling.top_p", "7", "number above 0 and at most 1"),
    ("sampling.top_p", "0", "number above 0 and at most 1"),
    ("sampling.top_k", "-5", "integer of at least 0"),
    ("sampling.repetition_penalty", "0", "number above 0"),
    ("sampling.seed", "a", "integer of at least 0"),
    ("engine.timeout", "0", "number above 0"),
    ("engine.deadline", "-1", "number above 0"),
    ("engine.max_model_len", "0", "integer of at least 1, or null"),
    ("engine.tensor_parallel_size", "0", "integer of at least 1"),
    ("engine.gpu_memory_utilization", "1.5", "number above 0 and at most 1"),
    ("engine.model", "http://h:99999", "an address"),
    ("engine", "5", "section"),
]
OF_MULTIHOP = [
    ("limits.searches", "-1", "integer of at least 0"),
    ("limits.turn_tokens", "0", "integer of at least 1"),
    ("limits.passage_tokens", "0", "at least 1 where searches are made"),
    ("retriever.top_k", "0", "integer from 1 to 1000"),
    ("retriever.timeout", "nan", "number above 0"),
    ("retriever.connections", "0", "integer of at least 1"),
    ("retriever.url", "http://h:abc", "an address"),
    ("limit", "-1", "integer of at least 1, or null"),
    ("datasets", "hotpotqa", "a list"),
    ("methods", "[]", "at least one name"),
    ("baselines.ircot_steps", "0", "integer of at least 1"),
    ("judge.concurrency", "0", "integer of at least 1"),
    ("judge.url", "http://127.0.0.1:1", "judge.model: which model"),
    ("protocol.answer", "search", "different names"),
    ("protocol.passage_template", "'{nr}'", "may hold {rank}"),
]
OF_BRIGHT = [
    ("retriever.top_k", "0", "integer from 1 to 1000"),
    ("retriever.top_k", "1001", "integer from 1 to 1000"),
    ("retriever.in_flight", "-1", "integer of at least 1"),
    ("retriever.k1", "nan", "number of at least 0"),
    ("retriever.b", "2", "number from 0 to 1"),
    ("retriever.options", "depth", "a list like"),
    ("weight", "1.5", "integer of at least 1"),
    ("rrf_k", "-60", "integer of at least 0"),
    ("rewriting.tokens", "0", "integer of at least 1"),
    ("rewriting.samples", "0", "integer of at least 1"),
    ("tasks", "[]", "at least one name"),
    ("long", "2", "true or false"),
    ("protocol.answer", "search", "different names"),
]


def refusal(kind: str, *words: str) -> str:
    with pytest.raises(EvaluationError) as raised:
        if kind == "bright":
            bright_config.compose_bright(["engine.model=none", *words], None)
        else:
            config.compose_multihop([*NEEDED, *words])
    assert "\n" not in str(raised.value)
    return str(raised.value)


@pytest.mark.parametrize(
    ("kind", "key", "value", "message"),
    [
        *(("multihop", *case) for case in NUMBERS_OF_BOTH + OF_MULTIHOP),
        *(("bright", *case) for case in NUMBERS_OF_BOTH + OF_BRIGHT),
    ],
)
def test_values_without_a_meaning_are_named_with_their_key(
    kind: str, key: str, value: str, message: str
) -> None:
    told = refusal(kind, f"{key}={value}")
    assert message in told and key.split(".")[0] in told


@pytest.mark.parametrize("kind", ["multihop", "bright"])
def test_a_key_that_was_taken_out_is_named(kind: str) -> None:
    assert refusal(kind, "~concurrency") == "no value for concurrency"
    assert refusal(kind, "~sampling.seed") == "no value for sampling.seed"


@pytest.mark.parametrize(
    ("name", "rules"), [("eval_multihop", config.MULTIHOP), ("eval_bright", bright_config.BRIGHT)]
)
def test_every_key_has_a_rule_and_every_rule_a_key(name: str, rules: dict[str, Any]) -> None:
    values: Any = OmegaConf.to_container(config.compose_file(name, [], {}))
    assert set(flattened(values)) == set(rules) - config.OPTIONAL


@pytest.mark.parametrize("word", ["concurrency=0", "concurrency=-3", "concurrency=nan", "limits.searches=-1"])
def test_nothing_is_asked_or_written_with_such_a_value(tmp_path: Path, word: str) -> None:
    questions = write_questions(tmp_path / "land.questions.jsonl", 3)
    words = ["--model", "http://127.0.0.1:1", "--retriever", "http://127.0.0.1:1", "--out"]
    command = ["run", *words, str(tmp_path / "out"), "--datasets", str(questions), word]
    result = CliRunner().invoke(multihop.main, command)
    assert result.exit_code == 1 and not (tmp_path / "out").exists()
    assert re.fullmatch(rf"Error: {re.escape(word.partition('=')[0])} must be an integer .*\n", result.stderr)


@pytest.mark.parametrize("word", ["concurrency=0", "concurrency=nan", "sampling.top_p=7"])
def test_nothing_of_bright_is_asked_or_written_with_such_a_value(tmp_path: Path, word: str) -> None:
    command = ["run", "--model", "http://127.0.0.1:1", "--out", str(tmp_path / "out"), word]
    result = CliRunner().invoke(bright.main, command)
    assert result.exit_code == 1 and not (tmp_path / "out").exists()
    assert re.fullmatch(rf"Error: {re.escape(word.partition('=')[0])} must be an? .*\n", result.stderr)


@pytest.mark.parametrize("main", [multihop.main, bright.main])
def test_a_folder_that_cannot_be_written_is_named_before_anything_is_asked(tmp_path: Path, main: Any) -> None:
    (tmp_path / "file").write_text("")
    rest = ["--retriever", "http://127.0.0.1:1"] if main is multihop.main else []
    for out in ("/proc/x", "/proc/x/y", tmp_path / "file" / "x"):
        result = CliRunner().invoke(main, ["run", "--model", "http://127.0.0.1:1", "--out", str(out), *rest])
        assert result.exit_code == 1 and len(result.stderr.splitlines()) == 1
        assert result.stderr.startswith(f"Error: {out} cannot be written (")
        assert "choose another --out" in result.stderr


def test_that_a_folder_can_be_written_is_seen_without_a_trace(tmp_path: Path) -> None:
    own_folder(tmp_path / "new" / "out")
    (tmp_path / "there").mkdir()
    own_folder(tmp_path / "there")
    assert [path.name for path in tmp_path.rglob("*")] == ["there"]
