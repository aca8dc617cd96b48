"""Command line: `python -m research.evaluation run|compare|report --help`."""

from contextlib import nullcontext
from pathlib import Path
from typing import Any

import click

from research.evaluation import command_line as cli
from research.evaluation.config import EvaluationError, compose_multihop, read_multihop, trained_retriever


@click.group(context_settings=cli.SETTINGS)
def main() -> None:
    """Score search agents on questions, with the loop of the training, intervals, and runs that resume.

    \b
    Examples:
      python -m research.evaluation run --model runs/mine/policy --corpus my.corpus.jsonl \\
          --datasets my.questions.jsonl
      python -m research.evaluation run --model http://127.0.0.1:8001 --retriever http://127.0.0.1:8000 \\
          --datasets hotpotqa,bamboogle --methods research,naive_rag --limit 500 --out runs/eval-7b
      python -m research.evaluation compare runs/eval-7b runs/eval-7b-before
    """


@main.command("run")
@click.option(
    "--model", "engine__model", required=True, metavar="DIR|NAME|URL", help="For vLLM, or a server."
)
@click.option(
    "--datasets", type=cli.NAMES, help="Names or files.  [default: hotpotqa,2wiki,musique,bamboogle]"
)
@click.option(
    "--methods", type=cli.NAMES, help="research, direct, naive_rag, ircot, iter_retgen.  [default: research]"
)
@click.option("--limit", type=click.IntRange(1), help="Questions per data set.  [default: all]")
@click.option(
    "--out", type=cli.PATH, help="Folder; one that was begun is resumed.  [default: runs/eval-TIME]"
)
@click.option("--retriever", metavar="URL", help="A running retrieval server.")
@click.option("--corpus", type=cli.FILE, help="Or passages to serve here: {id, contents} per line.")
@click.option("--encoder", help="For --corpus: hub name or folder.  [default: the training's, else minilm]")
@click.option("--index", help="For --corpus: kind of index.  [default: the training's, else flat]")
@click.option("--preset", help="File of research/config/preset.  [default: as the model was trained]")
@click.option("--tokenizer", "engine__tokenizer", help="Folder or name, if not the model's.")
@click.option("--judge", "judge__url", metavar="URL", help="OpenAI-compatible server of an LLM judge.")
@click.option("--judge-model", "judge__model", help="The model's name there.")
@click.argument("overrides", nargs=-1)
def run_multihop(
    out: Path | None,
    retriever: str | None,
    corpus: Path | None,
    encoder: str | None,
    index: str | None,
    overrides: tuple[str, ...],
    **options: Any,
) -> None:
    """Ask all questions, and write predictions.jsonl, metrics.json and report.html into a folder.

    OVERRIDES are key=value pairs of research/config/eval_multihop.yaml, for example sampling.temperature=0.7.
    The policy of a training run is evaluated with the prompt, protocol and limits of its training, unless
    --preset is given, and with its kind of index.
    """
    from research.evaluation.engines.identity import check_model
    from research.evaluation.run import evaluate
    from research.tools.service import serving

    if retriever and corpus:
        raise click.UsageError("give either --retriever or --corpus, not both")
    with cli.run_folder(out, "eval") as run_dir:
        values = [*cli.as_overrides(options), *overrides]
        trained = options["engine__model"] if options["preset"] is None else None
        # Mistakes first: building an index takes long.
        config = compose_multihop(["retriever.url=http://none", *values], trained)
        check_model(read_multihop(config).engine)
        needs_retriever = list(config.methods) != ["direct"]
        service = cli.service_of(corpus, encoder, index, trained_retriever(options["engine__model"]))
        served = serving(service) if service and needs_retriever else None
        with served or nullcontext(retriever) as url:
            if needs_retriever:
                config = compose_multihop([*values, *([f"retriever.url={url}"] if url else [])], trained)
            table, fault = evaluate(config, run_dir)
        click.echo(table)
        click.echo(f"\n{run_dir}: predictions.jsonl  metrics.json  report.html")
        if fault:
            raise EvaluationError(fault)


@main.command()
@click.argument("run_a", type=cli.FOLDER)
@click.argument("run_b", type=cli.FOLDER)
def compare(run_a: Path, run_b: Path) -> None:
    """Question by question: what changed from RUN_A to RUN_B, with intervals and p-values."""
    from research.evaluation.outputs.compare import compare_runs

    click.echo(compare_runs(run_a, run_b))


@main.command("report")
@click.argument("run_dir", type=cli.FOLDER)
def report_again(run_dir: Path) -> None:
    """Write RUN_DIR/report.html again."""
    from research.evaluation.outputs.report import write_report

    try:
        click.echo(write_report(run_dir))
    except OSError as error:
        raise click.ClickException(f"{run_dir} is not a finished evaluation: {error}") from error


if __name__ == "__main__":
    main()
