"""Command line: `python -m research.evaluation run|compare|report --help`."""

import os
from contextlib import ExitStack
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from research.evaluation.command_line import ending_well
from research.evaluation.config import EvaluationError, compose_multihop
from research.evaluation.outputs.folder import own_folder
from research.overrides import quoted
from research.places import RUNS

if TYPE_CHECKING:
    from research.evaluation.run import Outcome
    from research.evaluation.service import Service

PATH = click.Path(path_type=Path)
FOLDER = click.Path(exists=True, file_okay=False, path_type=Path)
FILE = click.Path(exists=True, dir_okay=False, path_type=Path)
# Options of the command line that are keys of the configuration.
KEYS = {
    "model": "engine.model",
    "tokenizer": "engine.tokenizer",
    "limit": "limit",
    "preset": "preset",
    "judge": "judge.url",
    "judge_model": "judge.model",
}
LISTS = {"datasets": "datasets", "methods": "methods"}


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
def main() -> None:
    """Score search agents on questions: one loop with training, intervals, runs that go on where they
    stopped.

    \b
    Examples:
      python -m research.evaluation run --model runs/mine/policy --corpus my.corpus.jsonl \\
          --datasets my.questions.jsonl
      python -m research.evaluation run --model http://127.0.0.1:8001 --retriever http://127.0.0.1:8000 \\
          --datasets hotpotqa,bamboogle --methods research,naive_rag --limit 500 --out runs/eval-7b
      python -m research.evaluation compare runs/eval-7b runs/eval-7b-before
    """


@main.command()
@click.option("--model", required=True, metavar="DIR|NAME|URL", help="For vLLM here, or a server's address.")
@click.option(
    "--datasets", metavar="A,B", help="Names or files.  [default: hotpotqa,2wiki,musique,bamboogle]"
)
@click.option(
    "--methods", metavar="A,B", help="research, direct, naive_rag, ircot, iter_retgen.  [default: research]"
)
@click.option("--limit", type=click.IntRange(1), help="Questions of each data set.  [default: all]")
@click.option("--out", type=PATH, help="Folder; one that is begun goes on.  [default: runs/eval-TIME]")
@click.option("--retriever", metavar="URL", help="A retrieval server that is running.")
@click.option("--corpus", type=FILE, help="Or passages to serve here: {id, contents} a line.")
@click.option("--encoder", default="minilm", show_default=True, help="Of --corpus: hub name or folder.")
@click.option("--index", default="flat", show_default=True, help="Of --corpus: kind of index.")
@click.option(
    "--preset", help="Protocol and prompt: a file of research/config/preset.  [default: the model's run's]"
)
@click.option("--tokenizer", help="Where it is, if neither with the model nor where the server says.")
@click.option("--judge", metavar="URL", help="OpenAI-compatible server of an LLM that judges the answers.")
@click.option("--judge-model", help="Its name there.")
@click.argument("overrides", nargs=-1)
def run(
    out: Path | None,
    retriever: str | None,
    corpus: Path | None,
    encoder: str,
    index: str,
    overrides: tuple[str, ...],
    **options: Any,
) -> None:
    """Ask all questions, and write predictions.jsonl, metrics.json and report.html into a folder.

    OVERRIDES are key=value words of research/config/eval_multihop.yaml, for example sampling.temperature=0.7.
    The policy of a training run is evaluated by the prompt, protocol and limits it was trained with, if
    --preset says nothing else.
    """
    from research.evaluation.service import Service

    if retriever and corpus:
        raise click.UsageError("--retriever and --corpus: one of them")
    run_dir = out or RUNS / f"eval-{datetime.now():%Y%m%d-%H%M%S}"
    with ending_well(run_dir):
        words = [*_words(options), *overrides]
        trained = options["model"] if options["preset"] is None else None
        service = Service(corpus, encoder, index) if corpus else None
        table, fault = _evaluate(words, trained, retriever, service, run_dir)
        click.echo(table)
        click.echo(f"\n{run_dir}: predictions.jsonl  metrics.json  report.html")
        if fault:
            raise EvaluationError(fault)


@main.command()
@click.argument("run_a", type=FOLDER)
@click.argument("run_b", type=FOLDER)
def compare(run_a: Path, run_b: Path) -> None:
    """Question by question: what changed from RUN_A to RUN_B, with intervals and p-values."""
    from research.evaluation.outputs.compare import compare as comparison

    try:
        click.echo(comparison(run_a, run_b))
    except EvaluationError as error:
        raise click.ClickException(str(error)) from error


@main.command()
@click.argument("run_dir", type=FOLDER)
def report(run_dir: Path) -> None:
    """Write RUN_DIR/report.html again."""
    from research.evaluation.outputs.report import write_report

    try:
        click.echo(write_report(run_dir))
    except OSError as error:
        raise click.ClickException(f"{run_dir} is no finished evaluation: {error}") from error


def _evaluate(
    words: list[str], trained: str | None, retriever: str | None, service: "Service | None", run_dir: Path
) -> "Outcome":
    """Evaluate, with the retriever at that address or a `service` for as long as it takes."""
    from research.evaluation.run import evaluate
    from research.evaluation.service import serving

    with ExitStack() as stack:
        # Mistakes first: building an index is long.
        own_folder(run_dir)
        config = compose_multihop(["retriever.url=http://none", *words], trained)
        if list(config.methods) != ["direct"]:  # which asks no retriever
            url = retriever or (stack.enter_context(serving(service)) if service else None)
            config = compose_multihop([*words, *([f"retriever.url={url}"] if url else [])], trained)
        return evaluate(config, run_dir)


def _words(options: dict[str, Any]) -> list[str]:
    """The given options as key=value words."""
    words = [f"{key}={quoted(options[name])}" for name, key in KEYS.items() if options[name] is not None]
    for name, key in LISTS.items():
        if options[name] is not None:
            words.append(f"{key}={quoted(_listed(options[name]))}")
    return words


def _listed(text: str) -> list[str]:
    """What stands between commas; the name of a file that is there may have commas itself."""
    parts, found = text.split(","), []
    while parts:
        heads = (",".join(parts[:count]) for count in range(len(parts), 0, -1))
        found.append(next((head for head in heads if os.path.isfile(head)), parts[0]))
        parts = parts[found[-1].count(",") + 1 :]
    return found


if __name__ == "__main__":
    main()
