"""The configuration of an evaluation as typed objects, with a rule for each value.

The keys are documented in research/config/eval_multihop.yaml.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, is_dataclass
from pathlib import Path
from typing import Annotated, Any, TypeVar, get_type_hints

from click import ClickException
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from research import values as rules
from research.datasets.reference_prompts import PROMPTS, notice_to_keep, prompt_to_keep
from research.episode.loop import Limits
from research.episode.prompts import load_prompt
from research.episode.protocol import Protocol
from research.evaluation.methods import DOOR as METHODS
from research.judge import JudgeConfig
from research.overrides import as_hydra_word, composition_fault
from research.places import CONFIG_DIR
from research.tools.search import RetrieverConfig
from research.values import ABOVE_0, SHARE, TEXT, Rule, integer, or_null

Typed = TypeVar("Typed")


class EvaluationError(ClickException):
    """The evaluation cannot start or continue; the message is one line, with which a command ends."""


def _is_model(value: Any) -> bool:
    return rules.is_text(value) and (rules.is_url(value) or not value.startswith(("http://", "https://")))


def list_of_names(example: str) -> Rule:
    """Lists of at least one name."""
    wording = f"a list of at least one name, like [{example}]"
    return Rule(
        lambda value: isinstance(value, list) and bool(value) and all(map(rules.is_text, value)), wording
    )


MODEL = Rule(_is_model, "a model's folder or name, or an address like http://127.0.0.1:8000")


@dataclass(frozen=True)
class EngineConfig:
    """What samples; times in seconds, lengths in tokens. `model` is None where no model is needed."""

    model: Annotated[str, or_null(MODEL)]
    tokenizer: Annotated[str | None, or_null(TEXT)]
    dtype: Annotated[str, TEXT]
    max_model_len: Annotated[int | None, or_null(integer(1))]
    tensor_parallel_size: Annotated[int, integer(1)]
    gpu_memory_utilization: Annotated[float, SHARE]
    api_key_variable: Annotated[str | None, or_null(rules.ANY_TEXT)]
    served_name: Annotated[str | None, or_null(TEXT)]
    timeout: Annotated[float, ABOVE_0]
    deadline: Annotated[float, ABOVE_0]

    @property
    def is_url(self) -> bool:
        """Whether a server samples, not vLLM in this process."""
        return self.model.startswith(("http://", "https://"))


@dataclass(frozen=True)
class Sampling:
    """`temperature` 0 is greedy, `top_k` 0 takes all tokens, `repetition_penalty` 1 is none."""

    temperature: Annotated[float, rules.AT_LEAST_0]
    top_p: Annotated[float, SHARE]
    seed: Annotated[int, integer(0)]
    top_k: Annotated[int, integer(0)] = 0
    repetition_penalty: Annotated[float, ABOVE_0] = 1.0


@dataclass(frozen=True)
class Baselines:
    """For the methods without a search loop: sampled tokens per call, and how often they retrieve."""

    answer_tokens: Annotated[int, integer(1)]
    ircot_steps: Annotated[int, integer(1)]
    iter_retgen_rounds: Annotated[int, integer(1)]


@dataclass(frozen=True)
class EvaluationConfig:
    """One evaluation; research/config/eval_multihop.yaml documents each key."""

    datasets: Annotated[tuple[str, ...], list_of_names("hotpotqa")]
    methods: Annotated[tuple[str, ...], list_of_names("research")]
    limit: Annotated[int | None, or_null(integer(1))]
    prompt: Annotated[str, TEXT]
    protocol: Protocol
    limits: Limits
    retriever: RetrieverConfig
    engine: EngineConfig
    sampling: Sampling
    baselines: Baselines
    judge: JudgeConfig
    concurrency: Annotated[int, integer(1)]
    question_timeout: Annotated[float, ABOVE_0]
    tools: Annotated[Any, rules.TOOLS] = "search"
    environment: Annotated[Any, rules.ENVIRONMENT] = "question_answering"

    def __post_init__(self) -> None:
        if self.judge.url is not None and self.judge.model is None:
            raise ValueError("judge.model: which model is the judge?")
        known = METHODS.names()
        if unknown := sorted(set(self.methods) - set(known)):
            raise ValueError(f"no method is called {', '.join(unknown)}; there are: {', '.join(known)}")
        rules.check_protocol(self.protocol)
        load_prompt(self.prompt)


MULTIHOP = rules.rules_of(EvaluationConfig) | rules.PROTOCOL | rules.LIMITS | rules.RETRIEVER
MULTIHOP["engine.model"] = MODEL
OPTIONAL = {"retriever.contents"}  # not a key of the files, but a field of the client's configuration


def compose_multihop(overrides: list[str], model: str | None = None) -> DictConfig:
    """The resolved configuration with key=value overrides.

    If `model` is the policy of a training run, the settings it was trained with replace the preset. Raises
    EvaluationError for an unknown key, a bad value, or a missing one.
    """
    trained = training_of(model)
    config = compose_file("eval_multihop", overrides, {} if trained is None else trained_values(trained))
    if missing := sorted(OmegaConf.missing_keys(config)):
        advice = " (--retriever URL or --corpus FILE)" if "retriever.url" in missing else ""
        raise EvaluationError(f"no value for {', '.join(missing)}{advice}")
    read_multihop(config)
    return config


def compose_file(name: str, overrides: Sequence[str], values: Mapping[str, Any]) -> DictConfig:
    """research/config/NAME.yaml, resolved, with `values` for what is not overridden and the prompt's text.

    Raises EvaluationError.
    """
    words = [*map(as_hydra_word, overrides)]
    try:
        GlobalHydra.instance().clear()
        with initialize_config_dir(str(CONFIG_DIR), version_base=None):
            config = compose(name, overrides=words)
        given = _given_keys(words)
        for key, value in values.items():
            if "preset" not in given and not any(f"{key}.".startswith(f"{each}.") for each in given):
                OmegaConf.update(config, key, value)
        OmegaConf.resolve(config)
        _keep_texts(config)
    except (HydraException, OmegaConfBaseException) as error:
        raise EvaluationError(composition_fault(error)) from error
    return config


def _given_keys(words: list[str]) -> set[str]:
    """The keys and whole sections that the user's words set."""
    given: set[str] = set()
    for word in OverridesParser.create().parse_overrides(words):
        key, value = word.key_or_group, word.value()
        given |= {f"{key}.{name}" for name in value} if isinstance(value, dict) else {key}
    return given


def _keep_texts(config: DictConfig) -> None:
    """Replace a prompt file, and prompts fetched for released checkpoints, by their text."""
    section, protocol = config.get("rewriting", config), config.get("protocol")
    with evaluation_errors():
        if not OmegaConf.is_missing(section, "prompt") and isinstance(section.prompt, str):
            if "think" in section and section.think is None and section.prompt in PROMPTS:
                section.think = section.prompt.endswith("_think")
            section.prompt = prompt_to_keep(section.prompt)
        if protocol is not None and isinstance(protocol.get("invalid_turn"), str):
            protocol.invalid_turn = notice_to_keep(protocol.invalid_turn)


def training_of(model: str | None) -> Any:
    """The configuration of the training run whose RUN_DIR/policy the model is; None for other models."""
    path = Path(model or "").absolute().parent / "config.yaml"
    if model is None or not Path(model).is_dir() or not path.exists():
        return None
    trained = OmegaConf.load(path)
    return trained if "research" in trained else None


def trained_retriever(model: str) -> dict[str, Any]:
    """The `index` kind and `encoder` that a training run's policy searched with; empty if unknown."""
    path = Path(model).absolute().parent / "retriever.json"
    if training_of(model) is None or not path.exists():
        return {}
    with evaluation_errors(f"{path}: "):
        return dict(json.loads(path.read_text(encoding="utf-8")))


def trained_values(trained: Any) -> dict[str, Any]:
    """Keys and values of an evaluation that come from a training run's configuration."""
    ours, rollout = trained.research, trained.actor_rollout_ref.rollout
    values: dict[str, Any] = {"prompt": ours.prompt}
    for key in {"tools", "environment"} & ours.keys():
        values[key] = ours[key]
    if "top_k" in ours.retriever:  # a query reasoner shows no passages
        values["retriever.top_k"] = ours.retriever.top_k
    values |= {"engine.dtype": rollout.dtype, "engine.max_model_len": rollout.max_model_len}
    for section in ("protocol", "limits"):
        values |= {f"{section}.{key}": value for key, value in ours[section].items()}
    return values


def read_multihop(config: DictConfig) -> EvaluationConfig:
    """See `read_typed`."""
    return read_typed(EvaluationConfig, config, MULTIHOP)


def read_typed(cls: type[Typed], config: DictConfig, of_keys: Mapping[str, Rule]) -> Typed:
    """The configuration as an object of `cls`; its fields that are dataclasses are the sections.

    Raises EvaluationError for a key that is unknown or missing, or whose value breaks its rule.
    """
    values: dict[str, Any] = OmegaConf.to_container(config, resolve=True)  # type: ignore[assignment]
    flat = rules.flattened(values)
    with evaluation_errors():
        rules.check(flat, of_keys)
        rules.check_limits(flat)
        if missing := sorted(of_keys.keys() - flat.keys() - OPTIONAL):
            raise ValueError(f"no value for {', '.join(missing)}")
    for name, kind in get_type_hints(cls).items():
        if isinstance(kind, type) and is_dataclass(kind):
            values[name] = _object(kind, values[name], f"{name}: ")
    return _object(cls, values, "")


def _object(cls: type[Typed], values: Mapping[str, Any], prefix: str) -> Typed:
    fields = {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}
    with evaluation_errors(prefix):
        return cls(**fields)


@contextmanager
def evaluation_errors(prefix: str = "") -> Iterator[None]:
    """Turn a ValueError, or the TypeError of an unknown key, into EvaluationError."""
    try:
        yield
    except (TypeError, ValueError) as error:
        raise EvaluationError(prefix + str(error).replace(".__init__()", "")) from error
