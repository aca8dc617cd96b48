"""Push a run's exported policy to the hub, with a model card; repeatable.

    python -m research.training push RUN_DIR OWNER/NAME

HF_ENDPOINT, HF_HOME, HF_TOKEN and HF_HUB_OFFLINE work as everywhere. All files go up in one commit, so nobody
finds half a policy; the next push does not resend what an interrupted one has sent.
"""

import shlex
import sys
from collections.abc import Iterator
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any

import click
import httpx
from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, constants, errors, get_token

from research.files import write_atomically
from research.places import TRAIN
from research.training.run.export import ADAPTER
from research.training.run.options import REPOSITORY, RecipeOptions, RunFailed
from research.training.run.sources import RECIPES
from research.training.watch.card import model_card, without_folders

NO_TOKEN = "there is no token of the hub: run `hf auth login`, or set HF_TOKEN"
# Where it ran and where its files went, which the card need not show.
NOT_TOLD = {"run_dir", "recipe", "overrides", "push_to_hub", "track", "supervised_control"}
NOT_TOLD |= {"retriever_url", "retriever_host", "retriever_port"}


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("run_dir", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.argument("name", type=REPOSITORY)
def push(run_dir: Path, name: str) -> None:
    """Push RUN_DIR/policy with a model card to the hub, as NAME or OWNER/NAME; made private if it is new."""
    push_policy(run_dir.absolute(), name)


def faults(options: RecipeOptions, config: Any) -> Iterator[str]:
    """Why there could be no push at the end of the run, one line each; asks nobody."""
    if options.push_to_hub is None:
        return
    if get_token() is None:
        yield f"--push-to-hub: {NO_TOKEN}"
    if config.trainer.save_freq <= 0:
        yield "--push-to-hub: no policy will be written: trainer.save_freq is not above 0"


def push_policy(run_dir: Path, name: str) -> None:
    """Write the card into the policy's folder, and push the folder.

    Raises:
        RunFailed: with the reason and the command that tries again, in one line.
    """
    try:
        if get_token() is None:
            raise RunFailed(NO_TOKEN)
        card = model_card(run_dir, name, command_line(RecipeOptions.load(run_dir / "recipe.json")))
        write_atomically(run_dir / "policy" / "README.md", card)
        click.echo(f"- push {run_dir / 'policy'} to {constants.ENDPOINT}/{name}")
        click.echo(f"  {_commit(run_dir / 'policy', name)}")
    except Exception as error:  # whatever it is, the policy is there
        again = shlex.join([sys.executable, "-m", "research.training", "push", str(run_dir), name])
        raise RunFailed(f"nothing was pushed to {name}: {_reason(error)}; to try again: {again}") from error


def _commit(policy: Path, name: str) -> str:
    """The address of the commit. Raises whatever huggingface_hub raises."""
    api = HfApi()
    # Users can make it public on the hub; an existing repository keeps its visibility.
    repository = api.create_repo(name, private=True, exist_ok=True).repo_id
    paths = sorted(path for path in policy.rglob("*") if path.is_file() and path.name != "step.txt")
    files = {path.relative_to(policy).as_posix(): path for path in paths}
    adding = [CommitOperationAdd(name, _content(path)) for name, path in files.items()]
    # Parts of an earlier push that this one has not would be loaded with it; other files are the user's.
    gone = [name for name in api.list_repo_files(repository) if _is_weights(name) and name not in files]
    changes: list[Any] = [*adding, *map(CommitOperationDelete, gone)]
    step = (policy / "step.txt").read_text(encoding="utf-8").strip().rpartition("_")[2]
    return str(api.create_commit(repository, changes, commit_message=f"The policy of step {step}").commit_url)


def _content(path: Path) -> Path | bytes:
    """The file; of an adapter's description, without the folder of the model that it belongs to."""
    if path.name != "adapter_config.json":
        return path
    return without_folders(path.read_text(encoding="utf-8")).encode()


def _is_weights(name: str) -> bool:
    return name.startswith(("model-", "model.", f"{ADAPTER}/"))


def _reason(error: Exception) -> str:
    if isinstance(error, click.ClickException):
        return error.format_message()
    if isinstance(error, errors.HfHubHTTPError):
        said = error.server_message or error.response.reason_phrase
        return f"the hub answered with status {error.response.status_code} ({' '.join(str(said).split())})"
    if isinstance(error, httpx.HTTPError | httpx.InvalidURL):
        return f"no connection to {constants.ENDPOINT} ({error})"
    return " ".join(str(error).split()) or type(error).__name__


def command_line(options: RecipeOptions) -> str:
    """The command of a run: the options that were given, except those about where it ran."""
    words = []
    for each in fields(options):
        value = getattr(options, each.name)
        if each.name not in NOT_TOLD and (each.default is MISSING or value != each.default):
            questions = RECIPES[options.recipe].questions_option
            name = questions if each.name == "questions" else f"--{each.name.replace('_', '-')}"
            words += [name, str(value)]
    return " ".join([TRAIN.format(options.recipe), shlex.join([*words, *options.overrides])])
