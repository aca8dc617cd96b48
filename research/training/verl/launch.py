"""Train a prepared run folder with veRL; the recipe calls this.

    python -m research.training.verl.launch RUN_DIR

Reads RUN_DIR/config.yaml, the resolved configuration, and resumes from the newest checkpoint if there is one.
Leaves the cause of a failure as one line in RUN_DIR/logs/error.txt.
"""

import os
import re
import sys
import traceback
from pathlib import Path
from typing import Any

import click
from omegaconf import DictConfig, OmegaConf

from research.processes import die_with_parent, raise_on_terminate
from research.tools.search import TOKEN_VARIABLE
from research.training.config import read_research_config
from research.training.verl import tracking

# In the message of Ray's OutOfMemoryError, which goes on about its own settings.
MEMORY_FULL = re.compile(r"Memory on the node .*? was (\S+ used / \S+) limit")


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("run_dir", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option(
    "--die-with-parent", "bound", is_flag=True, help="End when the process that started this one ends."
)
def main(run_dir: Path, bound: bool) -> None:
    """Train the run prepared in RUN_DIR (its config.yaml), from its newest checkpoint if it has one."""
    if bound:
        die_with_parent()
    raise_on_terminate()
    try:
        train(DictConfig(OmegaConf.load(run_dir / "config.yaml")))
    except Exception as error:
        traceback.print_exc()
        (run_dir / "logs").mkdir(exist_ok=True)
        (run_dir / "logs" / "error.txt").write_text(root_cause(error) + "\n", encoding="utf-8")
        sys.exit(1)


def train(config: DictConfig) -> None:
    """Run GRPO on Ray until the last step.

    Raises:
        ValueError: the configuration is not valid for veRL or for us. Errors of workers arrive as Ray's.
    """
    os.environ.update(config.ray_kwargs.ray_init.get("runtime_env", {}).get("env_vars", {}))
    validate(config)
    from verl.trainer.main_ppo import run_ppo

    from research.training.verl.task_runner import TaskRunner

    if secrets := tracking.secrets(config) | _token():
        _start_ray_with(secrets, config)
    run_ppo(config, task_runner_class=TaskRunner)


def _token() -> dict[str, str]:
    return {TOKEN_VARIABLE: os.environ[TOKEN_VARIABLE]} if os.environ.get(TOKEN_VARIABLE) else {}


def _start_ray_with(secrets: dict[str, str], config: DictConfig) -> None:
    """Start Ray as run_ppo does, with the retriever's token and the trackers' keys for all nodes' workers.

    run_ppo prints the options of Ray, and others may read config.yaml: a secret belongs in neither.
    """
    import ray
    from verl.trainer.constants_ppo import get_ppo_ray_runtime_env

    options: Any = OmegaConf.to_container(config.ray_kwargs.ray_init)
    defaults: Any = OmegaConf.merge(get_ppo_ray_runtime_env(config), options["runtime_env"])
    options["runtime_env"] = OmegaConf.to_container(defaults)
    environment = {"TRANSFER_QUEUE_ENABLE": "1"} if config.transfer_queue.enable else {}
    options["runtime_env"]["env_vars"] |= environment | secrets
    ray.init(**options)


def validate(config: DictConfig) -> None:
    """Check the configuration with veRL's own checks and ours. Needs no accelerator.

    Raises:
        ValueError, AssertionError: what is wrong with it.
    """
    read_research_config(config.research)
    from verl.plugin.platform.platform_manager import PlatformRegistry
    from verl.trainer.ppo.utils import need_critic, need_reference_policy
    from verl.utils.config import validate_config

    if config.distillation.enabled:
        raise ValueError("distillation is not supported: the agent loop knows no teacher")
    if PlatformRegistry.get("cpu") is None:
        raise ValueError("veRL did not load this project's plugin: install the project (pip install -e .)")
    validate_config(
        config=config, use_reference_policy=need_reference_policy(config), use_critic=need_critic(config)
    )


def root_cause(error: BaseException) -> str:
    """The innermost error of a chain of Ray errors, as one line."""
    cause: Any = error
    while getattr(cause, "cause", None) is not None or cause.__cause__ is not None:
        cause = getattr(cause, "cause", None) or cause.__cause__
    if full := MEMORY_FULL.search(str(cause)):
        return (
            f"the machine's memory is full ({full[1]}), so Ray ended the run: end other programs, then "
            "--resume, or start again with fewer samples or a smaller model"
        )
    lines = [line.strip() for line in str(cause).splitlines() if line.strip()]
    return f"{type(cause).__name__}: {lines[-1] if lines else ''}"


if __name__ == "__main__":
    main()
