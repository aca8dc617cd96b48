"""The commands of a cold start: `python -m research.training cold-start --help`."""

import importlib
from typing import Any

import click

COMMANDS = {
    "model": "smollm2",
    "questions": "questions",
    "split": "split",
    "demonstrations": "demonstrations",
    "train": "sft",
    "corpus": "corpus",
}


class _Commands(click.Group):
    """Each command is imported when it is called: some load torch, which takes seconds."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module = importlib.import_module(f"research.training.cold_start.{COMMANDS[cmd_name]}")
        command: Any = getattr(module, cmd_name)
        return command if isinstance(command, click.Command) else None


@click.group("cold-start", cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
def cold_start() -> None:
    """Teach a small pretrained model to search, from gold decompositions of real questions."""
