"""Environments: found by name or import path, and fact verification from its rows to its table."""

import asyncio
import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from conftest import LIMITS, ScriptedEngine

from research.datasets.mini.claims import main as make_claims
from research.environments import (
    DOOR,
    BaseEnvironment,
    EpisodeSettings,
    environment_class,
    make_environment,
    read_items,
)
from research.environments.fact_verification import HEADLINE, LABELS, Environment, claim_of
from research.episode.protocol import Protocol
from research.episode.tokens import TokenProtocol
from research.errors import DataError
from research.evaluation.config import EvaluationError, compose_multihop, read_multihop
from research.evaluation.datasets import read_datasets
from research.tools.search import RetrieverConfig

SETTINGS = EpisodeSettings(
    "fact_verification", "exact_match", Protocol(), LIMITS, RetrieverConfig("http://127.0.0.1:1")
)
EXAMPLES = Path(__file__).parents[1] / "examples"
FEVER = {"id": 7, "verifiable": "VERIFIABLE", "label": "REFUTES", "claim": "Oslo lies in Peru."}
FEVER["evidence"] = [[[1, 2, "Oslo_City", 0], [1, 3, "Peru", 4]], [[9, None, None, None]]]
HOVER = {"uid": "a", "claim": "x", "label": "NOT_SUPPORTED", "num_hops": 3, "supporting_facts": [["Oslo", 0]]}


def test_names_are_built_in_or_ones_own(monkeypatch: pytest.MonkeyPatch) -> None:
    assert DOOR.names() == ["fact_verification", "query_rewriting", "question_answering"]
    monkeypatch.syspath_prepend(EXAMPLES / "your_environment")
    given = {"environment": {"multiple_choice:MultipleChoice": {"most": 3}}}
    mine = make_environment(given, SETTINGS)
    assert type(mine).__name__ == "MultipleChoice" and mine.settings.parameters == {"most": 3}
    sys.modules.pop("multiple_choice")


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"environment": "answering"}, "there are: fact_verification, query_rewriting"),
        ({"environment": "json:loads"}, "'json:loads' is no class made from BaseEnvironment"),
        ({"environment": {"a": {}, "b": {}}}, "names 2 environments, not one: a, b"),
        ({"environment": "query_rewriting", "rewriting": {"thinks": True}}, "research.rewriting: .*'thinks'"),
    ],
)
def test_what_is_no_environment_is_refused(section: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_environment(section, SETTINGS)


def test_runs_of_before_there_were_environments_have_theirs() -> None:
    assert environment_class({}).__module__.endswith("question_answering")
    assert environment_class({"rewriting": {"think": False}}).__module__.endswith("query_rewriting")


def test_claims_of_fever_and_hover() -> None:
    claim = claim_of(FEVER, "f:1")
    assert (claim.id, claim.question, claim.golden_answers) == ("7", "Oslo lies in Peru.", ("REFUTED",))
    assert claim.supporting_titles == ["Oslo City", "Peru"]
    several = claim_of(HOVER, "f:1")
    assert several.golden_answers == ("REFUTED", "NOT ENOUGH INFO") and several.hops == 3


@pytest.mark.parametrize(
    "row",
    [
        *(
            [FEVER, changed]
            for changed in ({"label": "MAYBE"}, {"claim": " "}, {"id": None}, {"evidence": [1]})
        ),
        [HOVER, {"supporting_facts": "Oslo"}],
        [{}, {}],
        [HOVER, {"label": ["SUPPORTS"]}],
    ],
)
def test_a_wrong_claim_is_named(tmp_path: Path, row: list[dict[str, Any]]) -> None:
    path = tmp_path / "claims.jsonl"
    path.write_text(json.dumps(FEVER) + "\n" + json.dumps(row[0] | row[1] | {"uid": "b"}) + "\n")
    if row[0] is FEVER and row[1].get("id", 1) is None:
        path.write_text(json.dumps(FEVER) + "\n" + json.dumps(FEVER | {"id": None}) + "\n")
    with pytest.raises(DataError, match=f"{path}:2"):
        Environment(SETTINGS).read(path, "train")


def test_questions_whose_answers_are_labels_are_claims(tmp_path: Path) -> None:
    row = {"id": "1", "question": "Oslo lies in Peru.", "golden_answers": ["REFUTED"]}
    path = tmp_path / "questions.jsonl"
    path.write_text(json.dumps(row))
    assert [claim.id for claim in Environment(SETTINGS).read(path, "train")] == ["1"]
    path.write_text(json.dumps(row | {"golden_answers": ["no"]}))
    with pytest.raises(DataError, match="must be of SUPPORTED, REFUTED, NOT ENOUGH INFO"):
        Environment(SETTINGS).read(path, "train")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("claims") / "world"
    words = ["--out", str(folder), "--passages", "600", "--train", "9", "--validation", "3", "--test", "3"]
    assert CliRunner().invoke(make_claims, words).exit_code == 0
    return folder


def test_the_mini_worlds_claims_say_what_its_passages_say(world: Path) -> None:
    corpus = [json.loads(line) for line in (world / "corpus.jsonl").read_text().splitlines()]
    titles, text = {row["title"] for row in corpus}, " ".join(row["text"] for row in corpus)
    rows = [json.loads(line) for line in (world / "train.claims.jsonl").read_text().splitlines()]
    assert sorted(row["label"] for row in rows) == sorted(9 * ["NOT ENOUGH INFO", "REFUTES", "SUPPORTS"])
    for row in rows:
        about = row["claim"].split(" is ")[0].split(" of ")[-1].split(" the ")[0]
        known = any(title.startswith(about) for title in titles)
        assert known == (row["label"] != "NOT ENOUGH INFO") and (known or about not in text)


def test_claims_become_rows_by_label(world: Path) -> None:
    environment = Environment(SETTINGS)
    items = {split: environment.read(world / f"{split}.claims.jsonl", split) for split in ("train", "test")}
    rows = environment.rows(items, 0, world)
    assert {row["data_source"] for row in rows["test"]} == {
        "test_supported",
        "test_refuted",
        "test_not_enough_info",
    }
    assert len(rows["train"]) == 27 and {row["extra_info"]["id"] for row in rows["test"]} == set(
        map(str, range(9))
    )


@pytest.mark.parametrize("verdict", LABELS)
def test_a_verdict_is_right_or_wrong(tag_tokens: TokenProtocol, verdict: str) -> None:
    environment: BaseEnvironment = Environment(SETTINGS)
    rows = environment.rows({"train": [claim_of(FEVER, "f:1")]}, 0, Path("f"))["train"]
    engine = ScriptedEngine(tag_tokens, [f"<think>t</think><answer>\\boxed{{{verdict}}}</answer>"])
    trajectory = asyncio.run(environment.play(rows[0], engine.generate, tag_tokens))
    right = verdict == "REFUTED"
    assert trajectory.reward == trajectory.metrics["em"] == float(right)
    assert HEADLINE.well_done(trajectory.metrics) == right


def test_an_evaluation_reads_the_environments_rows(world: Path) -> None:
    words = ["engine.model=m", "retriever.url=http://127.0.0.1:1", "prompt=fact_verification"]
    words += [f"datasets=['{world}/test.claims.jsonl']"]
    config = read_multihop(compose_multihop([*words, "environment=fact_verification"]))
    (claims,) = read_datasets(config).values()
    assert {claim.golden_answers for claim in claims} == {(label,) for label in LABELS}
    with pytest.raises(EvaluationError, match="asks no questions"):
        read_datasets(read_multihop(compose_multihop([*words, "environment=query_rewriting", "tools=[]"])))


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (KeyError("frage"), "cannot read it: KeyError: 'frage'"),
        (None, "gave None, not a list of items"),
        ([{"question": "q"}], "its id and question must be texts"),
    ],
)
def test_what_an_environment_of_ones_own_does_wrong_is_named_with_its_file(
    given: object, said: str, tmp_path: Path
) -> None:
    class Mine:
        def read(self, path: Path, split: str, final: bool) -> object:
            if isinstance(given, Exception):
                raise given
            return given

    with pytest.raises(DataError, match=re.escape(said)) as caught:
        read_items(Mine(), tmp_path / "rows.csv", "train")  # type: ignore[arg-type]
    assert "rows.csv" in str(caught.value) and "Mine" in str(caught.value)
