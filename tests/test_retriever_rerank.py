"""Reranker: a tiny cross-encoder, made here, puts hits in the order of its scores, whatever the batch."""

from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import BertConfig, BertForSequenceClassification, PreTrainedTokenizerFast

from retriever_server.errors import RetrieverError
from retriever_server.models.reranker import Reranker

WORDS = [
    *("[PAD]", "[UNK]", "[CLS]", "[SEP]"),
    *("who", "wrote", "faust", "goethe", "a", "play", "of", "rome", "the", "river", "long"),
]
LONGEST = 32


def make_model(folder: Path, outputs: int = 1) -> Path:
    """A BERT of one layer with weights large enough that scores differ, and a tokenizer of a few words."""
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(WORDS),
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        max_position_embeddings=LONGEST,
        num_labels=outputs,
        initializer_range=0.5,
    )
    BertForSequenceClassification(config).save_pretrained(folder)
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
    )
    special = {name: f"[{name[:3].upper()}]" for name in ("pad_token", "unk_token", "cls_token", "sep_token")}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=LONGEST, **special).save_pretrained(
        folder
    )
    return folder


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("reranker"))


PASSAGES = ["rome", "goethe wrote faust", "a play", "the river of rome", "goethe wrote faust"]


def test_order_is_that_of_the_models_own_logits(model: Path) -> None:
    [(order, scores)] = Reranker(str(model), "cpu").rank(["who wrote faust"], [PASSAGES])
    tokenizer = PreTrainedTokenizerFast.from_pretrained(model)
    network = BertForSequenceClassification.from_pretrained(model).eval()
    with torch.no_grad():
        logits = [
            network(**tokenizer("who wrote faust", text, return_tensors="pt")).logits.item()
            for text in PASSAGES
        ]
    expected = np.argsort(-np.round(logits, 4), kind="stable")
    assert order.tolist() == expected.tolist()
    assert np.allclose(scores, [logits[i] for i in expected], atol=1e-4)


def test_equal_passages_keep_the_order_in_which_they_were_found(model: Path) -> None:
    [(order, _)] = Reranker(str(model), "cpu").rank(["who wrote faust"], [PASSAGES])
    places = order.tolist()
    assert sorted(places) == [0, 1, 2, 3, 4] and places.index(4) == places.index(1) + 1


def test_queries_share_a_batch_and_each_gets_its_own_passages(model: Path) -> None:
    reranker = Reranker(str(model), "cpu", batch_size=4)
    queries, passages = ["who wrote faust", "rome", "a river"], [PASSAGES, [], PASSAGES[:2]]
    together = reranker.rank(queries, passages)
    for (order, scores), query, own in zip(together, queries, passages, strict=True):
        [(alone, alone_scores)] = reranker.rank([query], [own])
        assert order.tolist() == alone.tolist()
        assert np.allclose(scores, alone_scores, atol=2e-4)
    assert [len(order) for order, _ in together] == [5, 0, 2]
    assert reranker.rank([], []) == []


def test_a_passage_longer_than_the_model_reads_is_cut(model: Path) -> None:
    [(order, scores)] = Reranker(str(model), "cpu").rank(["who"], [["long " * 500, "rome"]])
    assert len(order) == 2 and np.isfinite(scores).all()


def test_what_is_no_reranker_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RetrieverError, match="cannot load the reranker"):
        Reranker(str(tmp_path))
    make_model(tmp_path, outputs=3)
    with pytest.raises(RetrieverError, match="has 3 outputs"):
        Reranker(str(tmp_path), "cpu")
