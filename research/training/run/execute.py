"""Carry out a plan: run its commands in order, watch the retriever and the training, leave nothing behind."""

import json
import os
import shlex
import shutil
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

import click
import psutil
from omegaconf import DictConfig, OmegaConf

from research import processes
from research.datasets.hub import free_space, size_text
from research.errors import warn
from research.files import write_atomically
from research.places import TRAIN
from research.processes import finish, start
from research.training.config import headline_of, load_config, read_research_config
from research.training.rows import settle, total_steps
from research.training.run import hub
from research.training.run.export import export, export_command
from research.training.run.index import version_of
from research.training.run.options import Command, RecipeOptions, RunFailed, gpu_memory, module_command
from research.training.run.plan import RunPlan, compose_config
from research.training.run.preflight import (
    checkpoint_faults,
    file_problems,
    free_port,
    problems,
)
from research.training.run.retriever_keeper import RetrieverKeeper
from research.training.run.small_policy import SMALL, supervised_control
from research.training.run.summary import print_summary
from research.training.run_files import (
    forget_steps_after,
    latest_checkpoint,
    mend_tracker,
    read_metrics,
    record_revision,
    rollout_error,
)
from research.training.sizes.fit import Fit, fit_to_model
from research.training.sizes.memory import as_table
from research.training.sizes.wikipedia import card_memory_of_index, memory_of_index
from research.training.verl import tracking
from research.training.watch.paired import SUPERVISED
from research.training.watch.progress import StepPrinter
from research.training.watch.table import HeldOut, note_controls
from research.training.watch.validations import stopped_early

FULL_DISK = 10**7  # bytes: no checkpoint fits any more, and a failed write may leave some free


def show(plan: RunPlan) -> None:
    """Print the resolved configuration and every command, after veRL's own validation. Runs nothing.

    Raises:
        RunFailed: veRL or this project refuses the configuration.
    """
    plan = plan.on_port(plan.options.retriever_port or 8000)
    config = compose_config(plan)
    fit = _fit(plan, config)
    faults = [
        *problems(plan),
        *file_problems(plan, config),
        *checkpoint_faults(plan.options.run_dir, config),
        *tracking.faults(config),
        *hub.faults(plan.options, config),
    ]
    os.environ.update(config.ray_kwargs.ray_init.runtime_env.env_vars)
    from research.training.verl.launch import validate

    try:
        validate(config)
    except (ValueError, AssertionError) as error:
        raise RunFailed(f"the configuration is not valid: {error}") from error
    click.echo(OmegaConf.to_yaml(config))
    prepare = plan.prepare + [each for each in plan.build if each not in plan.prepare]
    commands = [*prepare, plan.serve, plan.train]
    commands.append(export_command(plan.options.run_dir, Path("CHECKPOINT")))
    if plan.options.supervised_control:
        commands += [*control_commands(plan), _judge_command(plan)]
    commands.append(_push_command(plan.options))
    for command in filter(None, commands):
        done = "  # already done" if command.is_done else ""
        click.echo(f"# {command.task}{done}\n{shlex.join(command.argv)}")
    if fit.parts:
        there = "assumed cards, this machine" if fit.card and not gpu_memory() else "there is"
        click.echo("\n" + as_table(fit.parts, fit.card, psutil.virtual_memory().total, there))
    for fault in dict.fromkeys([*faults, *fit.faults]):
        click.echo(f"# on this machine it would not start: {fault}")


def _fit(plan: RunPlan, config: DictConfig) -> Fit:
    searched = memory_of_index(plan), card_memory_of_index(plan)
    return fit_to_model(plan.options, plan.sized_model, config, *searched)


def _check_size(plan: RunPlan, config: DictConfig) -> None:
    """Refuse a model that does not fit, warn of one that may not; returns whether there was one to judge."""
    fit, free = _fit(plan, config), psutil.virtual_memory().available
    _refuse(fit.faults)
    if fit.main_memory > free:
        warn(
            f"the run takes about {size_text(fit.main_memory)} of main memory, and {size_text(free)} is "
            "free now: the system may end it for lack of memory"
        )


def execute(plan: RunPlan) -> None:
    """Do the whole run, or continue where an earlier one in this folder stopped.

    Raises:
        RunFailed: with the reason and where to look, in one line.
    """
    _refuse(problems(plan))
    processes.adopt_orphans()
    processes.raise_on_terminate()
    # Threads that spin while they wait take the cores from the other processes of the run.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    options = plan.options
    # Held until the end: minutes may pass before the retriever listens there, and it may be restarted.
    with free_port(options.retriever_host, options.retriever_port if plan.serve else 0) as port:
        plan = plan.on_port(port)
        config = compose_config(plan)
        if latest_checkpoint(options.run_dir) is None:
            _refuse(file_problems(plan, config))
        _refuse([*checkpoint_faults(options.run_dir, config)])
        _check_size(plan, config)
        _refuse([*tracking.faults(config), *hub.faults(options, config)])
        with processes.alone_in(options.run_dir, RunFailed):
            _carry_out(plan, config)


def _refuse(faults: Sequence[str]) -> None:
    if faults:
        raise RunFailed("cannot start:\n  " + "\n  ".join(faults))


def _carry_out(plan: RunPlan, config: DictConfig) -> None:
    """The whole run. However it ends, no process is left; after an interruption, print how to resume."""
    run_dir = plan.options.run_dir
    try:
        plan.options.save(run_dir / "recipe.json")
        record_revision(run_dir)
        _prepare_and_train(plan, config)
        if config.trainer.save_freq > 0:
            export(run_dir)
        else:
            click.echo("- no checkpoint and no policy were written: trainer.save_freq is not above 0")
        if plan.options.supervised_control:
            _supervised_control(plan)
        print_summary(run_dir)
        if plan.options.push_to_hub:
            hub.push_policy(run_dir, plan.options.push_to_hub)
    except BaseException as error:
        if not isinstance(error, Exception):
            click.echo("\nstopping ...", err=True)
            _print_how_to_resume(plan.options)
        raise
    finally:
        processes.stop_descendants()


def _forget_other_preparations(plan: RunPlan) -> None:
    """Remove what was prepared in the run folder from other options, or from files changed since."""
    run_dir, files = plan.options.run_dir, [*plan.options.splits.values(), plan.options.corpus]
    made_of = [command.argv[1:] for command in [*plan.prepare, *plan.build]]
    made_of.append([f"{path} {version_of(path)}" for path in files if path])
    text, note = json.dumps(made_of, indent=1), run_dir / "prepared.json"
    if not note.exists() or note.read_text(encoding="utf-8") != text:
        for command in [*plan.prepare, *plan.build]:
            path = command.creates
            if path and path.is_relative_to(run_dir) and path.exists():
                click.echo(f"{path}: made of other options or files; removed")
                shutil.rmtree(path) if path.is_dir() else path.unlink()
    write_atomically(note, text)


def _prepare_and_train(plan: RunPlan, config: DictConfig) -> None:
    """Do what is left of the run: nothing if it is finished."""
    run_dir = plan.options.run_dir
    if warning := mend_tracker(run_dir):
        click.echo(warning, err=True)
    checkpoint, rows = latest_checkpoint(run_dir), read_metrics(run_dir)
    total = total_steps(config, run_dir)
    if checkpoint is None:  # nothing was trained on the rows that may be there
        shutil.rmtree(run_dir / "data", ignore_errors=True)
        _forget_other_preparations(plan)
    if stopped_early(rows):
        click.echo(f"{run_dir} is finished: research.early_stop ended it at step {rows[-1]['step']:.0f}.")
        return
    evaluated = any(row["step"] == checkpoint for row in rows)
    if checkpoint is not None and total is not None and checkpoint >= total and evaluated:
        click.echo(f"{run_dir} is finished: step {checkpoint} of {total}. Give a higher --steps to continue.")
        return
    # Held-out questions before the first step; on resume only if that evaluation did not finish. That of the
    # last step is made up for in any case: the run is not finished without it.
    if checkpoint is not None:
        is_last = total is not None and checkpoint >= total
        config.trainer.val_before_train = not evaluated and (config.trainer.val_before_train or is_last)
    _save(config, run_dir)
    for command in [*plan.prepare, *plan.build]:
        _run(command)
    # The trainer forgets them too, but late: until then they would be shown as steps of this run.
    forget_steps_after(run_dir, -1 if checkpoint is None else checkpoint)
    settle(config, run_dir)
    _save(config, run_dir)
    _train(plan, plan.train, config, "training")
    rows, total = read_metrics(run_dir), config.trainer.total_training_steps
    step = max((int(row["step"]) for row in rows), default=0)
    if stopped_early(rows):
        click.echo(f"- stopped at step {step} of {total}: no better validation (research.early_stop)")
    elif step < total:
        raise RunFailed(f"the training ended at step {step} of {total}; see {run_dir / 'logs' / 'train.log'}")


def _save(config: DictConfig, folder: Path) -> None:
    write_atomically(folder / "config.yaml", OmegaConf.to_yaml(config))


def _print_how_to_resume(options: RecipeOptions) -> None:
    step = latest_checkpoint(options.run_dir)
    kept = f"the checkpoint of step {step} is kept" if step is not None else "no checkpoint was written yet"
    click.echo(f"{kept}; resume with: {resume_command(options)}", err=True)


def resume_command(options: RecipeOptions) -> str:
    """The shell command that resumes a run; by default a recipe takes the machine's hardware."""
    words = ("--hardware", options.hardware, "--resume", "--run-dir", str(options.run_dir))
    return f"{TRAIN.format(options.recipe)} {shlex.join(words)}"


def _run(command: Command) -> None:
    """One preparing command, its output on the terminal."""
    if command.is_done:
        click.echo(f"- {command.task}: already done")
        return
    click.echo(f"- {command.task}")
    # It has the cores for itself: its threads may wait some 50 us for one another before they fall asleep,
    # which makes the cold start a fifth quicker.
    environment = {"GOMP_SPINCOUNT": "20000", **os.environ}
    code = finish(subprocess.Popen(command.argv, stdin=subprocess.DEVNULL, env=environment), patience=5)
    if code != 0:
        raise RunFailed(f"could not {command.task} (exit code {code}); the reason is above")


# -------------------------------------------------------------------------------------- retriever, training


def _train(plan: RunPlan, command: Command, config: DictConfig, name: str) -> None:
    """Serve, run the training of the configuration's folder, and print its steps until its process ends."""
    folder, total = Path(config.research.run_dir), config.trainer.total_training_steps
    guards, log = read_research_config(config.research).guards, folder / "logs" / "train.log"
    whose = "" if folder == plan.options.run_dir else name
    printer = StepPrinter(folder, total, guards, headline_of(folder), whose)
    with RetrieverKeeper(plan) as keeper:
        (folder / "logs" / "error.txt").unlink(missing_ok=True)
        rollout_error(folder).unlink(missing_ok=True)
        click.echo(
            f"- {command.task}: Ray, veRL and vLLM start, one to five minutes, then the held-out questions "
            f"are asked; log: {log}"
        )
        process = start(command.argv, log)
        try:
            keeper.wait_until_healthy(process)  # while its many processes start
            while (code := process.poll()) is None:
                time.sleep(0.5)
                keeper.keep_alive()
                printer.print_new()
            printer.print_new()
        finally:
            processes.stop(process, patience=20)
    if code != 0:
        _print_how_to_resume(plan.options)
        raise RunFailed(f"{name} failed: {_cause(folder)}; see {log}")


def _supervised_control(plan: RunPlan) -> None:
    """A control: a policy trained on demonstrations alone, for as long as cold start and GRPO took.

    It shows whether reinforcement learning was worth it, on the same test questions. Its results go into
    RUN_DIR/controls.jsonl, and from there into the table and the report as rows of their own.
    """
    run_dir, folder = plan.options.run_dir, plan.options.run_dir / SUPERVISED
    # Evaluations and start-up do not count.
    seconds = sum(row.get("timing_s/step", 0.0) for row in read_metrics(run_dir))
    if plan.options.policy != SMALL:
        cold_start = Path(str(plan.inputs.model)) / "cold_start.json"
        seconds += json.loads(cold_start.read_text(encoding="utf-8"))["seconds"]
    _forget_shorter_control(folder, f"{seconds:.0f}")
    if not read_metrics(folder):
        for command in control_commands(plan, f"{seconds:.0f}"):
            _run(command)
        _judge_control(plan, folder)
    results = {source: each for (control, source), each in HeldOut(folder).results(0).items() if not control}
    note_controls(run_dir, SUPERVISED, results)


def _judge_control(plan: RunPlan, folder: Path) -> None:
    """Ask the control's policy the test questions of the run, by the run's own configuration."""
    config = load_config(plan.options.run_dir / "config.yaml")
    config.research.run_dir, config.actor_rollout_ref.model.path = str(folder), str(folder / "policy")
    config.trainer.val_only = config.trainer.val_before_train = True
    config.trainer.resume_mode = "disable"
    _save(config, folder)
    _train(plan, _judge_command(plan), config, "the supervised control")
    if (searched := plan.options.run_dir / "retriever.json").exists():  # for evaluations of this policy
        shutil.copy(searched, folder)


def _forget_shorter_control(folder: Path, seconds: str) -> None:
    """Remove a control that learned for another time: the run was continued."""
    note = folder / "seconds.txt"
    if note.exists() and note.read_text(encoding="utf-8") != seconds:
        click.echo(f"- {folder} learned for {note.read_text(encoding='utf-8')} s, not {seconds} s; removed")
        shutil.rmtree(folder)
    write_atomically(note, seconds)


def control_commands(plan: RunPlan, seconds: str = "SECONDS") -> list[Command]:
    """Train the control: for as long as GRPO took, plus the cold start if it begins from nothing."""
    folder = plan.options.run_dir / SUPERVISED
    if plan.options.policy == SMALL:
        return supervised_control(plan.inputs, folder, seconds, plan.build[-1] if plan.serve else None)
    policy, task = folder / "policy", f"train a policy on clean demonstrations for {seconds} s"
    words = ("--out", policy, "--clean", "--seconds", seconds, "--seed", plan.options.seed)
    return [module_command(task, "research.datasets.mini.policy", *words, creates=policy)]


def _judge_command(plan: RunPlan) -> Command:
    folder = plan.options.run_dir / SUPERVISED
    return module_command(
        "judge the supervised control", "research.training.verl.launch", folder, "--die-with-parent"
    )


def _push_command(options: RecipeOptions) -> Command | None:
    if options.push_to_hub is None:
        return None
    words = ("push", options.run_dir, options.push_to_hub)
    return module_command("push the policy to the hub", "research.training", *words)


def _cause(run_dir: Path) -> str:
    """The error that the process left. On a full disk there often is none, or one that is not the cause."""
    path, free = run_dir / "logs" / "error.txt", free_space(run_dir)
    error = path.read_text(encoding="utf-8").strip() if path.exists() else ""
    full = f"the disk of {run_dir} is full ({size_text(free)} are free)" if free < FULL_DISK else ""
    return "; ".join(filter(None, (full, error))) or "its process ended without an error message"
