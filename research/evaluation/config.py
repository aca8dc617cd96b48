"""The configuration of an evaluation: research/config/eval_multihop.yaml as typed objects. The keys are
documented there.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from research.episode.loop import Limits
from research.episode.prompts import load_prompt, with_text
from research.episode.protocol import Protocol
from research.evaluation.methods import method_names
from research.evaluation.values import check_multihop
from research.judge import JudgeConfig
from research.overrides import as_hydra_word
from research.places import CONFIG_DIR
from research.tools.search import RetrieverConfig
from research.values import check_protocol


class EvaluationError(Exception):
    """The evaluation cannot start or go on; the message is for the user."""


@dataclass(frozen=True)
class EngineConfig:
    """What samples; times in seconds, lengths in tokens."""

    model: str
    tokenizer: str | None
    dtype: str
    max_model_len: int | None
    tensor_parallel_size: int
    gpu_memory_utilization: float
    api_key_variable: str
    served_name: str | None
    timeout: float
    deadline: float

    @property
    def is_url(self) -> bool:
        """Whether a server samples, not vLLM in this process."""
        return self.model.startswith(("http://", "https://"))


@dataclass(frozen=True)
class Sampling:
    """`temperature` 0 is greedy, `top_k` 0 takes all tokens, `repetition_penalty` 1 is none."""

    temperature: float
    top_p: float
    seed: int
    top_k: int = 0
    repetition_penalty: float = 1.0


@dataclass(frozen=True)
class Baselines:
    """Of the methods that are no search loop: sampled tokens a call, and how often they retrieve."""

    answer_tokens: int
    ircot_steps: int
    iter_retgen_rounds: int


@dataclass(frozen=True)
class EvaluationConfig:
    """One evaluation; see research/config/eval_multihop.yaml for each key."""

    datasets: tuple[str, ...]
    methods: tuple[str, ...]
    limit: int | None
    prompt: str
    protocol: Protocol
    limits: Limits
    retriever: RetrieverConfig
    engine: EngineConfig
    sampling: Sampling
    baselines: Baselines
    judge: JudgeConfig
    concurrency: int
    question_timeout: float


SECTIONS = {
    "protocol": Protocol,
    "limits": Limits,
    "retriever": RetrieverConfig,
    "engine": EngineConfig,
    "sampling": Sampling,
    "baselines": Baselines,
    "judge": JudgeConfig,
}


def compose_config(words: list[str], model: str | None = None) -> DictConfig:
    """The resolved configuration of key=value words. `model` may be the policy of a training run: then what
    it was trained with stands for the preset.

    Raises:
        EvaluationError: an unknown key, a bad value, or a missing one.
    """
    config = compose_file("eval_multihop", words, trained_with(model))
    if missing := sorted(OmegaConf.missing_keys(config)):
        advice = " (--retriever URL or --corpus FILE)" if "retriever.url" in missing else ""
        raise EvaluationError(f"no value for {', '.join(missing)}{advice}")
    keep_prompt(config)
    read_config(config)
    return config


def compose_file(name: str, words: list[str], values: dict[str, Any]) -> DictConfig:
    """research/config/NAME.yaml, resolved, with `values` for keys that no word sets.

    Raises EvaluationError.
    """
    try:
        GlobalHydra.instance().clear()
        with initialize_config_dir(str(CONFIG_DIR), version_base=None):
            config = compose(name, overrides=[*map(as_hydra_word, words)])
        given = {word.partition("=")[0].lstrip("+~") for word in words}
        for key, value in values.items():
            if key not in given:
                OmegaConf.update(config, key, value)
        OmegaConf.resolve(config)
    except (HydraException, OmegaConfBaseException) as error:
        raise EvaluationError(" ".join(str(error).split())) from error
    return config


def training_of(model: str | None) -> Any:
    """The configuration of the training run whose RUN_DIR/policy the model is; None for other models."""
    path = Path(model or "").absolute().parent / "config.yaml"
    if model is None or not Path(model).is_dir() or not path.exists():
        return None
    trained = OmegaConf.load(path)
    return trained if "research" in trained else None


def trained_with(model: str | None) -> dict[str, Any]:
    """Keys and values for the policy RUN_DIR/policy of a training run; nothing for other models."""
    trained = training_of(model)
    return {} if trained is None else values_of(trained)


def values_of(trained: Any) -> dict[str, Any]:
    """The same of a run's configuration."""
    ours, rollout = trained.research, trained.actor_rollout_ref.rollout
    values: dict[str, Any] = {"prompt": ours.prompt}
    if "top_k" in ours.retriever:  # a query reasoner shows no passages
        values["retriever.top_k"] = ours.retriever.top_k
    values |= {"engine.dtype": rollout.dtype, "engine.max_model_len": rollout.max_model_len}
    for section in ("protocol", "limits"):
        values |= {f"{section}.{key}": value for key, value in ours[section].items()}
    return values


def read_config(config: DictConfig) -> EvaluationConfig:
    """The configuration as objects.

    Raises:
        EvaluationError: a key is unknown or missing, or a value has no meaning; the message names it.
    """
    values: dict[str, Any] = OmegaConf.to_container(config, resolve=True)  # type: ignore[assignment]
    with saying_faults():
        check_multihop(values)
    for key, section in SECTIONS.items():
        values[key] = build(section, values.get(key), key)
    values["datasets"], values["methods"] = tuple(values["datasets"]), tuple(values["methods"])
    read: EvaluationConfig = build(EvaluationConfig, values, "configuration")
    if unknown := sorted(set(read.methods) - set(method_names())):
        raise EvaluationError(f"no method is called {', '.join(unknown)}; there are: {_list(method_names())}")
    with saying_faults():
        check_protocol(read.protocol)
        load_prompt(read.prompt)
    return read


def keep_prompt(section: DictConfig) -> None:
    """Put the text of a prompt that is a file into the configuration. Raises EvaluationError."""
    if isinstance(section.prompt, str):
        with saying_faults():
            section.prompt = with_text(section.prompt)


@contextmanager
def saying_faults() -> Iterator[None]:
    """A ValueError, whose message is one line, as EvaluationError."""
    try:
        yield
    except ValueError as error:
        raise EvaluationError(str(error)) from error


def _list(names: list[str]) -> str:
    return ", ".join(names)


def build(cls: type, values: Any, where: str) -> Any:
    """An object of `values`; EvaluationError that begins with `where` for unknown keys and bad values."""
    try:
        return cls(**values)
    except (TypeError, ValueError) as error:
        raise EvaluationError(f"{where}: {str(error).replace('.__init__()', '')}") from error
