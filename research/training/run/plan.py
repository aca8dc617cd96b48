"""What a run of a recipe consists of, before anything is done: files, configuration, and every command."""

import importlib.util
import os
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from research.datasets.reference_prompts import notice_to_keep, prompt_to_keep
from research.episode.prompts import is_path
from research.overrides import as_hydra_word, quoted
from research.places import CACHE, CONFIG_DIR, PACKAGE
from research.training.config import read_research_config
from research.training.run.hardware import gpu_memory
from research.training.run.options import Command, RecipeOptions, RunFailed, cache_key, module_command
from research.training.run.sources import RECIPES, RunInputs, version_of
from research.training.run_files import latest_checkpoint
from research.training.values import check_training
from research.training.verl.patches import WEIGHT_TIMEOUT_VARIABLE

# Keys that follow an option of the command line, which determines more than the key.
KEYS_OF_OPTIONS = {
    "research.run_dir": "give --run-dir",
    "research.retriever.url": "give --retriever-url",
    "research.rewriting.encoder": "give --encoder",
    "data.train_files": "give {questions}",
    "data.val_files": "give --validation and --test",
    "data.seed": "give --seed",
    "actor_rollout_ref.rollout.seed": "give --seed",
    "actor_rollout_ref.actor.fsdp_config.seed": "give --seed",
    "actor_rollout_ref.model.path": "give --model",
    "actor_rollout_ref.rollout.agent.agent_loop_config_path": "the recipe has its own episodes",
    "trainer.nnodes": "give --nodes",
    "trainer.n_gpus_per_node": "give --gpus",
    "trainer.default_local_dir": "give --run-dir",
}
INDEX_FORMAT = 2  # of the retrieval server's manifests; older indexes in the cache are built again


@dataclass(frozen=True)
class RunPlan:
    """Files and commands of a run. ``prepare`` runs before the configuration is composed, ``build`` after."""

    options: RecipeOptions
    inputs: RunInputs
    prepare: list[Command]
    build: list[Command]
    serve: Command | None
    train: Command


def make_plan(options: RecipeOptions) -> RunPlan:
    """Decide on files and commands. Touches nothing."""
    prepare: list[Command] = []
    inputs = RECIPES[options.recipe].inputs(options, prepare)
    build, serve = [_rows_command(options, inputs)], None
    if inputs.corpus is not None and options.retriever_url is None:
        index = _index_folder(options, inputs.corpus, inputs)
        build.append(_index_command(options, inputs, inputs.corpus, index))
        serve = _serve_command(options, index)
    train = ("train with GRPO", "research.training.verl.launch", options.run_dir, "--die-with-parent")
    return RunPlan(options, inputs, prepare, build, serve, module_command(*train))


def _rows_command(options: RecipeOptions, inputs: RunInputs) -> Command:
    files = {"--questions": inputs.questions, "--validation": inputs.validation, "--test": inputs.test}
    arguments = [each for name, path in files.items() if path for each in (name, path)]
    command = ("write the training rows", "research.training.rows", options.run_dir)
    return module_command(*command, *arguments, creates=options.run_dir / "data" / "done")


def _index_command(options: RecipeOptions, inputs: RunInputs, corpus: Path, index: Path) -> Command:
    arguments: list[Any] = ["build", corpus, index]
    arguments += ["--encoder", inputs.encoder] if _is_dense(inputs) else []
    arguments += ["--index", inputs.index] if inputs.index != "flat" else []
    if inputs.faiss_index and _is_dense(inputs):
        # The user's is the index itself; of the one that comes with the corpus, other kinds take the vectors.
        adopted = options.faiss_index or inputs.index == "flat"
        arguments += ["--faiss-index" if adopted else "--vectors", inputs.faiss_index]
    arguments += shlex.split(options.build_args)
    return module_command("build the index", "retriever_server", *arguments, creates=index)


def _is_dense(inputs: RunInputs) -> bool:
    return not inputs.index.startswith("bm25")


def _serve_command(options: RecipeOptions, index: Path) -> Command:
    """Without its port, which is chosen when the run starts."""
    arguments = (*shlex.split(options.serve_args), "--host", options.retriever_host, "--die-with-parent")
    return module_command("serve the index", "retriever_server", "serve", index, *arguments)


def _index_folder(options: RecipeOptions, corpus: Path, inputs: RunInputs) -> Path:
    """A corpus of ours has its key in its path; one of the user's may change under the same path."""
    encoder = inputs.encoder if _is_dense(inputs) else ""
    parts: tuple[str, ...] = (encoder,) if inputs.index == "flat" else (inputs.index, encoder)
    parts += (options.build_args,) if options.build_args else ()
    return CACHE / f"index-{cache_key(INDEX_FORMAT, corpus.resolve(), *parts, *(version_of(corpus) or ()))}"


# ------------------------------------------------------------------------------------------ configuration


def compose_config(plan: RunPlan, retriever_url: str) -> DictConfig:
    """The resolved configuration of the run.

    Raises:
        RunFailed: an unknown key, a bad value, or a missing one.
    """
    values = _values(plan, retriever_url)
    config = _compose(plan.options, values)
    # veRL itself leaves keys of parts that are switched off without a value.
    ours = ("research.", "data.", "actor_rollout_ref.")
    missing = [key for key in OmegaConf.missing_keys(config) if key.startswith(ours)]
    if missing:
        raise RunFailed(f"no value for {', '.join(sorted(missing))}")
    try:
        _keep_prompt(config.research)
        read_research_config(config.research)
        check_training(config)
    except ValueError as error:
        raise RunFailed(str(error)) from error
    _refuse_keys_of_options(config, values, plan.options)
    rollout, data = config.actor_rollout_ref.rollout, config.data
    # A shorter one would fail the episodes that use all of their room.
    longest = data.max_prompt_length + data.max_response_length
    rollout.max_model_len = max(rollout.max_model_len, longest)
    return config


def _compose(options: RecipeOptions, values: Mapping[str, Any]) -> DictConfig:
    overrides = [_verl_configs(), *(f"{key}={quoted(value)}" for key, value in values.items())]
    overrides += map(as_hydra_word, options.overrides)
    try:
        GlobalHydra.instance().clear()
        with initialize_config_dir(str(CONFIG_DIR), version_base=None):
            config = compose(f"train_{options.recipe}", overrides=overrides)
        _set_cluster(config, options)
        _set_environment(config, options)
        OmegaConf.resolve(config)
    except (HydraException, OmegaConfBaseException) as error:
        raise RunFailed(" ".join(str(error).split())) from error
    except (ValueError, AttributeError, TypeError) as error:  # of hydra and omegaconf, for one like "=1"
        raise RunFailed(
            f"{' '.join(options.overrides)!r} makes no configuration: {error}; an override is key=value"
        ) from error
    return config


def _keep_prompt(research: DictConfig) -> None:
    """Replace a prompt that is a file by its text.

    After the first checkpoint it is the text that the run was trained with, whatever the file holds by then.
    """
    if not isinstance(research.prompt, str):
        return  # refused with the other values
    run_dir = Path(research.run_dir)
    if is_path(research.prompt) and latest_checkpoint(run_dir) is not None:
        research.prompt = OmegaConf.load(run_dir / "config.yaml").research.prompt
    research.prompt = prompt_to_keep(research.prompt)
    if isinstance(research.protocol.invalid_turn, str):
        research.protocol.invalid_turn = notice_to_keep(research.protocol.invalid_turn)


def _refuse_keys_of_options(config: DictConfig, values: Mapping[str, Any], options: RecipeOptions) -> None:
    """The rest of the run follows the options: a key alone would contradict it."""
    if OmegaConf.select(config, "trainer.device") != {"cpu": "cpu", "gpu": "cuda"}[options.hardware]:
        raise RunFailed("hardware cannot be set as a key: give --hardware")
    questions = RECIPES[options.recipe].questions_option
    for key, remedy in KEYS_OF_OPTIONS.items():
        if key in values and _texts(OmegaConf.select(config, key)) != _texts(values[key]):
            raise RunFailed(f"{key} cannot be set as a key: {remedy.format(questions=questions)}")


def _texts(value: Any) -> list[str]:
    """The same for a path and its text, and for a value and a list of it alone."""
    return [str(each) for each in (value if isinstance(value, list | ListConfig) else [value])]


def _verl_configs() -> str:
    """Where Hydra finds veRL's configuration. With pkg:// it would import veRL, which takes ten seconds."""
    spec = importlib.util.find_spec("verl")
    if spec is None or not spec.submodule_search_locations:
        raise RunFailed("veRL is not installed: bash recipes/setup_env.sh cpu|gpu")
    return f"hydra.searchpath={quoted([f'file://{spec.submodule_search_locations[0]}/trainer/config'])}"


def _values(plan: RunPlan, retriever_url: str) -> dict[str, Any]:
    """The keys that the recipe sets."""
    options = plan.options
    data, held_out = options.run_dir / "data", ["validation", *(["test"] if plan.inputs.test else [])]
    values: dict[str, Any] = {
        "hardware": options.hardware,
        "research.run_dir": options.run_dir,
        "research.retriever.url": retriever_url,
        "data.train_files": data / "train.parquet",
        "data.val_files": [data / f"{split}.parquet" for split in held_out],
        "data.seed": options.seed,
        "actor_rollout_ref.rollout.seed": options.seed,
        "actor_rollout_ref.actor.fsdp_config.seed": options.seed,
        "actor_rollout_ref.model.path": plan.inputs.model,
        "actor_rollout_ref.rollout.agent.agent_loop_config_path": PACKAGE / "training/verl/agent_loop.yaml",
        "trainer.default_local_dir": options.run_dir / "checkpoints",
        "trainer.nnodes": options.nodes,
        "trainer.experiment_name": options.run_dir.name,
    }
    if key := RECIPES[options.recipe].encoder_key:
        values[key] = plan.inputs.encoder
    if options.steps is not None:
        values["trainer.total_training_steps"] = options.steps
    elif any(each.lstrip("+").startswith("trainer.total_epochs=") for each in options.overrides):
        values["trainer.total_training_steps"] = None  # not the profile's: the user set epochs
    gpus = options.gpus or (len(gpu_memory()) if options.hardware == "gpu" else None)
    if gpus:
        values["trainer.n_gpus_per_node"] = gpus
    return values


def _set_environment(config: DictConfig, options: RecipeOptions) -> None:
    """Variables that every process of the run must have, on every node."""
    environment = config.ray_kwargs.ray_init.runtime_env.env_vars
    environment[WEIGHT_TIMEOUT_VARIABLE] = str(config.research.weight_update_timeout)
    environment.TENSORBOARD_DIR = str(options.run_dir / "tensorboard")
    if options.hardware == "cpu":
        # vLLM's threads: one core is left to the processes that feed it, or they wait for one another. The
        # actor, which runs alone, takes all cores (research/training/verl/cpu/engine.py).
        environment.OMP_NUM_THREADS = str(max(1, (os.cpu_count() or 1) - 1))


def _set_cluster(config: DictConfig, options: RecipeOptions) -> None:
    """One node has a Ray of its own, whatever else runs on the machine; several join a Ray cluster.

    The cluster's own resources count there, not those declared here.
    """
    ray_init = config.ray_kwargs.ray_init
    OmegaConf.set_struct(config, False)
    ray_init.address = "local"
    if options.nodes > 1:
        environment = ray_init.runtime_env
        config.ray_kwargs.ray_init = {"address": "auto", "runtime_env": environment, "num_cpus": None}
