"""The configuration of a BRIGHT evaluation: eval_bright.yaml as typed objects, with a rule for each value.

The keys are documented in research/config/eval_bright.yaml.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from omegaconf import DictConfig

from research import values as rules
from research.episode.prompts import load_prompt
from research.episode.protocol import Protocol
from research.evaluation.bright.fusion import FUSIONS
from research.evaluation.config import (
    EngineConfig,
    Sampling,
    compose_file,
    list_of_names,
    read_typed,
    trained_values,
    training_of,
)
from research.tools.service import Service
from research.values import ABOVE_0, SWITCH, TEXT, integer, or_null

MODES = ("replace", "concatenate", "fuse")
LEXICAL = ("bm25", "bm25_query_weighted")
DEFAULT_ENCODER = "minilm"
ORIGINAL = "original"


@dataclass(frozen=True)
class RetrieverSettings:
    """What is searched, and how; times in seconds."""

    kind: Annotated[str, TEXT]
    k1: Annotated[float, rules.AT_LEAST_0]
    b: Annotated[float, rules.FROM_0_TO_1]
    options: Annotated[
        tuple[str, ...], rules.list_of(rules.is_text, "a list like [lexical=bm25_query_weighted]")
    ]
    top_k: Annotated[int, integer(1, rules.SERVER_MAXIMUM)]
    in_flight: Annotated[int, integer(1)]
    timeout: Annotated[float, ABOVE_0]
    deadline: Annotated[float, ABOVE_0]

    def __post_init__(self) -> None:
        if self.name not in (*LEXICAL, "dense", "hybrid") or (self.name == "dense" and not self.encoder):
            raise ValueError(f"kind is {self.kind!r}; there are: {', '.join(LEXICAL)}, dense:ENCODER, hybrid")

    @property
    def name(self) -> str:
        """The kind without its encoder."""
        return self.kind.partition(":")[0]

    @property
    def encoder(self) -> str:
        """The encoder of dense and hybrid kinds; "" where none is named."""
        return self.kind.partition(":")[2]

    def service(self, corpus: Path, excluded: int) -> Service:
        """The retrieval service over a corpus; a question excludes at most `excluded` of its passages."""
        options = [] if self.name == "dense" else [f"k1={self.k1}", f"b={self.b}"]
        if self.name == "hybrid":  # excluded passages have ranks in its lists, too
            options.append(f"depth={self.top_k + excluded}")
        kind = "flat" if self.name == "dense" else self.name
        return Service(corpus, self.encoder or DEFAULT_ENCODER, kind, (*options, *self.options))


@dataclass(frozen=True)
class RewritingSettings:
    """How a model rewrites; `tokens` bounds a text, `samples` is their number per question."""

    prompt: Annotated[str, TEXT]
    think: Annotated[bool | None, or_null(SWITCH)]
    tokens: Annotated[int, integer(1)]
    samples: Annotated[int, integer(1)]

    @property
    def thinks(self) -> bool:
        """Whether the text is only what the answer tags contain."""
        return self.prompt.endswith("_think") if self.think is None else self.think


@dataclass(frozen=True)
class BrightConfig:
    """One evaluation; research/config/eval_bright.yaml documents each key."""

    tasks: Annotated[tuple[str, ...], list_of_names("biology")]
    data: Annotated[str | None, or_null(TEXT)]
    revision: Annotated[str | None, or_null(TEXT)]
    long: Annotated[bool, SWITCH]
    queries: Annotated[str | None, or_null(TEXT)]
    field: Annotated[str | None, or_null(TEXT)]
    allow_missing: Annotated[bool, SWITCH]
    mode: Annotated[str, TEXT]
    weight: Annotated[int, integer(1)]
    fusion: Annotated[str, TEXT]
    rrf_k: Annotated[int, integer(0)]
    protocol: Protocol
    retriever: RetrieverSettings
    rewriting: RewritingSettings
    sampling: Sampling
    engine: EngineConfig
    concurrency: Annotated[int, integer(1)]
    question_timeout: Annotated[float, ABOVE_0]

    def __post_init__(self) -> None:
        for key, value, known in (("mode", self.mode, MODES), ("fusion", self.fusion, FUSIONS)):
            if value not in known:
                raise ValueError(f"{key} is {value!r}; there are: {', '.join(known)}")
        if (self.queries is None) == (self.engine.model is None):
            raise ValueError("give either --queries or --model")
        if self.queries == ORIGINAL and self.mode != "replace":
            raise ValueError(f"mode={self.mode} needs other texts besides the questions: a file or a model")
        if self.mode == "concatenate" and self.weight > 1 and self.retriever.name not in LEXICAL:
            raise ValueError("weight repeats words, which tells an encoder nothing: take mode=fuse")
        if len(set(self.tasks)) < len(self.tasks):
            raise ValueError("tasks must be named, each once")
        rules.check_protocol(self.protocol)
        load_prompt(self.rewriting.prompt)


BRIGHT = rules.rules_of(BrightConfig) | rules.PROTOCOL


def compose_bright(overrides: list[str], model: str | None) -> DictConfig:
    """The resolved configuration with key=value overrides. Raises EvaluationError.

    If `model` is the policy of a training run, it is asked with the prompt and protocol of its training.
    """
    config = compose_file("eval_bright", overrides, _trained_values(model))
    read_bright_config(config)
    return config


def read_bright_config(config: DictConfig) -> BrightConfig:
    """See `read_typed`."""
    return read_typed(BrightConfig, config, BRIGHT)


def _trained_values(model: str | None) -> dict[str, Any]:
    if (trained := training_of(model)) is None:
        return {}
    values = trained_values(trained)
    kept = {key: value for key, value in values.items() if key.startswith(("protocol.", "engine."))}
    kept["rewriting.prompt"] = trained.research.prompt
    if "rewriting" in trained.research:  # a search agent can rewrite as well
        kept["rewriting.think"] = trained.research.rewriting.think
        kept["rewriting.tokens"] = trained.data.max_response_length
    return kept
