"""What a run of the recipe consists of: its files, its configuration and every command, before anything is
done.
"""

import hashlib
import json
import os
import sys
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from research.training.config import read_research_config
from research.training.hardware import gpu_memory
from research.training.patches import WEIGHT_TIMEOUT_VARIABLE

ROOT = Path(__file__).resolve().parents[2]
CONFIG_DIR = ROOT / "recipes" / "config"
CACHE = ROOT / "cache"
GPU_ENCODER = "intfloat/e5-base-v2"
INDEX_FORMAT = 2  # of the retrieval server's manifests; older indexes in the cache are built again


@dataclass(frozen=True)
class Options:
    """The recipe's command line; saved as ``recipe.json`` in the run folder. None: by the hardware
    profile.
    """

    hardware: str
    run_dir: Path
    model: str | None = None
    questions: Path | None = None
    validation: Path | None = None
    test: Path | None = None
    corpus: Path | None = None
    faiss_index: Path | None = None
    encoder: str | None = None
    retriever_url: str | None = None
    retriever_host: str = "127.0.0.1"
    retriever_port: int = 0
    steps: int | None = None
    nodes: int = 1
    gpus: int | None = None
    seed: int = 42
    passages: int = 20000
    test_questions: int = 500
    supervised_control: bool = False
    overrides: tuple[str, ...] = ()

    def save(self, path: Path) -> None:
        """Write as JSON."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        path.write_text(json.dumps(values, default=str, indent=1) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, path: Path) -> "Options":
        """The inverse of :meth:`save`."""
        values = json.loads(path.read_text(encoding="utf-8"))
        for name in ("run_dir", "questions", "validation", "test", "corpus", "faiss_index"):
            values[name] = Path(values[name]) if values[name] else None
        return cls(**{**values, "overrides": tuple(values["overrides"])})


@dataclass(frozen=True)
class Command:
    """One process of the recipe. If ``creates`` exists, the command has been run and is skipped."""

    what: str
    argv: list[str]
    creates: Path | None = None


@dataclass(frozen=True)
class Plan:
    """Files and commands of a run. ``prepare`` runs before the configuration is composed, ``build`` after."""

    options: Options
    model: str
    test: Path | None
    corpus: Path | None
    prepare: list[Command]
    build: list[Command]
    serve: Command | None
    train: Command


class ConfigurationError(ValueError):
    """A key or value of the configuration is wrong; the message is one line."""


def make_plan(options: Options) -> Plan:
    """Decide on files and commands. Touches nothing."""
    prepare: list[Command] = []
    source = _cpu_source(options, prepare) if options.hardware == "cpu" else _gpu_source(options, prepare)
    index, build = None, [_rows_command(options, source)]
    if options.retriever_url is None:
        index = _index_folder(source["corpus"], source["encoder"])
        build.append(_index_command(options, source, index))
    return Plan(
        options=options,
        model=source["model"],
        test=source["test"],
        corpus=source["corpus"],
        prepare=prepare,
        build=build,
        serve=_serve_command(options, index) if index else None,
        train=module_command(
            "train with GRPO", "research.training.launch", options.run_dir, "--die-with-parent"
        ),
    )


def module_command(what: str, module: str, *arguments: Any, creates: Path | None = None) -> Command:
    """The command that runs a Python module of ours."""
    return Command(what, [sys.executable, "-m", module, *map(str, arguments)], creates)


def _cpu_source(options: Options, prepare: list[Command]) -> dict[str, Any]:
    """The tiny policy, and the mini world with its encoder unless the user brought questions or a corpus."""
    own = options.questions is not None
    sizes = ("--seed", options.seed, "--passages", options.passages, "--test", options.test_questions)
    world = _made(
        prepare, "make the mini world", "data.mini_world", *sizes, needed=not own or _no_corpus(options)
    )
    source: dict[str, Any] = {"faiss_index": options.faiss_index, "encoder": options.encoder or "minilm"}
    source["questions"] = options.questions or world / "train.questions.jsonl"
    source["validation"] = options.validation or (None if own else world / "validation.questions.jsonl")
    source["test"] = options.test or (None if own else world / "test.questions.jsonl")
    source["corpus"] = options.corpus or (None if options.retriever_url else world / "corpus.jsonl")
    if options.encoder is None and _no_corpus(options):
        source["encoder"] = str(_made(prepare, "make the mini encoder", "data.mini_encoder"))
    policy = ("cold-start the tiny policy", "data.mini_policy", "--seed", options.seed)
    source["model"] = options.model or str(_made(prepare, *policy))
    return source


def _no_corpus(options: Options) -> bool:
    return options.corpus is None and options.retriever_url is None


def _made(prepare: list[Command], what: str, module: str, *arguments: Any, needed: bool = True) -> Path:
    """The cache folder of what a generator in data/ makes; the generator is put into `prepare` if needed."""
    name = module.removeprefix("data.")
    folder = CACHE / f"{name}-{_key(*arguments, *_code('mini_'))}"
    if needed:
        prepare.append(module_command(what, module, "--out", folder, *arguments, creates=folder))
    return folder


def _gpu_source(options: Options, prepare: list[Command]) -> dict[str, Any]:
    """MuSiQue, the 2018 Wikipedia with its E5 index, and Qwen2.5-7B-Instruct, each unless the user brought
    another.
    """
    musique, wiki = CACHE / "musique", CACHE / "wiki18"
    source: dict[str, Any] = {"encoder": options.encoder or GPU_ENCODER, "faiss_index": options.faiss_index}
    if options.questions is None:
        prepare.append(
            module_command(
                "download MuSiQue",
                "data.musique",
                "--out",
                musique,
                creates=musique / "validation.questions.jsonl",
            )
        )
    own = options.questions is not None
    source["questions"] = options.questions or musique / "train.questions.jsonl"
    source["validation"] = options.validation or (None if own else musique / "validation.questions.jsonl")
    source["test"] = options.test
    source["corpus"] = options.corpus
    if _no_corpus(options):
        prepare.append(
            module_command(
                "download Wikipedia 2018 and its E5 index",
                "data.wiki18",
                "--out",
                wiki,
                creates=wiki / "e5_Flat.index",
            )
        )
        source |= {
            "corpus": wiki / "wiki-18.jsonl",
            "faiss_index": options.faiss_index or wiki / "e5_Flat.index",
        }
    source["model"] = options.model or "Qwen/Qwen2.5-7B-Instruct"
    return source


def _rows_command(options: Options, source: dict[str, Any]) -> Command:
    arguments = [options.run_dir, "--questions", source["questions"]]
    arguments += [
        word for name in ("validation", "test") if source[name] for word in (f"--{name}", source[name])
    ]
    creates = options.run_dir / "data" / "done"
    return module_command("write the training rows", "research.training.rows", *arguments, creates=creates)


def _index_command(options: Options, source: dict[str, Any], index: Path) -> Command:
    arguments = ["build", source["corpus"], index, "--encoder", source["encoder"]]
    arguments += ["--faiss-index", source["faiss_index"]] if source["faiss_index"] else []
    return module_command("build the index", "retriever_server", *arguments, creates=index)


def _serve_command(options: Options, index: Path) -> Command:
    """Without its port, which is chosen when the run starts."""
    arguments = ("serve", index, "--host", options.retriever_host, "--die-with-parent")
    return module_command("serve the index", "retriever_server", *arguments)


def _index_folder(corpus: Path, encoder: str) -> Path:
    """A corpus of ours has its key in its path; one of the user's may change under the same path."""
    stat = None if corpus.is_relative_to(CACHE) or not corpus.exists() else corpus.stat()
    version = (stat.st_size, stat.st_mtime_ns) if stat else ()
    return CACHE / f"index-{_key(INDEX_FORMAT, corpus.resolve(), encoder, *version)}"


def _key(*parts: Any) -> str:
    return hashlib.sha256("\n".join(map(str, parts)).encode()).hexdigest()[:12]


def _code(prefix: str) -> list[str]:
    """The code that generates something is part of its key: a changed generator makes a new world or
    policy.
    """
    paths = sorted((ROOT / "data").glob(f"{prefix}*.py"))
    return [hashlib.sha256(path.read_bytes()).hexdigest() for path in paths]


# ------------------------------------------------------------------------------------------ configuration


def compose_config(plan: Plan, retriever_url: str) -> DictConfig:
    """The resolved configuration of the run.

    Raises:
        ConfigurationError: an unknown key, a bad value, or a missing one.
    """
    try:
        GlobalHydra.instance().clear()
        with initialize_config_dir(str(CONFIG_DIR), version_base=None):
            config = compose(
                "train_musique", overrides=[*_overrides(plan, retriever_url), *plan.options.overrides]
            )
        _set_cluster(config, plan.options)
        _set_environment(config, plan.options)
        OmegaConf.resolve(config)
    except (HydraException, OmegaConfBaseException) as error:
        raise ConfigurationError(" ".join(str(error).split())) from error
    # veRL itself leaves keys of parts that are switched off without a value.
    ours = ("research.", "data.", "actor_rollout_ref.")
    missing = [key for key in OmegaConf.missing_keys(config) if key.startswith(ours)]
    if missing:
        raise ConfigurationError(f"no value for {', '.join(sorted(missing))}")
    try:
        read_research_config(config.research)
    except ValueError as error:
        raise ConfigurationError(str(error)) from error
    return config


def _overrides(plan: Plan, retriever_url: str) -> list[str]:
    options = plan.options
    data = options.run_dir / "data"
    values = {
        "hardware": options.hardware,
        "research.run_dir": options.run_dir,
        "research.retriever.url": retriever_url,
        "data.train_files": data / "train.parquet",
        "data.val_files": [data / "validation.parquet", *([data / "test.parquet"] if plan.test else [])],
        "data.seed": options.seed,
        "actor_rollout_ref.rollout.seed": options.seed,
        "actor_rollout_ref.actor.fsdp_config.seed": options.seed,
        "actor_rollout_ref.model.path": plan.model,
        "actor_rollout_ref.rollout.agent.agent_loop_config_path": ROOT / "research/training/agent_loop.yaml",
        "trainer.nnodes": options.nodes,
        "trainer.experiment_name": options.run_dir.name,
    }
    if options.steps is not None:
        values["trainer.total_training_steps"] = options.steps
    gpus = options.gpus or (len(gpu_memory()) if options.hardware == "gpu" else None)
    if gpus:
        values["trainer.n_gpus_per_node"] = gpus
    return [f"{key}={_quoted(value)}" for key, value in values.items()]


def _quoted(value: Any) -> str:
    """Hydra's grammar takes a path as it is only if it holds no special character."""
    if isinstance(value, list):
        return f"[{','.join(map(_quoted, value))}]"
    return str(value) if isinstance(value, int) else "'" + str(value).replace("'", "\\'") + "'"


def _set_environment(config: DictConfig, options: Options) -> None:
    """Variables that every process of the run must have, on every node."""
    environment = config.ray_kwargs.ray_init.runtime_env.env_vars
    environment[WEIGHT_TIMEOUT_VARIABLE] = str(config.research.weight_update_timeout)
    environment.TENSORBOARD_DIR = str(options.run_dir / "tensorboard")
    if options.hardware == "cpu":
        # vLLM's threads: one core is left to the processes that feed it, or they wait for one another. The
        # actor, which runs alone, takes all cores (research/training/cpu/engine.py).
        environment.OMP_NUM_THREADS = str(max(1, (os.cpu_count() or 1) - 1))


def _set_cluster(config: DictConfig, options: Options) -> None:
    """One node has a Ray of its own, whatever else runs on the machine. Several nodes join the Ray cluster
    that is there; its own resources count, not the ones declared here.
    """
    ray_init = config.ray_kwargs.ray_init
    OmegaConf.set_struct(config, False)
    ray_init.address = "local"
    if options.nodes > 1:
        config.ray_kwargs.ray_init = {
            "address": "auto",
            "runtime_env": ray_init.runtime_env,
            "num_cpus": None,
        }
