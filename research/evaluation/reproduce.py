"""A released checkpoint, evaluated as by its authors, beside their figures.

bash recipes/reproduce.sh agentrl/ReSearch-Qwen-7B-Instruct --dry-run
"""

import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import click

from research.datasets.bright import REPO as BRIGHT_REPO
from research.datasets.flashrag import REPO as QUESTIONS_REPO
from research.datasets.hub import revision_of
from research.datasets.wiki18 import CORPUS_REPO, INDEX_REPO
from research.evaluation import command_line as cli
from research.evaluation.config import compose_multihop
from research.evaluation.outputs.summary import cell_text, read_summary
from research.evaluation.released import FAMILIES, Family, family_of, name_of, preset_of, published_of
from research.places import CACHE, RUNS
from research.report.tables import markdown_table
from research.tools.service import serving_index

WIKI = CACHE / "wiki18"
INDEX = CACHE / "index-wiki18-e5"
ENCODER = "intfloat/e5-base-v2"


@click.command(context_settings=cli.SETTINGS)
@click.argument("checkpoint")
@click.option(
    "--family",
    "named",
    type=click.Choice([each.name for each in FAMILIES]),
    help="Family, if the name does not show it.",
)
@click.option("--model", help="Where it is: a folder, or the URL of a server.  [default: CHECKPOINT]")
@click.option(
    "--retriever", metavar="URL", help="A running retrieval server over the 2018 Wikipedia with E5."
)
@click.option(
    "--revision", help="Commit of the dataset of the questions, or of BRIGHT.  [default: a pinned one]"
)
@click.option("--limit", type=click.IntRange(1), help="Questions per data set.  [default: all]")
@click.option(
    "--out", type=cli.PATH, help="Folder; one that was begun is resumed.  [default: by the checkpoint]"
)
@click.option("--dry-run", is_flag=True, help="Print everything it would do; needs no network and no GPU.")
@click.argument("overrides", nargs=-1)
def main(
    checkpoint: str,
    named: str | None,
    model: str | None,
    retriever: str | None,
    revision: str | None,
    limit: int | None,
    out: Path | None,
    dry_run: bool,
    overrides: tuple[str, ...],
) -> None:
    """Evaluate CHECKPOINT (a hub name, or a folder of that name) as its authors did, beside their figures.

    OVERRIDES are key=value words of the evaluation's configuration. Finished work is kept, and the next run
    resumes from it.
    """
    family = next((each for each in FAMILIES if each.name == named), None) or family_of(checkpoint)
    if family is None:
        raise click.ClickException(f"{checkpoint}: not a released checkpoint known here; give --family")
    checkpoint, bright = checkpoint.rstrip("/"), family.rewrites
    _check(bright, model, retriever, limit, out)
    out = out or RUNS / f"reproduce-{name_of(checkpoint)}"
    evaluate = _evaluation(family, checkpoint, model or checkpoint, revision, limit, out) + list(overrides)
    prepare = [] if bright else _prepare(family, revision, retriever)
    if dry_run:
        click.echo(_plan(family, checkpoint, prepare, evaluate, revision, retriever))
        return
    if not bright:  # so that what cannot be fetched is reported before 79 GB are downloaded
        words = (f"preset={preset_of(family, checkpoint)}", "engine.model=x", "retriever.url=http://none")
        compose_multihop([*words, *overrides])
    with cli.run_folder(out, "reproduce"):
        for command in prepare:
            _run(command)
        _evaluate(evaluate, retriever, bright)
    click.echo(beside_published(family, checkpoint, read_summary(out)))


def _check(
    bright: bool, model: str | None, retriever: str | None, limit: int | None, out: Path | None
) -> None:
    """Refuse options that would fail, before anything is fetched."""
    if bright and (limit or retriever):
        raise click.UsageError("BRIGHT is evaluated whole, on its own indexes: no --limit, no --retriever")
    if model and model.startswith((".", "/", "~")) and not Path(model).expanduser().is_dir():
        raise click.ClickException(f"--model: there is no folder {model}")
    if retriever and not retriever.startswith(("http://", "https://")):
        raise click.ClickException(f"--retriever: {retriever} is no URL; it begins with http:// or https://")
    if out and out.exists() and not out.is_dir():
        raise click.ClickException(f"--out: {out} is no folder")


def _evaluate(command: list[str], retriever: str | None, bright: bool) -> None:
    """Run the evaluation, with its own server if none is named; BRIGHT's serves its own indexes."""
    if bright or retriever:
        _run([*command, *(["--retriever", retriever] if retriever else [])])
    else:
        with serving_index(INDEX) as url:
            _run([*command, "--retriever", url])


def _prepare(family: Family, revision: str | None, retriever: str | None) -> list[list[str]]:
    """Commands that fetch questions of a revision, and the 2018 Wikipedia with its E5 index."""
    names, commands = ",".join(family.datasets), []
    if revision:
        words = ["--out", str(_questions(revision)), "--datasets", names, "--revision", revision]
        commands.append(_python("research.datasets.flashrag", *words))
    if retriever is None:
        vectors = str(WIKI / "e5_Flat.index")
        build = ["build", str(WIKI / "wiki-18.jsonl"), str(INDEX), "--encoder", ENCODER]
        commands.append(_python("research.datasets.wiki18", "--out", str(WIKI)))
        commands.append(_python("retriever_server", *build, "--faiss-index", vectors))
    return commands


def _questions(revision: str) -> Path:
    return CACHE / f"questions-{revision.replace('/', '_')}"


def _evaluation(
    family: Family, checkpoint: str, model: str, revision: str | None, limit: int | None, out: Path
) -> list[str]:
    common = ["--model", model, "--out", str(out)]
    if family.rewrites:
        words = ["--prompt", family.prompt, "--retriever", "bm25_query_weighted", f"protocol={family.prompt}"]
        words += [f"revision={revision}"] if revision else []
        return _python("research.evaluation.bright", "run", *common, *words)
    sets = [
        str(_questions(revision) / f"{each}.questions.jsonl") if revision else each
        for each in family.datasets
    ]
    words = ["--preset", preset_of(family, checkpoint), "--datasets", ",".join(sets)]
    words += ["--limit", str(limit)] if limit else []
    return _python("research.evaluation", "run", *common, *words)


def _python(module: str, *arguments: str) -> list[str]:
    return [sys.executable, "-m", module, *arguments]


def _run(command: list[str]) -> None:
    if code := subprocess.run(command).returncode:
        raise click.ClickException(f"{shlex.join(command[1:])} ended with {code}: see above")


def _plan(
    family: Family,
    checkpoint: str,
    prepare: list[list[str]],
    evaluate: list[str],
    revision: str | None,
    retriever: str | None,
) -> str:
    """All that a run would do, as text."""
    data = BRIGHT_REPO if family.rewrites else QUESTIONS_REPO
    lines = [
        f"{checkpoint}: {family.name}",
        f"questions: {data}, revision {revision_of(data, revision)}: {', '.join(family.datasets)}",
    ]
    if not family.rewrites:
        lines.append(f"retriever: {retriever or f'{_wiki18()}, {ENCODER}, exact search'}")
    lines += [f"  {shlex.join(each[1:])}" for each in (*prepare, evaluate)]
    lines += ["published (" + family.source + "):", *_published_lines(published_of(family, checkpoint))]
    return "\n".join([*lines, "what still differs:", *(f"  - {each}" for each in family.remaining)])


def _wiki18() -> str:
    return " and ".join(f"{repo}, revision {revision_of(repo)}" for repo in (CORPUS_REPO, INDEX_REPO))


def _published_lines(published: Any) -> list[str]:
    return [f"  {name}: {value}" for name, value in published.items()] or ["  no figure is known here"]


def beside_published(family: Family, checkpoint: str, summary: dict[str, Any]) -> str:
    """Our figures beside the published ones, as a Markdown table, and what still differs."""
    published, bright = published_of(family, checkpoint), family.rewrites
    label, metric = ("task", "ndcg@10") if bright else ("dataset", "em")
    rows = [["data set", "here, with its 95% interval", "published", "difference"]]
    for row in summary["results"]:
        figure, there = row[metric], published.get(row[label])
        ours = figure["mean"] * (100 if bright else 1)
        theirs = ["-", "-"] if there is None else [f"{there}", f"{ours - there:+.{1 if bright else 3}f}"]
        rows.append([row[label], cell_text(metric, figure, percent=bright), *theirs])
    remaining = "\n".join(f"- {each}" for each in family.remaining)
    return f"{checkpoint}, published: {family.source}\n\n{markdown_table(rows)}\n\nWhat differs:\n{remaining}"


if __name__ == "__main__":
    main()
