"""Rewards of rewritten queries: by hand on made-up rankings and vectors, with failures, on a served index."""

import asyncio
import json
from dataclasses import replace

import numpy as np
import pytest
import pytrec_eval
from hypothesis import given
from hypothesis import strategies as st
from retriever_process import ROWS, serving

from research.datasets.rewriting_tasks import RewritingTask
from research.episode.tools import SearchError
from research.episode.trajectory import Passage
from research.metrics.ranking import ndcg, recall
from research.rewards.rewriting import (
    RewritingConfig,
    ScoringError,
    Tools,
    make_text_reward,
    once,
    reward_weights,
)
from research.rewards.rewriting.encoder import MINILM, BatchingEncoder, EncoderError, TextEncoder
from research.rewards.rewriting.score import TextScorer
from research.tools.search import RetrieverClient, RetrieverConfig
from retriever_server.building.build import BuildOptions, create_index

SETTINGS = {
    "think": False,
    "metric": "ndcg",
    "k": 10,
    "encoder": MINILM,
    "encoder_device": "cpu",
    "encoder_batch": 4,
    "free_tokens": 20,
    "length_penalty": 0.01,
    "empty_penalty": 0.5,
}
TASK = RewritingTask("1", "the question", ("first", "second"), ("a", "d"), ("x",))
RANKINGS = {"the question": ["b", "c", "a"], "good": ["a", "d"], "bad": ["b"]}
# By hand: "a" third of two wanted, and both first.
BEFORE = 0.5 / (1 + 1 / np.log2(3))
VECTORS = {
    "the question": [1.0, 0.0],
    "first": [0.0, 1.0],
    "second": [0.6, 0.8],
    "good": [0.0, 1.0],
    "bad": [1.0, 0.0],
}


class MadeUpTools(Tools):
    """Finds and encodes what stands above; remembers what it was asked."""

    def __init__(self, **changes):
        super().__init__(RewritingConfig(**{**SETTINGS, **changes}), self.found)
        self.searched, self.encoded = [], []

    async def found(self, query, count, exclude_ids):
        self.searched.append((query, count, exclude_ids))
        if query == "gone":
            raise SearchError("nobody there")
        return [Passage(name, name) for name in RANKINGS.get(query, [])][:count]

    def load_encoder(self):
        pass

    async def encode(self, texts):
        self.encoded += texts
        if "gone" in texts:
            raise ScoringError("the encoder failed")
        return np.array([VECTORS[text] for text in texts])


def score(tools, *texts, weights=None, tokens=5, task=TASK):
    scorer = TextScorer(weights or {"retrieval_gain": 1.0}, tools)

    async def all_of_them():
        return await asyncio.gather(*(scorer.score(task, text, tokens) for text in texts))

    return asyncio.run(all_of_them())


def test_ndcg_and_recall_by_hand():
    assert ndcg(["b", "a"], {"a"}, 10) == pytest.approx(1 / np.log2(3))
    assert ndcg(RANKINGS["the question"], TASK.gold_ids, 10) == pytest.approx(BEFORE)
    assert ndcg(["a", "d"], {"a", "d", "e"}, 2) == 1.0
    assert ndcg(["a"], (), 10) == recall(["a"], (), 10) == 0.0
    assert recall(["a", "b", "d"], {"a", "d"}, 2) == 0.5


NAMES = st.sampled_from([f"d{n}" for n in range(15)])


@given(st.lists(NAMES, max_size=30), st.lists(NAMES, max_size=12), st.integers(1, 12))
def test_ids_count_once_however_often_they_are_given(ranked, gold, k):
    once, wanted = list(dict.fromkeys(ranked)), set(gold)
    for measure in (ndcg, recall):
        assert measure(ranked, gold, k) == measure(once, wanted, k) <= 1 + 1e-9
    assert ndcg(gold + ranked, gold + gold, 12) == pytest.approx(float(bool(gold)))


def test_a_task_and_a_server_that_repeat_ids_earn_what_they_would_without(monkeypatch):
    twice = replace(TASK, gold_ids=("a", "d", "a", "d"), positives=("first", "first", "second"))
    monkeypatch.setitem(RANKINGS, "repeating", ["a", "a", "d", "a"])
    both = {"retrieval_gain": 1.0, "embedding_gain": 1.0}
    for changes in ({}, {"metric": "recall", "k": 2}):
        plain, repeated = (
            score(MadeUpTools(**changes), "good", weights=both, task=task) for task in (TASK, twice)
        )
        assert plain == repeated
    (good, repeating) = score(MadeUpTools(), "good", "repeating", task=twice)
    assert repeating == good and repeating.found == ("a", "d") and repeating.metrics["ndcg_at_10"] == 1.0


@given(st.permutations([f"d{n}" for n in range(12)]), st.sets(st.integers(0, 15), min_size=1))
def test_ndcg_and_recall_equal_trec_evals(ranked, gold):
    wanted = {f"d{n}": 1 for n in gold}
    evaluator = pytrec_eval.RelevanceEvaluator({"q": wanted}, {"ndcg_cut.10", "recall.10"})
    run = {name: float(len(ranked) - rank) for rank, name in enumerate(ranked)}
    official = evaluator.evaluate({"q": run})["q"]
    assert ndcg(ranked, wanted, 10) == pytest.approx(official["ndcg_cut_10"])
    assert recall(ranked, wanted, 10) == pytest.approx(official["recall_10"])


def test_retrieval_gain_is_what_the_text_brings():
    good, bad = score(MadeUpTools(), "good", "bad")
    assert good.reward.score == pytest.approx(1 - BEFORE) and "0.31 -> 1.00" in good.reward.reason
    assert bad.reward.score == pytest.approx(-BEFORE)
    assert good.metrics == pytest.approx(
        {
            "ndcg_at_10": 1.0,
            "recall_at_10": 1.0,
            "original_ndcg": BEFORE,
            "gain": 1 - BEFORE,
            "empty": 0.0,
            "scoring_failed": 0.0,
        }
    )
    assert (good.found, good.original_found) == (("a", "d"), ("b", "c", "a"))


def test_metric_and_k_are_configuration():
    (found,) = score(MadeUpTools(metric="recall", k=1), "good")
    assert found.reward.score == 0.5


def test_the_question_is_searched_and_encoded_once():
    tools = MadeUpTools()
    score(tools, "good", "bad", "good", weights={"retrieval_gain": 1.0, "embedding_gain": 1.0})
    assert sum(query == "the question" for query, _, _ in tools.searched) == 1
    assert all(excluded == {"x"} for _, _, excluded in tools.searched)
    assert tools.encoded.count("the question") == tools.encoded.count("first") == 1


def test_embedding_gain_by_hand():
    """Cosines: of the question 0 and .6, of the text 1 and .8; ten times the mean difference."""
    good, bad = score(MadeUpTools(), "good", "bad", weights={"embedding_gain": 1.0})
    assert good.reward.score == pytest.approx(10 * ((1 - 0) + (0.8 - 0.6)) / 2)
    assert bad.reward.score == pytest.approx(0.0)


def test_mixes_are_added_up_by_weight():
    weights = {"retrieval_gain": 2.0, "embedding_gain": 0.1}
    (found,) = score(MadeUpTools(), "good", weights=weights)
    assert found.reward.score == pytest.approx(2 * (1 - BEFORE) + 0.1 * 6.0)
    assert "retrieval_gain" in found.reward.reason and "embedding_gain" in found.reward.reason


def test_empty_and_long_texts_have_terms_of_their_own():
    (empty,) = score(MadeUpTools(), "")
    assert (empty.reward.score, empty.reward.reason) == (-0.5, "empty text")
    assert empty.metrics["empty"] == 1.0 and empty.metrics["scoring_failed"] == 0.0
    (long,) = score(MadeUpTools(), "good", tokens=50)
    assert long.reward.score == pytest.approx(1 - BEFORE - 0.3) and "30 tokens too long" in long.reward.reason


@pytest.mark.parametrize("weights", [{"retrieval_gain": 1.0}, {"embedding_gain": 1.0}])
def test_a_failure_is_an_error_of_one_text_with_its_reason(weights):
    failed, good = score(MadeUpTools(), "gone", "good", weights=weights)
    assert failed.reward.score == 0.0 and failed.reward.reason.startswith("not scored: ")
    assert failed.metrics["scoring_failed"] == 1.0 and good.metrics["scoring_failed"] == 0.0
    assert good.reward.score > 0


@pytest.mark.parametrize(
    "failure", [ScoringError("gone"), RuntimeError("out of memory"), asyncio.CancelledError()]
)
def test_what_is_made_once_is_made_again_after_any_failure(failure):
    known, made = {}, []

    async def make():
        made.append(1)
        await asyncio.sleep(0)
        if len(made) == 1:
            raise failure
        return "value"

    async def asked_twice_at_a_time():
        first = await asyncio.gather(*(once(known, "key", make) for _ in range(2)), return_exceptions=True)
        return first, await asyncio.gather(*(once(known, "key", make) for _ in range(2)))

    first, second = asyncio.run(asked_twice_at_a_time())
    assert [type(error) for error in first] == [type(failure)] * 2
    assert second == ["value"] * 2 and len(made) == 2


def test_a_question_that_could_not_be_searched_is_tried_again():
    tools = MadeUpTools()
    scorer = TextScorer({"retrieval_gain": 1.0}, tools)
    lost = RewritingTask("2", "gone", (), ("a",))

    async def twice():
        return [await scorer.score(lost, "good", 1) for _ in range(2)]

    assert [each.metrics["scoring_failed"] for each in asyncio.run(twice())] == [1.0, 1.0]
    assert sum(query == "gone" for query, _, _ in tools.searched) == 2


def test_names_and_weights_are_checked():
    assert reward_weights("embedding_gain") == {"embedding_gain": 1.0}
    assert reward_weights({"embedding_gain": 2, "retrieval_gain": 0}) == {"embedding_gain": 2.0}
    for wrong in (
        "exact_match",
        "research.rewards.exact_match:score",
        {"retrieval": 1.0},
        {"retrieval_gain": "much"},
        {"retrieval_gain": 0},
        {},
    ):
        with pytest.raises(ValueError, match="reward"):
            reward_weights(wrong)


@pytest.mark.parametrize(("name", "value"), [("metric", "map"), ("k", 0), ("length_penalty", -1.0)])
def test_wrong_settings_are_named(name, value):
    with pytest.raises(ValueError, match=f"research.rewriting.{name}"):
        RewritingConfig(**{**SETTINGS, name: value})


# ------------------------------------------------------------------------------------- a real encoder


@pytest.fixture(scope="module")
def encoder():
    return TextEncoder(MINILM, device="cpu", batch_size=3)


def test_short_texts_are_encoded_as_the_library_does(encoder):
    texts = ["a cat", "where does the sun go at night, and why", "x", "to sell a house"]
    theirs = encoder.model.encode(texts, normalize_embeddings=True)
    assert np.abs(encoder.encode(texts) - theirs).max() < 1e-5


def test_long_texts_are_the_mean_of_their_windows_by_length(encoder):
    """minilm reads 256 tokens, two of them special: 254 words of one token each fill a window."""
    first, second = " ".join(["cat"] * 254), " ".join(["sun"] * 100)
    windows = encoder.model.encode([first, second], normalize_embeddings=True)
    mean = (254 * windows[0] + 100 * windows[1]) / 354
    (whole,) = encoder.encode([f"{first} {second}"])
    assert np.abs(whole - mean / np.linalg.norm(mean)).max() < 1e-5
    assert float(whole @ windows[1]) > float(windows[0] @ windows[1]) + 0.01  # the end was not cut


def test_an_unknown_model_is_one_line(tmp_path):
    with pytest.raises(EncoderError, match="cannot load the encoder"):
        TextEncoder(str(tmp_path))


class FussyEncoder:
    """Fails on a batch that holds the text "bad"."""

    def __init__(self):
        self.batches = []

    def encode(self, texts):
        self.batches.append(list(texts))
        if "bad" in texts:
            raise EncoderError("bad text")
        return np.ones((len(texts), 2))


def test_texts_are_encoded_together_and_fail_alone():
    fussy = FussyEncoder()

    async def ask():
        encode = BatchingEncoder(fussy)
        return await asyncio.gather(
            *(encode([text]) for text in "abc"), encode(["bad"]), return_exceptions=True
        )

    *good, bad = asyncio.run(ask())
    assert all(each.shape == (1, 2) for each in good) and isinstance(bad, EncoderError)
    assert fussy.batches[0] == ["a", "b", "c", "bad"]


# --------------------------------------------------------------------------------------- a served index


def test_excluded_ids_on_a_served_index(tmp_path):
    corpus = tmp_path / "corpus.jsonl"

    corpus.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    create_index(BuildOptions(corpus=corpus, target=tmp_path / "index", encoder="minilm", kind="bm25"))
    # All eight bakers score the same, and the one that is wanted stands last in the corpus.
    free = RewritingTask("1", "who baked the bread", gold_ids=("56",))
    strict = replace(free, excluded_ids=tuple(str(n) for n in range(0, 56, 8)))
    with serving(tmp_path / "index") as (_, url):

        async def ask():
            client = RetrieverClient(RetrieverConfig(url=url))
            reward = make_text_reward("retrieval_gain", Tools(RewritingConfig(**SETTINGS), client))
            found = [await client("baker", 10), await client("baker", 3, frozenset(["8"]))]
            scores = [await reward(task, "baker") for task in (free, strict)]
            await client.close()
            return found, scores

        (all_bakers, few), (loose, clean) = asyncio.run(ask())
    assert {passage.id for passage in all_bakers} == {str(n) for n in range(0, 64, 8)}
    assert len(few) == 3 and "8" not in {passage.id for passage in few}
    assert 0 < loose.score < clean.score == 1.0
