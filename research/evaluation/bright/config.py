"""The configuration of a BRIGHT evaluation: research/config/eval_bright.yaml as typed objects. The keys are
documented there.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from research.episode.prompts import load_prompt
from research.episode.protocol import Protocol
from research.evaluation.bright.fusion import FUSIONS
from research.evaluation.config import (
    EngineConfig,
    Sampling,
    build,
    compose_file,
    keep_prompt,
    saying_faults,
    training_of,
    values_of,
)
from research.evaluation.service import Service
from research.evaluation.values import check_bright
from research.values import check_protocol

MODES = ("replace", "concatenate", "fuse")
LEXICAL = ("bm25", "bm25_query_weighted")
DEFAULT_ENCODER = "minilm"
ORIGINAL = "original"


@dataclass(frozen=True)
class RetrieverSettings:
    """What is searched, and how; times in seconds."""

    kind: str
    k1: float
    b: float
    options: tuple[str, ...]
    top_k: int
    batch: int
    in_flight: int
    timeout: float
    deadline: float

    def __post_init__(self) -> None:
        if self.name not in (*LEXICAL, "dense", "hybrid") or (self.name == "dense" and not self.encoder):
            raise ValueError(f"kind is {self.kind!r}; there are: {', '.join(LEXICAL)}, dense:ENCODER, hybrid")

    @property
    def name(self) -> str:
        """The kind without its encoder."""
        return self.kind.partition(":")[0]

    @property
    def encoder(self) -> str:
        """That of dense and hybrid kinds; "" where none is named."""
        return self.kind.partition(":")[2]

    def service(self, corpus: Path, excluded: int) -> Service:
        """The retrieval service over a corpus of which a question excludes `excluded` passages at most."""
        options = [] if self.name == "dense" else [f"k1={self.k1}", f"b={self.b}"]
        if self.name == "hybrid":  # excluded passages have ranks in its lists, too
            options.append(f"depth={self.top_k + excluded}")
        kind = "flat" if self.name == "dense" else self.name
        return Service(corpus, self.encoder or DEFAULT_ENCODER, kind, (*options, *self.options))


@dataclass(frozen=True)
class Rewriting:
    """How a model is asked; `tokens` bounds a text, `samples` is their number for each question."""

    prompt: str
    think: bool | None
    tokens: int
    samples: int

    @property
    def thinks(self) -> bool:
        """Whether only what stands in the answer tags is the text."""
        return self.prompt.endswith("_think") if self.think is None else self.think


@dataclass(frozen=True)
class BrightConfig:
    """One evaluation; see research/config/eval_bright.yaml for each key."""

    tasks: tuple[str, ...]
    data: str | None
    revision: str | None
    long: bool
    queries: str | None
    field: str | None
    allow_missing: bool
    mode: str
    weight: int
    fusion: str
    rrf_k: int
    protocol: Protocol
    retriever: RetrieverSettings
    rewriting: Rewriting
    sampling: Sampling
    engine: EngineConfig
    concurrency: int
    question_timeout: float

    def __post_init__(self) -> None:
        for key, value, known in (("mode", self.mode, MODES), ("fusion", self.fusion, FUSIONS)):
            if value not in known:
                raise ValueError(f"{key} is {value!r}; there are: {', '.join(known)}")
        if (self.queries is None) == (self.engine.model is None):
            raise ValueError("give either --queries or --model")
        if self.queries == ORIGINAL and self.mode != "replace":
            raise ValueError(f"mode={self.mode} wants other texts beside the questions: a file or a model")
        if self.mode == "concatenate" and self.weight > 1 and self.retriever.name not in LEXICAL:
            raise ValueError("weight repeats words, which says nothing to an encoder: take mode=fuse")
        if len(set(self.tasks)) < len(self.tasks):
            raise ValueError("tasks must be named, each once")


SECTIONS = {
    "protocol": Protocol,
    "retriever": RetrieverSettings,
    "rewriting": Rewriting,
    "sampling": Sampling,
    "engine": EngineConfig,
}


def compose_config(words: list[str], model: str | None) -> DictConfig:
    """The resolved configuration of key=value words. If `model` is the policy of a training run, it is asked
    by the prompt and protocol that it was trained with. Raises EvaluationError.
    """
    config = compose_file("eval_bright", words, _of_training(model))
    keep_prompt(config.rewriting)
    read_config(config)
    return config


def read_config(config: DictConfig) -> BrightConfig:
    """The configuration as objects. Raises EvaluationError naming what is unknown, missing or meaningless."""
    values: dict[str, Any] = OmegaConf.to_container(config, resolve=True)  # type: ignore[assignment]
    with saying_faults():
        check_bright(values)
    values["retriever"]["options"] = tuple(values["retriever"]["options"])
    for key, section in SECTIONS.items():
        values[key] = build(section, values.get(key), key)
    values["tasks"] = tuple(values["tasks"])
    read: BrightConfig = build(BrightConfig, values, "configuration")
    with saying_faults():
        check_protocol(read.protocol)
        load_prompt(read.rewriting.prompt)
    return read


def _of_training(model: str | None) -> dict[str, Any]:
    trained = training_of(model)
    if trained is None:
        return {}
    kept = {
        key: value for key, value in values_of(trained).items() if key.startswith(("protocol.", "engine."))
    }
    kept["rewriting.prompt"] = trained.research.prompt
    if "rewriting" in trained.research:  # a search agent's, too, can be asked for texts
        kept["rewriting.think"] = trained.research.rewriting.think
        kept["rewriting.tokens"] = trained.data.max_response_length
    return kept
