"""mini/world.py: the same bytes from the same seed, no name in two splits, every question answerable."""

import json
import random
from pathlib import Path

import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st

from research.datasets.mini.encoder import encode, encoder_of, word_weights
from research.datasets.mini.encoder import main as encoder_main
from research.datasets.mini.language import KIND_SHARES, PAGES, RELATIONS, first_names, last_names, name_words
from research.datasets.mini.world import (
    HOPS,
    SPLIT_SHARES,
    Entity,
    MiniWorld,
    ask,
    build_world,
    main,
    names_in_pool,
    pool_of,
    practice_world,
)
from research.datasets.questions import read_questions
from research.errors import DataError
from research.files import filling

FILES = {"corpus.jsonl", *(f"{split}.questions.jsonl" for split in SPLIT_SHARES)}


@pytest.fixture(scope="module")
def world() -> MiniWorld:
    return build_world(seed=0, passages=800, train=200, validation=30, test=30)


@pytest.fixture(scope="module")
def folder(world: MiniWorld, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("world") / "files"
    world.write(path)
    return path


def test_same_seed_same_bytes(folder: Path, tmp_path: Path) -> None:
    build_world(seed=0, passages=800, train=200, validation=30, test=30).write(tmp_path / "again")
    build_world(seed=1, passages=800, train=200, validation=30, test=30).write(tmp_path / "other")
    for name in FILES:
        assert (folder / name).read_bytes() == (tmp_path / "again" / name).read_bytes()
        assert (folder / name).read_bytes() != (tmp_path / "other" / name).read_bytes()


def test_splits_share_no_name_not_even_in_text(world: MiniWorld) -> None:
    for split, part in world.worlds.items():
        names = {each.name for each in part.entities}
        assert {pool_of(name) for name in names} == {split}
        assert {other for facts in part.facts.values() for other in facts.values()} <= set(part.entities)
        text = " ".join(" ".join(texts) for texts in part.texts.values())
        others = [each.name for name, its in world.worlds.items() if name != split for each in its.entities]
        assert not [name for name in others if name in text]


@settings(max_examples=20)
@given(st.integers())
def test_practice_worlds_use_reserved_names_only(seed: int) -> None:
    assert {pool_of(each.name) for each in practice_world(seed).entities} == {"practice"}


def test_pools_divide_all_names() -> None:
    for kind in KIND_SHARES:
        pools = [set(names_in_pool(pool, kind)) for pool in (*SPLIT_SHARES, "practice")]
        names = {f"{first} {last}" for first in first_names() for last in last_names(kind)}
        assert sum(map(len, pools)) == len(set.union(*pools)) and set.union(*pools) == names
    assert len(name_words()) == len(first_names()) + sum(len(last_names(kind)) for kind in KIND_SHARES)


def test_decomposition_leads_to_the_answer(world: MiniWorld) -> None:
    texts = {row["id"]: row for row in world.corpus}
    for question in (question for questions in world.questions.values() for question in questions):
        steps = question.metadata["question_decomposition"]
        answers: list[str] = []
        for step, passage_id in zip(steps, question.supporting_ids, strict=True):
            asked, _, relation = step["question"].partition(" >> ")
            subject = answers[int(asked[1:]) - 1] if asked.startswith("#") else asked
            page = texts[passage_id]
            assert subject in page["text"] and page["title"] == step["support_title"]
            assert page["title"].partition(" (")[0] in subject and passage_id == step["support_id"]
            stated = [way for each in RELATIONS if each.name == relation for way in each.passage_phrases]
            assert any(f"{way} {step['answer']}." in page["text"] for way in stated)
            answers.append(step["answer"])
        assert answers[-1] in question.golden_answers
        assert not [answer for answer in answers if answer in question.question]


def test_questions_and_passages_share_no_words_for_a_relation() -> None:
    assert len(RELATIONS) == 24 == len({relation.name for relation in RELATIONS})
    phrases = [
        way for relation in RELATIONS for way in (*relation.question_phrases, *relation.passage_phrases)
    ]
    assert len(phrases) == len(set(phrases))
    for relation in RELATIONS:
        asked = {word for way in relation.question_phrases for word in way.split()}
        assert not asked & {word for way in relation.passage_phrases for word in way.split()} - {"of"}


def test_namesakes_are_told_apart_by_their_epithets(world: MiniWorld) -> None:
    for part in world.worlds.values():
        named: dict[str, list[Entity]] = {}
        for each in part.entities:
            named.setdefault(each.name, []).append(each)
        shared = [pair for pair in named.values() if len(pair) > 1]
        assert 0.08 < 2 * len(shared) / len(part.entities) < 0.2
        for one, other in shared:
            assert one.has_namesake and other.has_namesake and one.kind == other.kind
            assert one.title != other.title and one.mention != other.mention
    question = next(q for q in world.questions["train"] if len(q.golden_answers) > 1)
    name, mention, before = question.golden_answers
    assert mention == f"{name} the {before.removesuffix(' ' + name)}"


def test_a_search_needs_the_words_of_the_passage(world: MiniWorld) -> None:
    ids = {row["contents"]: place for place, row in enumerate(world.corpus)}
    vectors = encode([row["contents"] for row in world.corpus])
    part = world.worlds["train"]

    def found(queries: list[str]) -> list[int]:
        return (encode(queries) @ vectors.T).argmax(axis=1).tolist()

    facts = [(e, relation) for e in part.entities for relation in part.facts[e]]
    gold = [ids[part.contents(e, relation.page)] for e, relation in facts]
    asked = found([f"the {relation.question_phrases[0]} of {e.mention}" for e, relation in facts])
    stated = found([f"{part.phrases[e][relation]} {e.mention}" for e, relation in facts])
    assert sum(a == b for a, b in zip(stated, gold, strict=True)) > 0.95 * len(gold)
    assert 0.3 * len(gold) < sum(a == b for a, b in zip(asked, gold, strict=True)) < 0.7 * len(gold)


def test_the_saved_encoder_gives_the_same_vectors(world: MiniWorld, tmp_path: Path) -> None:
    result = CliRunner().invoke(encoder_main, ["--out", str(tmp_path / "encoder")])
    assert result.exit_code == 0, result.output
    from retriever_server.models.encoder import Encoder

    texts = [row["contents"] for row in world.corpus[:50]] + ["Who is the mentor of Nobody?"]
    saved = Encoder(str(tmp_path / "encoder"))
    assert saved.dimension == encode(texts).shape[1]
    assert saved.encode_passages(texts) == pytest.approx(encode(texts), abs=1e-5)
    assert encoder_of(word_weights()).encode(texts, normalize_embeddings=True) == pytest.approx(
        encode(texts), abs=1e-5
    )


def test_questions_and_passages_have_the_stated_sizes(world: MiniWorld) -> None:
    assert len(world.corpus) == PAGES * sum(len(part.entities) for part in world.worlds.values())
    assert 780 <= len(world.corpus) <= 820
    words = [len(row["contents"].split()) for row in world.corpus]
    assert min(words) >= 15 and max(words) <= 50
    hops = {split: [question.hops for question in world.questions[split]] for split in world.questions}
    assert sorted(hops["train"]) == [2] * 120 + [3] * 80
    assert sorted(hops["validation"]) == sorted(hops["test"]) == sorted([*HOPS] * 30)


def test_rows_have_the_form_of_the_real_data(folder: Path) -> None:
    passages = [json.loads(line) for line in (folder / "corpus.jsonl").read_text().splitlines()]
    for row in passages:
        assert list(row) == ["id", "title", "text", "contents"]
        assert row["contents"] == f"{row['title']}\n{row['text']}"
    ids = [question.id for name in FILES - {"corpus.jsonl"} for question in read_questions(folder / name)]
    assert len(ids) == len(set(ids)) == 380
    assert all(len(name.split("__")[1].split("_")) == int(name[0]) for name in ids)


def test_keys_are_those_of_musique(folder: Path, shared_rows: Path) -> None:
    def first(path: Path) -> dict:
        return json.loads(path.open().readline())

    ours, real = first(folder / "test.questions.jsonl"), first(shared_rows / "musique.questions.jsonl")
    assert ours.keys() == real.keys()
    assert real["metadata"].keys() - ours["metadata"].keys() == {"context_ids", "dev_index"}
    step, real_step = (row["metadata"]["question_decomposition"][0] for row in (ours, real))
    assert step.keys() == real_step.keys()
    assert first(folder / "corpus.jsonl").keys() == first(shared_rows / "musique.corpus.jsonl").keys()


def test_chains_are_different_and_never_turn_back() -> None:
    world = practice_world(0)
    chains = ask(random.Random(0), world, hops=4, count=100)
    assert len({(chain.start, chain.path) for chain in chains}) == 100
    assert all(len({e.name for e in (chain.start, *chain.entities)}) == 5 for chain in chains)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--passages", "200"], "the validation world would have 15 entities"),
        (["--passages", "100000"], "the train world would have 30000 entities"),
        (["--passages", "600", "--test", "5000"], "raise --passages"),
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
    options = ["--out", str(tmp_path / "w"), "--passages", "600", "--train", "20", "--test", "5"]
    for _ in range(2):
        result = CliRunner().invoke(main, [*options, "--validation", "5", "--hops", "3,2"])
        assert result.exit_code == 0, result.output
        assert {path.name for path in (tmp_path / "w").iterdir()} == FILES
        assert "20 questions (2 hops: 12, 3 hops: 8)" in result.output
    assert [path.name for path in tmp_path.iterdir()] == ["w"]


def test_a_folder_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), filling(tmp_path / "new") as scratch:
        (scratch / "half").touch()
        raise KeyboardInterrupt
    assert not list(tmp_path.iterdir())
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match="cannot be written"), filling(tmp_path / "file" / "new"):
        pass
