"""The mini rewriting world: the same bytes from the same seed, no combination in two splits, faults as
documented, and a cold start that transformers can load.
"""

import itertools
from collections import Counter
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from transformers import AutoModelForCausalLM, AutoTokenizer, Qwen2Tokenizer

from research.datasets.mini.policy import tokenised
from research.datasets.mini_rewriting import demonstrations as mini_rewriting_demonstrations
from research.datasets.mini_rewriting import encoder as mini_rewriting_encoder
from research.datasets.mini_rewriting import policy as mini_rewriting_policy
from research.datasets.mini_rewriting.demonstrations import CLEAN, FAULTS, rewriting_demonstrations
from research.datasets.mini_rewriting.language import (
    CONCEPTS_PER_FIELD,
    FIELDS,
    SCHOOLS,
    concepts,
    concepts_of,
)
from research.datasets.mini_rewriting.policy import rewriting_tokenizer
from research.datasets.mini_rewriting.world import (
    SOURCES,
    MiniRewritingWorld,
    Topic,
    build_rewriting_world,
    main,
    pool_of_concepts,
    right_rewriting,
)
from research.datasets.rewriting_tasks import RewritingTask, read_tasks
from retriever_server.corpus import Corpus, scan_corpus, write_corpus
from retriever_server.indexes import IndexSources, Queries, Settings
from retriever_server.indexes.analysis import Analyzer
from retriever_server.indexes.bm25 import Bm25Index
from retriever_server.indexes.options import Bm25Options

SIZES = {"passages": 4000, "train": 300, "validation": 20, "test": 40}
FILES = {"corpus.jsonl", *(f"{split}.tasks.jsonl" for split in ("train", "validation", "test"))}


@pytest.fixture(scope="module")
def world() -> MiniRewritingWorld:
    return build_rewriting_world(seed=0, **SIZES)


@pytest.fixture(scope="module")
def folder(world: MiniRewritingWorld, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("world") / "files"
    world.write(path)
    return path


@pytest.fixture(scope="module")
def tokenizer() -> Qwen2Tokenizer:
    return rewriting_tokenizer()


def everything(world: MiniRewritingWorld) -> list[tuple[str, Topic, RewritingTask]]:
    return [
        (split, topic, task)
        for split, topics in world.topics.items()
        for topic, task in zip(topics, world.tasks[split], strict=True)
    ]


def test_same_seed_same_bytes(folder: Path, tmp_path: Path) -> None:
    build_rewriting_world(seed=0, **SIZES).write(tmp_path / "again")
    build_rewriting_world(seed=1, **SIZES).write(tmp_path / "other")
    for name in FILES:
        assert (folder / name).read_bytes() == (tmp_path / "again" / name).read_bytes()
        assert (folder / name).read_bytes() != (tmp_path / "other" / name).read_bytes()


def test_files_hold_the_tasks(world: MiniRewritingWorld, folder: Path) -> None:
    assert {path.name for path in folder.iterdir()} == FILES
    for split, tasks in world.tasks.items():
        assert read_tasks(folder / f"{split}.tasks.jsonl") == tasks
    assert len(world.corpus) == 4000 and len({row["id"] for row in world.corpus}) == 4000
    counts = {split: [task.source for task in tasks] for split, tasks in world.tasks.items()}
    assert counts["train"].count("two_concepts") == 180 and counts["train"].count("three_concepts") == 120
    assert all(
        counts[split].count(s) == n for split, n in (("validation", 20), ("test", 40)) for s in SOURCES
    )


def test_relevant_is_what_names_all_concepts_and_nothing_else(world: MiniRewritingWorld) -> None:
    texts = {row["id"]: row["contents"] for row in world.corpus}
    for _, topic, task in everything(world)[::4]:
        named = {name for name, text in texts.items() if all(c.right_term in text for c in topic.concepts)}
        assert set(task.gold_ids) == named and named and not set(task.excluded_ids) & named
        assert task.positives == tuple(texts[name] for name in task.gold_ids)
        assert [wording for c in topic.concepts for wording in c.wordings if wording in task.question]
        assert not [term for c in topic.concepts for term in map(c.term, SCHOOLS) if term in task.question]


def test_splits_share_no_combination(world: MiniRewritingWorld) -> None:
    seen: dict[frozenset, str] = {}
    for split, topic, _ in everything(world):
        assert pool_of_concepts(topic.concepts) == split
        assert frozenset(topic.concepts) not in seen
        seen[frozenset(topic.concepts)] = split
        assert len({concept.field for concept in topic.concepts}) == 1
    shown = [each.concepts for each in islice(rewriting_demonstrations(seed=0), 500)]
    assert {pool_of_concepts(each) for each in shown} == {"practice"}


def test_unseen_concepts_occur_in_demonstrations_and_not_in_training(
    world: MiniRewritingWorld,
) -> None:
    for split, topic, _ in everything(world):
        reserved = {concept.reserved for concept in topic.concepts}
        assert reserved == {topic.source == "unseen_concepts"} and (split != "train" or reserved == {False})
    shown = {concept for each in islice(rewriting_demonstrations(seed=0), 1500) for concept in each.concepts}
    assert shown == set(concepts())


def test_every_name_belongs_to_one_concept() -> None:
    assert len(concepts()) == len(FIELDS) * CONCEPTS_PER_FIELD
    assert all(len(concepts_of(field)) == CONCEPTS_PER_FIELD for field in FIELDS)
    wordings = [wording for concept in concepts() for wording in concept.wordings]
    # BM25 compares stems.
    terms = [Analyzer().terms(c.term(school))[0] for c in concepts() for school in SCHOOLS]
    assert len(set(wordings)) == len(wordings) and len(set(terms)) == len(terms)
    right = [field for field in FIELDS if field.believed == field.school]
    assert len(right) == 2
    assert sorted(Counter(field.school for field in FIELDS).values()) == [2, 2, 2]


def test_right_terms_find_what_the_question_misses(
    world: MiniRewritingWorld, folder: Path, tmp_path: Path
) -> None:
    write_corpus(folder / "corpus.jsonl", tmp_path, scan_corpus(folder / "corpus.jsonl"))
    Bm25Index.build(IndexSources(Corpus(tmp_path), None, Bm25Options()), tmp_path)
    index = Bm25Index(tmp_path, Settings(Bm25Options()))

    def found(queries: list[str]) -> float:
        """Mean share of the first relevant places that relevant passages take."""
        _, rows = index.search(Queries(queries), 10)
        ids = [[world.corpus[row]["id"] for row in each if row >= 0] for each in rows]
        gold = [task.gold_ids for task in world.tasks["test"]]
        return float(
            np.mean([len(set(a[: len(b)]) & set(b)) / len(b) for a, b in zip(ids, gold, strict=True)])
        )

    topics = world.topics["test"]
    assert found([right_rewriting(topic.concepts) for topic in topics]) > 0.9
    assert found([topic.question for topic in topics]) < 0.3
    wrong = [" ".join(c.term(c.field.believed) for c in topic.concepts) for topic in topics]
    assert 0.2 < found(wrong) < 0.5  # the belief is right in two fields of six


def test_demonstrations_fail_as_documented() -> None:
    several = list(islice(rewriting_demonstrations(seed=1), 3000))
    fates = [fate for each in several for fate in each.shown]
    assert fates.count("copied") / len(fates) == pytest.approx(FAULTS.copied, abs=0.02)
    assert fates.count("dropped") / len(fates) == pytest.approx(FAULTS.dropped, abs=0.02)
    believed = [each.school == each.concepts[0].field.believed for each in several]
    assert sum(believed) / len(believed) == pytest.approx(FAULTS.belief, abs=0.03)
    right = sum(each.rewriting == each.right for each in several) / len(several)
    assert 0.08 < right < 0.2
    assert all(
        each.rewriting == each.right for each in islice(rewriting_demonstrations(seed=1, rates=CLEAN), 200)
    )


def test_tokens_are_wordings_roots_and_endings(tokenizer: Qwen2Tokenizer) -> None:
    for concept, school in itertools.product(concepts(), SCHOOLS):
        term = f" {concept.term(school)}"
        assert tokenizer.tokenize(term) == tokenizer.tokenize(f" {concept.root}") + [school]
        assert tokenizer.decode(tokenizer.encode(term)) == term
    single = [f" {wording}" for concept in concepts() for wording in concept.wordings]
    assert [text for text in single if len(tokenizer.encode(text)) != 1] == []
    for each in islice(rewriting_demonstrations(seed=5), 300):
        for text in (each.question, each.rewriting):
            assert tokenizer.decode(tokenizer.encode(text)) == text
        assert len(tokenised(tokenizer, each)[0]) < 40
    assert len(tokenizer) < 1500


def test_a_short_cold_start_saves_a_folder_that_loads(tokenizer: Qwen2Tokenizer, tmp_path: Path) -> None:
    out = tmp_path / "policy"
    result = CliRunner().invoke(mini_rewriting_policy.main, ["--out", str(out), "--steps", "4"])
    assert result.exit_code == 0 and f"saved in {out}" in result.output
    model, loaded = AutoModelForCausalLM.from_pretrained(out), AutoTokenizer.from_pretrained(out)
    assert isinstance(loaded, Qwen2Tokenizer) and model.config.model_type == "qwen2"
    assert model.generation_config.eos_token_id == loaded.eos_token_id
    for each in islice(rewriting_demonstrations(seed=4), 50):
        assert tokenised(loaded, each) == tokenised(tokenizer, each)
    again = CliRunner().invoke(mini_rewriting_policy.main, ["--out", str(out)])
    assert again.exit_code == 1 and "exists already" in again.output


def test_encoder_tells_terms_apart(world: MiniRewritingWorld, tmp_path: Path) -> None:
    from sentence_transformers import SentenceTransformer

    result = CliRunner().invoke(mini_rewriting_encoder.main, ["--out", str(tmp_path / "encoder")])
    assert result.exit_code == 0, result.output
    encoder = SentenceTransformer(str(tmp_path / "encoder"), device="cpu")
    topics, tasks = world.topics["test"], world.tasks["test"]

    def nearness(queries: list[str]) -> float:
        vectors = encoder.encode([*queries, *(t.positives[0] for t in tasks)], normalize_embeddings=True)
        return float((vectors[: len(tasks)] * vectors[len(tasks) :]).sum(1).mean())

    wrong = [" ".join(c.term(c.field.believed) for c in topic.concepts) for topic in topics]
    right = nearness([right_rewriting(topic.concepts) for topic in topics])
    assert right > 1.5 * nearness(wrong) and right > 0.2 + nearness([topic.question for topic in topics])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--passages", "100"], "passages, and --passages is 100"),
        (["--train", "5000"], "train cannot have 3000 questions of two_concepts"),
        (["--test", "500"], "test cannot have 500 questions"),
    ],
)
def test_mistakes_end_in_one_line(arguments: list[str], message: str, tmp_path: Path) -> None:
    result = CliRunner().invoke(main, ["--out", str(tmp_path / "w"), *arguments])
    assert result.exit_code == 1 and message in result.output and "Traceback" not in result.output
    assert not list(tmp_path.iterdir())


def test_showing_command() -> None:
    result = CliRunner().invoke(mini_rewriting_demonstrations.main, ["--count", "2"])
    assert result.exit_code == 0 and result.output.count("(right: ") == 2
