"""What a run of the recipe consists of: its files, its configuration and every command, before anything is
done.
"""

import importlib.util
import os
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from research.episode.prompts import is_path, with_text
from research.overrides import as_hydra_word, quoted
from research.places import CACHE, CONFIG_DIR, PACKAGE
from research.training.config import read_research_config
from research.training.run.hardware import gpu_memory
from research.training.run.options import Command, Options, key_of, module_command
from research.training.run.sources import RECIPES, Source, version_of
from research.training.run_files import latest_checkpoint
from research.training.values import check_training
from research.training.verl.patches import WEIGHT_TIMEOUT_VARIABLE

# Keys that follow an option of the command line, which decides more than the key.
OPTIONS = {
    "research.run_dir": "give --run-dir",
    "research.retriever.url": "give --retriever-url",
    "research.rewriting.encoder": "give --encoder",
    "data.train_files": "give {questions}",
    "data.val_files": "give --validation and --test",
    "data.seed": "give --seed",
    "actor_rollout_ref.rollout.seed": "give --seed",
    "actor_rollout_ref.actor.fsdp_config.seed": "give --seed",
    "actor_rollout_ref.model.path": "give --model",
    "actor_rollout_ref.rollout.agent.agent_loop_config_path": "the recipe's episodes are its own",
    "trainer.nnodes": "give --nodes",
    "trainer.n_gpus_per_node": "give --gpus",
    "trainer.default_local_dir": "give --run-dir",
}
INDEX_FORMAT = 2  # of the retrieval server's manifests; older indexes in the cache are built again


@dataclass(frozen=True)
class Plan:
    """Files and commands of a run. ``prepare`` runs before the configuration is composed, ``build`` after."""

    options: Options
    source: Source
    prepare: list[Command]
    build: list[Command]
    serve: Command | None
    train: Command


class ConfigurationError(ValueError):
    """A key or value of the configuration is wrong; the message is one line."""


def make_plan(options: Options) -> Plan:
    """Decide on files and commands. Touches nothing."""
    prepare: list[Command] = []
    source = RECIPES[options.recipe].source(options, prepare)
    index, build = None, [_rows_command(options, source)]
    if source.corpus is not None and options.retriever_url is None:
        index = _index_folder(options, source.corpus, source)
        build.append(_index_command(options, source, source.corpus, index))
    return Plan(
        options=options,
        source=source,
        prepare=prepare,
        build=build,
        serve=_serve_command(options, index) if index else None,
        train=module_command(
            "train with GRPO", "research.training.verl.launch", options.run_dir, "--die-with-parent"
        ),
    )


def _rows_command(options: Options, source: Source) -> Command:
    held_out = {"--validation": source.validation, "--test": source.test}
    arguments: list[Any] = [options.run_dir, "--questions", source.questions]
    arguments += [word for name, path in held_out.items() if path for word in (name, path)]
    creates = options.run_dir / "data" / "done"
    return module_command("write the training rows", "research.training.rows", *arguments, creates=creates)


def _index_command(options: Options, source: Source, corpus: Path, index: Path) -> Command:
    arguments: list[Any] = ["build", corpus, index]
    arguments += ["--encoder", source.encoder] if _is_dense(source) else []
    arguments += ["--index", source.index] if source.index != "flat" else []
    if source.faiss_index and _is_dense(source):
        # The user's is the index itself; of the one that comes with the corpus other kinds take the vectors.
        adopted = options.faiss_index or source.index == "flat"
        arguments += ["--faiss-index" if adopted else "--vectors", source.faiss_index]
    arguments += shlex.split(options.build_args)
    return module_command("build the index", "retriever_server", *arguments, creates=index)


def _is_dense(source: Source) -> bool:
    return not source.index.startswith("bm25")


def _serve_command(options: Options, index: Path) -> Command:
    """Without its port, which is chosen when the run starts."""
    words = shlex.split(options.serve_args)
    arguments = ("serve", index, *words, "--host", options.retriever_host, "--die-with-parent")
    return module_command("serve the index", "retriever_server", *arguments)


def _index_folder(options: Options, corpus: Path, source: Source) -> Path:
    """A corpus of ours has its key in its path; one of the user's may change under the same path."""
    encoder = source.encoder if _is_dense(source) else ""
    made_by: tuple[str, ...] = (encoder,) if source.index == "flat" else (source.index, encoder)
    made_by += (options.build_args,) if options.build_args else ()
    return CACHE / f"index-{key_of(INDEX_FORMAT, corpus.resolve(), *made_by, *(version_of(corpus) or ()))}"


# ------------------------------------------------------------------------------------------ configuration


def compose_config(plan: Plan, retriever_url: str) -> DictConfig:
    """The resolved configuration of the run.

    Raises:
        ConfigurationError: an unknown key, a bad value, or a missing one.
    """
    values = _values(plan, retriever_url)
    config = _composed(plan.options, values)
    # veRL itself leaves keys of parts that are switched off without a value.
    ours = ("research.", "data.", "actor_rollout_ref.")
    missing = [key for key in OmegaConf.missing_keys(config) if key.startswith(ours)]
    if missing:
        raise ConfigurationError(f"no value for {', '.join(sorted(missing))}")
    try:
        _keep_prompt(config.research)
        read_research_config(config.research)
        check_training(config)
    except ValueError as error:
        raise ConfigurationError(str(error)) from error
    _refuse_keys_of_options(config, values, plan.options)
    rollout, data = config.actor_rollout_ref.rollout, config.data
    # Shorter, it would fail the episodes that use the room they have.
    longest = data.max_prompt_length + data.max_response_length
    rollout.max_model_len = max(rollout.max_model_len, longest)
    return config


def _composed(options: Options, values: dict[str, Any]) -> DictConfig:
    words = [f"{key}={quoted(value)}" for key, value in values.items()]
    words += map(as_hydra_word, options.overrides)
    try:
        GlobalHydra.instance().clear()
        with initialize_config_dir(str(CONFIG_DIR), version_base=None):
            config = compose(f"train_{options.recipe}", overrides=[_verl_configs(), *words])
        _set_cluster(config, options)
        _set_environment(config, options)
        OmegaConf.resolve(config)
    except (HydraException, OmegaConfBaseException) as error:
        raise ConfigurationError(" ".join(str(error).split())) from error
    except (ValueError, AttributeError, TypeError) as error:  # of hydra and omegaconf for a word like "=1"
        given = " ".join(options.overrides)
        raise ConfigurationError(
            f"no configuration comes of {given!r}: {error}; a word is key=value"
        ) from error
    return config


def _keep_prompt(research: DictConfig) -> None:
    """Put the text of a prompt that is a file into the configuration: after the first checkpoint the one that
    the run has been trained with, whatever the file holds by then.
    """
    if not isinstance(research.prompt, str):
        return  # refused with the other values
    run_dir = Path(research.run_dir)
    if is_path(research.prompt) and latest_checkpoint(run_dir) is not None:
        research.prompt = OmegaConf.load(run_dir / "config.yaml").research.prompt
    research.prompt = with_text(research.prompt)


def _refuse_keys_of_options(config: DictConfig, values: dict[str, Any], options: Options) -> None:
    """What the recipe does follows its options: another value in the configuration alone would part them."""
    if OmegaConf.select(config, "trainer.device") != {"cpu": "cpu", "gpu": "cuda"}[options.hardware]:
        raise ConfigurationError("hardware is not set by itself: give --hardware")
    questions = RECIPES[options.recipe].questions_option
    for key in OPTIONS:
        if key in values and _words(OmegaConf.select(config, key)) != _words(values[key]):
            raise ConfigurationError(
                f"{key} is not set by itself: {OPTIONS[key].format(questions=questions)}"
            )


def _words(value: Any) -> list[str]:
    """The same for a path and its text, and for one that is a list of one."""
    return [str(each) for each in (value if isinstance(value, list | ListConfig) else [value])]


def _verl_configs() -> str:
    """Where Hydra finds veRL's own configuration. By pkg:// it would import veRL, which takes ten seconds."""
    spec = importlib.util.find_spec("verl")
    if spec is None or not spec.submodule_search_locations:
        raise ConfigurationError("veRL is not installed: bash recipes/setup_env.sh cpu|gpu")
    return f"hydra.searchpath={quoted([f'file://{spec.submodule_search_locations[0]}/trainer/config'])}"


def _values(plan: Plan, retriever_url: str) -> dict[str, Any]:
    """The keys that the recipe sets."""
    options = plan.options
    data, held_out = options.run_dir / "data", ["validation", *(["test"] if plan.source.test else [])]
    values: dict[str, Any] = {
        "hardware": options.hardware,
        "research.run_dir": options.run_dir,
        "research.retriever.url": retriever_url,
        "data.train_files": data / "train.parquet",
        "data.val_files": [data / f"{split}.parquet" for split in held_out],
        "data.seed": options.seed,
        "actor_rollout_ref.rollout.seed": options.seed,
        "actor_rollout_ref.actor.fsdp_config.seed": options.seed,
        "actor_rollout_ref.model.path": plan.source.model,
        "actor_rollout_ref.rollout.agent.agent_loop_config_path": PACKAGE / "training/verl/agent_loop.yaml",
        "trainer.default_local_dir": options.run_dir / "checkpoints",
        "trainer.nnodes": options.nodes,
        "trainer.experiment_name": options.run_dir.name,
    }
    if key := RECIPES[options.recipe].encoder_key:
        values[key] = plan.source.encoder
    if options.steps is not None:
        values["trainer.total_training_steps"] = options.steps
    elif any(word.lstrip("+").startswith("trainer.total_epochs=") for word in options.overrides):
        values["trainer.total_training_steps"] = None  # not the profile's: epochs were asked for
    gpus = options.gpus or (len(gpu_memory()) if options.hardware == "gpu" else None)
    if gpus:
        values["trainer.n_gpus_per_node"] = gpus
    return values


def _set_environment(config: DictConfig, options: Options) -> None:
    """Variables that every process of the run must have, on every node."""
    environment = config.ray_kwargs.ray_init.runtime_env.env_vars
    environment[WEIGHT_TIMEOUT_VARIABLE] = str(config.research.weight_update_timeout)
    environment.TENSORBOARD_DIR = str(options.run_dir / "tensorboard")
    if options.hardware == "cpu":
        # vLLM's threads: one core is left to the processes that feed it, or they wait for one another. The
        # actor, which runs alone, takes all cores (research/training/verl/cpu/engine.py).
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
