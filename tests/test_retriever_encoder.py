"""Encoders: OpenVINO gives torch's vectors, or is not used, which is said."""

from pathlib import Path

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Pooling, StaticEmbedding, Transformer
from tokenizers import Tokenizer, models
from transformers import Qwen2Config, Qwen2Model

from research.datasets.mini.tokenizer import train_tokenizer
from retriever_server.errors import RetrieverError
from retriever_server.models import compiled
from retriever_server.models.encoder import Encoder

TEXTS = [
    "who",
    "Where does the river Rhine begin?",
    "Zürich, 北京 and São Paulo: which has (by area) the most parks?",
    "The old town lies on a hill above the harbour. " * 9,
    "in which year was the company that bought the maker of the first mechanical calculator founded",
]


@pytest.fixture(scope="module")
def torchs() -> Encoder:
    return Encoder("minilm", backend="torch")


def most_distant(one: np.ndarray, other: np.ndarray) -> float:
    return float(1 - (one * other).sum(axis=1).min())


@pytest.mark.parametrize(("dtype", "most"), [("float32", 1e-5), ("float16", 1e-3), ("bfloat16", 1e-3)])
def test_openvino_gives_torchs_vectors_alone_and_in_batches(torchs: Encoder, dtype: str, most: float) -> None:
    encoder = Encoder("minilm", dtype=dtype, backend="openvino")
    assert encoder.backend == "openvino" and encoder.dimension == 384
    expected = torchs.encode_queries(TEXTS)
    assert most_distant(encoder.encode_queries(TEXTS), expected) < most
    assert most_distant(encoder.encode_passages(TEXTS), expected) < most
    alone = np.concatenate([encoder.encode_queries([text]) for text in TEXTS])
    assert most_distant(alone, expected) < most


@pytest.mark.parametrize("backend", ["torch", "openvino"])
def test_parts_give_each_text_its_vector(torchs: Encoder, backend: str) -> None:
    encoder = Encoder("minilm", query_prompt="query: ", backend=backend)
    texts = [f"{text} {number}" for number in range(14) for text in TEXTS]
    parts = list(encoder.encode_in_parts(texts))
    assert sorted(place for places, _ in parts for place in places) == list(range(len(texts)))
    found = np.empty((len(texts), 384), dtype=np.float32)
    for places, vectors in parts:
        found[places] = vectors
    assert most_distant(found, torchs.encode_queries([f"query: {text}" for text in texts])) < 1e-5
    assert np.allclose(np.linalg.norm(found, axis=1), 1, atol=1e-5)


def test_openvino_is_taken_for_transformers_on_the_cpu(tmp_path: Path) -> None:
    assert Encoder("minilm").backend == "openvino"
    tokenizer = Tokenizer(models.WordLevel({"[UNK]": 0, "rome": 1}, unk_token="[UNK]"))
    table = np.eye(2, dtype="f4")
    words = SentenceTransformer(modules=[StaticEmbedding(tokenizer, embedding_weights=table)], device="cpu")
    words.save(str(tmp_path / "words"))
    assert Encoder(str(tmp_path / "words")).backend == "torch"
    with pytest.raises(RetrieverError, match="computes transformers on the CPU, and this encoder is not one"):
        Encoder(str(tmp_path / "words"), backend="openvino")


def test_a_decoder_gives_torchs_vectors(tmp_path: Path) -> None:
    folder = save_decoder(tmp_path)
    expected = Encoder(str(folder), backend="torch").encode_queries(TEXTS)
    assert most_distant(Encoder(str(folder)).encode_queries(TEXTS), expected) < 1e-5


def save_decoder(directory: Path) -> Path:
    """An untrained Qwen2 that embeds a text by its last token."""
    tokenizer = train_tokenizer()
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = Qwen2Config(vocab_size=len(tokenizer), num_key_value_heads=1, **sizes)
    Qwen2Model(config).save_pretrained(directory / "qwen2")
    tokenizer.save_pretrained(directory / "qwen2")
    transformer = Transformer(str(directory / "qwen2"), max_seq_length=128)
    model = SentenceTransformer(modules=[transformer, Pooling(32, pooling_mode="lasttoken")], device="cpu")
    model.save(str(directory / "model"))
    return directory / "model"


def refuse(*arguments: object) -> None:
    raise RuntimeError("unknown operation\nand a long trace")


def zeros(model: SentenceTransformer, transformer: object, dtype: str) -> object:
    forward = transformer.forward

    def other(**features: torch.Tensor) -> object:
        output = forward(**features)
        output.last_hidden_state[:, 1:] = 0
        return output

    return other


@pytest.mark.parametrize(
    ("fault", "reason"),
    [(refuse, "OpenVINO cannot compute the encoder: unknown operation"), (zeros, "from torch's, more than")],
)
def test_what_openvino_computes_wrongly_torch_computes_and_it_is_said(
    torchs: Encoder,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    fault: object,
    reason: str,
) -> None:
    monkeypatch.setattr(compiled, "_compiled_forward", fault)
    encoder = Encoder("minilm")
    said = capsys.readouterr().err
    assert "computed by torch, which is slower" in said and reason in said and "trace" not in said
    assert encoder.backend == "torch"
    assert most_distant(encoder.encode_queries(TEXTS), torchs.encode_queries(TEXTS)) < 1e-5
    with pytest.raises(RetrieverError, match=reason):
        Encoder("minilm", backend="openvino")
