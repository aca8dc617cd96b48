"""data/mini_world.py: the same bytes from the same seed, no name in two splits, every question answerable."""

import json
import random
from pathlib import Path

import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st

from data import DataError
from data.mini_world import (
    FIRST_WORDS,
    HOPS,
    LAST_WORDS,
    RELATIONS,
    SPLIT_SHARES,
    MiniWorld,
    ask,
    build,
    filling,
    main,
    names_in_pool,
    pool_of,
    practice_world,
)
from data.questions import read_questions

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"
FILES = {"corpus.jsonl", *(f"{split}.questions.jsonl" for split in SPLIT_SHARES)}


@pytest.fixture(scope="module")
def world() -> MiniWorld:
    return build(seed=0, passages=400, train=200, validation=30, test=30)


@pytest.fixture(scope="module")
def folder(world: MiniWorld, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("world") / "files"
    world.write(path)
    return path


def test_same_seed_same_bytes(folder: Path, tmp_path: Path) -> None:
    build(seed=0, passages=400, train=200, validation=30, test=30).write(tmp_path / "again")
    build(seed=1, passages=400, train=200, validation=30, test=30).write(tmp_path / "other")
    for name in FILES:
        assert (folder / name).read_bytes() == (tmp_path / "again" / name).read_bytes()
        assert (folder / name).read_bytes() != (tmp_path / "other" / name).read_bytes()


def test_splits_share_no_name_not_even_in_text(world: MiniWorld) -> None:
    for split, part in world.worlds.items():
        assert {pool_of(name) for name in part.kinds} == {split}
        objects = {name for facts in part.facts.values() for name in facts.values()}
        assert objects <= set(part.kinds)
        texts = " ".join(part.texts.values())
        others = [name for other, its in world.worlds.items() if other != split for name in its.kinds]
        assert not [name for name in others if name in texts]


@settings(deadline=None, max_examples=20)
@given(st.integers())
def test_practice_worlds_use_reserved_names_only(seed: int) -> None:
    assert {pool_of(name) for name in practice_world(seed).kinds} == {"practice"}


def test_pools_divide_all_names() -> None:
    pools = [set(names_in_pool(pool)) for pool in (*SPLIT_SHARES, "practice")]
    assert sum(map(len, pools)) == len(set.union(*pools)) == len(FIRST_WORDS) * len(LAST_WORDS)
    assert len(set(FIRST_WORDS) | set(LAST_WORDS)) == 256


def test_decomposition_leads_to_the_answer(world: MiniWorld) -> None:
    texts = {row["id"]: row for row in world.corpus}
    for question in (question for questions in world.questions.values() for question in questions):
        steps = question.metadata["question_decomposition"]
        answers: list[str] = []
        for step, passage_id in zip(steps, question.supporting_ids, strict=True):
            asked, _, relation = step["question"].partition(" >> ")
            subject = answers[int(asked[1:]) - 1] if asked.startswith("#") else asked
            page = texts[passage_id]
            assert subject == page["title"] == step["support_title"] and passage_id == step["support_id"]
            assert relation in {each.name for each in RELATIONS}
            assert step["answer"] in page["text"]
            answers.append(step["answer"])
        assert question.golden_answers == (answers[-1],)
        assert steps[0]["support_title"] in question.question
        assert not [answer for answer in answers if answer in question.question]


def test_questions_and_passages_have_the_stated_sizes(world: MiniWorld) -> None:
    assert len(world.corpus) == 400 == len({row["title"] for row in world.corpus})
    words = [len(row["contents"].split()) for row in world.corpus]
    assert min(words) >= 25 and max(words) <= 60
    hops = {split: [question.hops for question in world.questions[split]] for split in world.questions}
    assert sorted(hops["train"]) == [2] * 67 + [3] * 67 + [4] * 66
    assert sorted(hops["validation"]) == sorted(hops["test"]) == sorted([*HOPS] * 30)


def test_rows_have_the_form_of_the_real_data(folder: Path) -> None:
    passages = [json.loads(line) for line in (folder / "corpus.jsonl").read_text().splitlines()]
    for row in passages:
        assert list(row) == ["id", "title", "text", "contents"]
        assert row["contents"] == f"{row['title']}\n{row['text']}"
    ids = [question.id for name in FILES - {"corpus.jsonl"} for question in read_questions(folder / name)]
    assert len(ids) == len(set(ids)) == 380
    assert all(len(name.split("__")[1].split("_")) == int(name[0]) for name in ids)


@pytest.mark.skipif(not SHARED.is_dir(), reason="the real rows are not on this machine")
def test_keys_are_those_of_musique(folder: Path) -> None:
    def first(path: Path) -> dict:
        return json.loads(path.open().readline())

    ours, real = first(folder / "test.questions.jsonl"), first(SHARED / "musique.questions.jsonl")
    assert ours.keys() == real.keys()
    assert real["metadata"].keys() - ours["metadata"].keys() == {"context_ids", "dev_index"}
    step, real_step = (row["metadata"]["question_decomposition"][0] for row in (ours, real))
    assert step.keys() == real_step.keys()
    assert first(folder / "corpus.jsonl").keys() == first(SHARED / "musique.corpus.jsonl").keys()


def test_chains_are_different_and_never_turn_back() -> None:
    world = practice_world(0)
    chains = ask(random.Random(0), world, hops=4, count=100)
    assert len({(chain.start, chain.path) for chain in chains}) == 100
    assert all(len({chain.start, *chain.chain}) == 5 for chain in chains)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--passages", "50"], "the validation world would have 10 passages"),
        (["--passages", "100000"], "the train world would have 60000 passages"),
        (["--passages", "100", "--test", "5000"], "raise --passages"),
        (["--hops", "1,2"], "give numbers from 2 to 4"),
        (["--hops", "two"], "give numbers from 2 to 4"),
    ],
)
def test_mistakes_end_in_one_line(arguments: list[str], message: str, tmp_path: Path) -> None:
    result = CliRunner().invoke(main, ["--out", str(tmp_path / "w"), *arguments])
    assert result.exit_code in (1, 2)
    assert message in result.output and "Traceback" not in result.output
    assert not list(tmp_path.iterdir())


def test_command_writes_all_files_and_writes_them_again(tmp_path: Path) -> None:
    options = ["--out", str(tmp_path / "w"), "--passages", "200", "--train", "20", "--test", "5"]
    for _ in range(2):
        result = CliRunner().invoke(main, [*options, "--validation", "5", "--hops", "3,2"])
        assert result.exit_code == 0, result.output
        assert {path.name for path in (tmp_path / "w").iterdir()} == FILES
        assert "20 questions (2 hops: 10, 3 hops: 10)" in result.output
    assert [path.name for path in tmp_path.iterdir()] == ["w"]


def test_a_folder_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), filling(tmp_path / "new") as scratch:
        (scratch / "half").touch()
        raise KeyboardInterrupt
    assert not list(tmp_path.iterdir())
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match="cannot be written"), filling(tmp_path / "file" / "new"):
        pass
