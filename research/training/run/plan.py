"""The plan of a recipe's run, before anything is done: files, configuration, and every command."""

import importlib.util
import os
import shlex
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from research.datasets.reference_prompts import notice_to_keep, prompt_to_keep
from research.episode.prompts import is_path
from research.overrides import as_hydra_word, composition_fault, quoted
from research.places import CONFIG_DIR, PACKAGE
from research.training.config import read_research_config
from research.training.run.index import index_command
from research.training.run.options import (
    SPLITS,
    Command,
    RecipeOptions,
    RunFailed,
    gpu_memory,
    module_command,
)
from research.training.run.small_policy import SMALL, SMOLLM2
from research.training.run.sources import RECIPES, completed
from research.training.run_files import latest_checkpoint
from research.training.values import check_training
from research.training.verl.patches import WEIGHT_TIMEOUT_VARIABLE
from research.training.verl.tracking import loggers


@dataclass(frozen=True)
class RunPlan:
    """Files and commands of a run. ``prepare`` runs before the configuration is composed, ``build`` after.

    `options` are the user's, `inputs` the same with their gaps filled in.
    """

    options: RecipeOptions
    inputs: RecipeOptions
    prepare: list[Command]
    build: list[Command]
    serve: Command | None
    train: Command
    retriever_url: str = ""

    @property
    def sized_model(self) -> str | None:
        """The model whose size determines settings; None for the tiny policy, which they were made for."""
        made = str(self.inputs.model)
        if self.options.policy == "tiny":
            return self.options.model if self.options.on_cpu else made
        return self.options.model or SMOLLM2

    def on_port(self, port: int) -> "RunPlan":
        """The plan with the retriever's address; if the run starts the server, its port is chosen now."""
        url = self.options.retriever_url or f"http://{self.options.retriever_host}:{port}"
        serve = self.serve and replace(self.serve, argv=[*self.serve.argv, "--port", str(port)])
        return replace(self, serve=serve, retriever_url=url)


def make_plan(options: RecipeOptions) -> RunPlan:
    """Decide on files and commands. Touches nothing."""
    inputs, prepare = completed(options)
    files = [each for split, path in inputs.splits.items() for each in (f"--{SPLITS[split]}", path)]
    rows, done = ("write the training rows", "research.training.rows"), options.run_dir / "data" / "done"
    build, serve = [module_command(*rows, options.run_dir, *files, creates=done)], None
    if inputs.corpus is not None and options.retriever_url is None:
        index = index_command(options, inputs, inputs.corpus)
        build.append(index)
        words = (*shlex.split(options.serve_args), "--host", options.retriever_host, "--die-with-parent")
        serve = module_command("serve the index", "retriever_server", "serve", index.creates, *words)
    train = ("train with GRPO", "research.training.verl.launch", options.run_dir, "--die-with-parent")
    return RunPlan(options, inputs, prepare, build, serve, module_command(*train))


# ------------------------------------------------------------------------------------------ configuration


Setting = tuple[str, Any, str]
"""(key, the value that follows from the options, what to give instead of the key)"""


def compose_config(plan: RunPlan) -> DictConfig:
    """The resolved configuration of the run.

    Raises:
        RunFailed: an unknown key, a bad value, or a missing one.
    """
    settings = _settings(plan)
    config = _compose(plan.options, settings)
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
    # The rest of the run follows the options: a key alone would contradict it.
    for key, value, remedy in settings:
        if remedy and OmegaConf.select(config, key) != value:
            raise RunFailed(f"{key} cannot be set as a key: {remedy}")
    rollout, data = config.actor_rollout_ref.rollout, config.data
    # A shorter one would fail the episodes that use all of their room.
    longest = data.max_prompt_length + data.max_response_length
    rollout.max_model_len = max(rollout.max_model_len, longest)
    return config


def _settings(plan: RunPlan) -> list[Setting]:
    options, inputs, run_dir = plan.options, plan.inputs, str(plan.options.run_dir)
    recipe, rollout = RECIPES[options.recipe], "actor_rollout_ref.rollout"
    splits = ("validation", "test") if inputs.test else ("validation",)
    held_out = [f"{run_dir}/data/{split}.parquet" for split in splits]
    episodes = str(PACKAGE / "training/verl/agent_loop.yaml")
    settings: list[Setting] = [
        ("hardware", options.hardware, ""),
        ("trainer.experiment_name", options.run_dir.name, ""),
        ("research.run_dir", run_dir, "give --run-dir"),
        ("research.retriever.url", plan.retriever_url, "give --retriever-url"),
        ("data.train_files", f"{run_dir}/data/train.parquet", f"give {recipe.questions_option}"),
        ("data.val_files", held_out, "give --validation and --test"),
        ("data.seed", options.seed, "give --seed"),
        (f"{rollout}.seed", options.seed, "give --seed"),
        ("actor_rollout_ref.actor.fsdp_config.seed", options.seed, "give --seed"),
        ("actor_rollout_ref.model.path", inputs.model, "give --model"),
        (f"{rollout}.agent.agent_loop_config_path", episodes, "the recipe has its own episodes"),
        ("trainer.default_local_dir", f"{run_dir}/checkpoints", "give --run-dir"),
        ("trainer.nnodes", options.nodes, "give --nodes"),
    ]
    if recipe.encoder_key:
        settings.append((recipe.encoder_key, inputs.encoder, "give --encoder"))
    if options.steps is not None:
        settings.append(("trainer.total_training_steps", options.steps, ""))
    elif any(each.lstrip("+").startswith("trainer.total_epochs=") for each in options.overrides):
        # Not the profile's steps: the user set epochs.
        settings.append(("trainer.total_training_steps", None, ""))
    settings.append(("actor_rollout_ref.model.lora_rank", options.lora_rank or 0, "give --lora-rank"))
    if options.lora_rank:
        settings += [
            ("actor_rollout_ref.model.lora_alpha", 2 * options.lora_rank, ""),
            ("actor_rollout_ref.model.lora.merge", True, "vLLM takes whole weights here"),
        ]
    if gpus := options.gpus or (len(gpu_memory()) if options.hardware == "gpu" else None):
        settings.append(("trainer.n_gpus_per_node", gpus, "give --gpus"))
    return settings


def _compose(options: RecipeOptions, settings: list[Setting]) -> DictConfig:
    overrides = [_verl_configs(), *(f"{key}={quoted(value)}" for key, value, _ in settings)]
    recipe = RECIPES[options.recipe]
    name = recipe.config or options.recipe
    words = [each.replace("research.preset=", f"{name}/preset=") for each in options.overrides]
    if options.policy != "tiny":
        words.append(f"{name}/policy={options.policy}")
    if recipe.preset and not any(each.startswith(f"{name}/preset=") for each in words):
        preset = recipe.preset.format(hardware="cpu" if options.on_cpu else "gpu")
        words.append(f"{name}/preset={preset}")
    _refuse_unknown_protocol(options, words, name)
    overrides += map(as_hydra_word, words)
    try:
        GlobalHydra.instance().clear()
        with initialize_config_dir(str(CONFIG_DIR), version_base=None):
            config = compose(f"train_{name}", overrides=overrides)
        if config.trainer.device != ("cpu" if options.on_cpu else "cuda"):
            raise RunFailed("hardware cannot be set as a key: give --hardware")
        _set_ray(config, options)
        if wanted := [name for name in options.track if name not in loggers(config)]:
            config.trainer.logger = [*loggers(config), *wanted]
        OmegaConf.resolve(config)
    except (HydraException, OmegaConfBaseException) as error:
        raise RunFailed(composition_fault(error)) from error
    except (ValueError, AttributeError, TypeError) as error:  # of hydra and omegaconf, for one like "=1"
        raise RunFailed(
            f"{' '.join(options.overrides)!r} makes no configuration: {error}; an override is key=value"
        ) from error
    return config


def fast_float(half: str, single: str) -> str:
    """`half` on a processor that multiplies bfloat16, and `single` on others."""
    from research.training.precision import has_bfloat16  # torch takes seconds, and is needed here alone

    return half if has_bfloat16("cpu") else single


OmegaConf.register_new_resolver("fast_float", fast_float, replace=True)


def compose_words(options: RecipeOptions, values: dict[str, Any]) -> DictConfig:
    """The configuration of a training before there is a run of it. Raises RunFailed."""
    settings = {"hardware": options.hardware, "research.run_dir": str(options.run_dir), **values}
    return _compose(options, [(key, value, "") for key, value in settings.items()])


def _refuse_unknown_protocol(options: RecipeOptions, words: list[str], name: str) -> None:
    """Raises RunFailed for a preset in whose protocol the tiny policy was not cold-started."""
    key, known = f"{name}/preset=", RECIPES[options.recipe].known
    chosen = [each.removeprefix(key) for each in words if each.startswith(key)]
    tiny = options.on_cpu and options.model is None and options.policy == "tiny"
    if (
        tiny
        and chosen
        and chosen[-1] not in known
        and (CONFIG_DIR / name / f"preset/{chosen[-1]}.yaml").exists()
    ):
        raise RunFailed(
            f"research.preset={chosen[-1]}: the tiny policy knows the protocols of {', '.join(known)}; give "
            "--model, or another recipe (train_search_r1.sh for Search-R1's)"
        )


def _verl_configs() -> str:
    """Where Hydra finds veRL's configuration. With pkg:// it would import veRL, which takes ten seconds."""
    spec = importlib.util.find_spec("verl")
    if spec is None or not spec.submodule_search_locations:
        raise RunFailed("veRL is not installed: bash recipes/setup_env.sh cpu|gpu")
    return f"hydra.searchpath={quoted([f'file://{spec.submodule_search_locations[0]}/trainer/config'])}"


def _set_ray(config: DictConfig, options: RecipeOptions) -> None:
    """One node has a Ray of its own, whatever else runs on the machine; several join a Ray cluster.

    The cluster's own resources count there, not those declared here. Its variables are those that every
    process of the run must have, on every node.
    """
    OmegaConf.set_struct(config, False)
    ray_init = config.ray_kwargs.ray_init
    environment = ray_init.runtime_env.env_vars
    environment[WEIGHT_TIMEOUT_VARIABLE] = str(config.research.weight_update_timeout)
    environment.TENSORBOARD_DIR = str(options.run_dir / "tensorboard")
    if options.on_cpu:
        # vLLM's threads: with a tiny model one core is left to the processes that feed it, or they wait for
        # one another. The actor, which runs alone, takes all cores (research/training/verl/cpu/engine.py).
        cores = os.cpu_count() or 1
        environment.OMP_NUM_THREADS = str(cores if options.policy == SMALL else max(1, cores - 1))
    ray_init.address = "local"
    if options.nodes > 1:
        joined = {"address": "auto", "runtime_env": ray_init.runtime_env, "num_cpus": None}
        config.ray_kwargs.ray_init = joined


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
