"""Reranker: a tiny cross-encoder, made here, puts hits in the order of its scores, whatever the batch."""

from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import BertConfig, BertForSequenceClassification, PreTrainedTokenizerFast

from retriever_server.errors import RetrieverError
from retriever_server.models.reranker import Reranker
from retriever_server.serving.service import Hit

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


def hits(*contents: str) -> list[Hit]:
    return [Hit(str(n), text, 1.0 - n / 100) for n, text in enumerate(contents)]


FOUND = hits("rome", "goethe wrote faust", "a play", "the river of rome", "goethe wrote faust")


def test_order_is_that_of_the_models_own_logits(model: Path) -> None:
    [best] = Reranker(str(model), "cpu").rerank(["who wrote faust"], [FOUND], 3)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(model)
    network = BertForSequenceClassification.from_pretrained(model).eval()
    with torch.no_grad():
        logits = [
            network(**tokenizer("who wrote faust", hit.contents, return_tensors="pt")).logits.item()
            for hit in FOUND
        ]
    expected = np.argsort(-np.round(logits, 4), kind="stable")[:3]
    assert [hit.id for hit in best] == [FOUND[i].id for i in expected]
    assert np.allclose([hit.score for hit in best], [logits[i] for i in expected], atol=1e-4)


def test_equal_passages_keep_the_order_in_which_they_were_found(model: Path) -> None:
    [best] = Reranker(str(model), "cpu").rerank(["who wrote faust"], [FOUND], 5)
    ids = [hit.id for hit in best]
    assert sorted(ids) == ["0", "1", "2", "3", "4"] and ids.index("4") == ids.index("1") + 1


def test_queries_share_a_batch_and_each_gets_its_own_hits(model: Path) -> None:
    reranker = Reranker(str(model), "cpu", batch_size=4)
    queries, found = ["who wrote faust", "rome", "a river"], [FOUND, [], FOUND[:2]]
    together = reranker.rerank(queries, found, 2)
    alone = [reranker.rerank([query], [own], 2)[0] for query, own in zip(queries, found, strict=True)]
    for best, own in zip(together, alone, strict=True):
        assert [hit.id for hit in best] == [hit.id for hit in own]
        assert np.allclose([hit.score for hit in best], [hit.score for hit in own], atol=2e-4)
    assert [len(best) for best in together] == [2, 0, 2]
    assert reranker.rerank([], [], 2) == []


def test_a_passage_longer_than_the_model_reads_is_cut(model: Path) -> None:
    [best] = Reranker(str(model), "cpu").rerank(["who"], [hits("long " * 500, "rome")], 2)
    assert len(best) == 2 and np.isfinite([hit.score for hit in best]).all()


def test_what_is_no_reranker_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RetrieverError, match="cannot load the reranker"):
        Reranker(str(tmp_path))
    make_model(tmp_path, outputs=3)
    with pytest.raises(RetrieverError, match="has 3 outputs"):
        Reranker(str(tmp_path), "cpu")
