"""Training tasks for query reasoners from questions of StackExchange: filtered, free of BRIGHT, split.

    python data/prepare_rqr.py biology.jsonl.gz math.parquet --bright bright.examples.jsonl --out data/rqr

Input rows: research/datasets/stack_exchange/dump.py. Written, all at once:
  train.parquet, dev.parquet   tasks (datasets/rewriting_tasks.py), no question and no positive on both sides
  corpus.jsonl                 all positive texts as passages, for an index that retrieval_gain searches
  report.json                  what became of every row, duplicates with their partners, options, fingerprints
"""

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import click
from tqdm import tqdm

from research.datasets.json_rows import read_rows
from research.datasets.rewriting_tasks import RewritingTask, write_tasks
from research.datasets.stack_exchange.dump import Post, Reading, read_posts
from research.datasets.stack_exchange.generated_positives import Asking, Generated, generate
from research.datasets.stack_exchange.near_duplicates import BAR_PAUSE_S, KnownTexts
from research.datasets.stack_exchange.selection import Draw, Filters, Tally, split_tasks, without_duplicates
from research.errors import DataError
from research.files import filling

TRAIN, DEV, CORPUS, REPORT = "train.parquet", "dev.parquet", "corpus.jsonl", "report.json"
FILES = (".jsonl", ".json", ".gz", ".parquet")
NO_BRIGHT = "WARNING: without --bright, questions that also stand in BRIGHT stay in the training data."


def files_of(paths: Iterable[Path]) -> list[Path]:
    """The files, and those in the folders, in order. Raises DataError: missing, or empty."""
    found: list[Path] = []
    for path in paths:
        if not path.exists():
            raise DataError(f"{path}: no such file or folder")
        inside = [path] if not path.is_dir() else [each for each in path.rglob("*") if each.suffix in FILES]
        if not inside:
            raise DataError(f"{path}: holds no file of {', '.join(FILES)}")
        found += sorted(inside)
    return found


def read_bright(paths: Sequence[Path]) -> dict[str, str]:
    """BRIGHT's questions by id, from its own rows ("query") or ours ("question"); ids of several files,
    which BRIGHT numbers anew in each, are told apart by the file's name. Raises DataError.
    """
    texts: dict[str, str] = {}
    for path in paths:
        for line, row in read_rows(path):
            where = f"{path}:{line}"
            text = (row.get("query") or row.get("question")) if isinstance(row, dict) else None
            if not isinstance(text, str) or row.get("id") is None:
                raise DataError(f'{where}: a row of BRIGHT needs "id", and "query" or "question"')
            name = f"{path.name.split('.')[0]}/{row['id']}" if len(paths) > 1 else str(row["id"])
            if name in texts:
                raise DataError(f"{where}: the id {name!r} was given already")
            texts[name] = text
    if not texts:
        raise DataError(f"{paths[0]}: holds no questions of BRIGHT")
    return texts


def select(files: Sequence[Path], reading: Reading, filters: Filters, draw: Draw, tally: Tally) -> list[Post]:
    """The posts of all files that pass the filters and are drawn."""
    for path in files:
        rows = tqdm(read_posts(path, reading), desc=path.name, unit=" rows", mininterval=BAR_PAUSE_S)
        for post in filters.kept(rows, tally):
            draw.add(post)
    return draw.drawn()


def tasks_of(posts: Iterable[Post]) -> tuple[list[RewritingTask], dict[str, str]]:
    """(tasks, the positive texts by id). A text has one id wherever it stands: its hash. Raises DataError."""
    tasks: dict[str, RewritingTask] = {}
    corpus: dict[str, str] = {}
    places: dict[str, str] = {}
    for post in posts:
        if post.id in tasks:
            raise DataError(f"{post.where}: the id {post.id!r} was given already, in {places[post.id]}")
        ids = [f"p{hashlib.sha256(text.encode()).hexdigest()[:16]}" for text in post.positives]
        corpus.update(zip(ids, post.positives, strict=True))
        tasks[post.id] = RewritingTask(post.id, post.question, post.positives, tuple(ids), source=post.source)
        places[post.id] = post.where
    return list(tasks.values()), corpus


def with_generated(
    posts: Iterable[Post], generated: Generated, only_generated: bool, tally: Tally
) -> Iterator[Post]:
    """The posts with the model's text behind their own positives, or instead of them."""
    for post in posts:
        own = () if only_generated else post.positives
        made = generated.texts.get(post.question)
        positives = tuple(dict.fromkeys((*own, made) if made is not None else own))
        if positives:
            yield Post(**{**vars(post), "positives": positives})
        else:
            tally.drop("generation_failed")


def write(folder: Path, train: list[RewritingTask], dev: list[RewritingTask], corpus: dict[str, str]) -> None:
    """The tasks and their passages, in the order of the tasks."""
    write_tasks(folder / TRAIN, train)
    write_tasks(folder / DEV, dev)
    with (folder / CORPUS).open("w", encoding="utf-8") as file:
        for name, text in corpus.items():
            file.write(json.dumps({"id": name, "contents": text}, ensure_ascii=False) + "\n")


def report(
    tally: Tally, train: list[RewritingTask], dev: list[RewritingTask], corpus: dict[str, str]
) -> dict[str, Any]:
    """What became of every row: `read` is the sum of `dropped`, `train` and `dev`."""
    sides = {name: Counter(task.source for task in side) for name, side in (("train", train), ("dev", dev))}
    counts = {
        "read": tally.read.total(),
        "dropped": dict(sorted(tally.dropped.items())),
        "train": len(train),
        "dev": len(dev),
        "corpus": len(corpus),
    }
    sources = {
        name: {"read": count, **{side: sides[side][name] for side in sides}}
        for name, count in sorted(tally.read.items())
    }
    return {"counts": counts, "sources": sources, "removed": tally.removed()}


def fingerprints(files: Iterable[Path]) -> list[dict[str, Any]]:
    """Name, bytes and SHA-256 of files that were read."""
    rows = []
    for path in files:
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        rows.append({"file": str(path), "bytes": path.stat().st_size, "sha256": digest})
    return rows


def summary(counts: dict[str, Any]) -> str:
    """For people: `1,000 rows: 800 train, 100 dev; dropped: 60 image, 40 bright_near`."""
    dropped = ", ".join(f"{count:,} {reason}" for reason, count in counts["dropped"].items()) or "none"
    return f"{counts['read']:,} rows: {counts['train']:,} train, {counts['dev']:,} dev; dropped: {dropped}"


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("files", nargs=-1, required=True, metavar="FILE...", type=click.Path(path_type=Path))
@click.option("--out", required=True, type=click.Path(path_type=Path), help="Folder for the files.")
@click.option(
    "--bright",
    "bright_paths",
    multiple=True,
    metavar="FILE|DIR",
    type=click.Path(path_type=Path),
    help="BRIGHT's examples; may be repeated. Questions that stand there too are removed.",
)
@click.option(
    "--bright-overlap",
    default=0.3,
    show_default=True,
    type=click.FloatRange(0, 1, min_open=True),
    help="Share of three-word runs of the shorter text that makes a question one of BRIGHT's.",
)
@click.option(
    "--duplicate-jaccard",
    default=0.5,
    show_default=True,
    type=click.FloatRange(0, 1, min_open=True),
    help="Jaccard index of three-word runs that makes two questions one.",
)
@click.option(
    "--max-chars", default=16_000, show_default=True, type=click.IntRange(min=1), help="Longest question."
)
@click.option(
    "--min-words",
    default=5,
    show_default=True,
    type=click.IntRange(min=1),
    help="Shortest question, and shortest positive.",
)
@click.option(
    "--per-source",
    default=1_200,
    show_default=True,
    type=click.IntRange(min=0),
    help="Questions drawn of each source (site) at most; 0: all.",
)
@click.option(
    "--min-score",
    default=2.0,
    show_default=True,
    help="Where no answer was accepted: score from which an answer is a positive.",
)
@click.option(
    "--max-positives",
    default=3,
    show_default=True,
    type=click.IntRange(min=1),
    help="Where no answer was accepted: how many, best first.",
)
@click.option(
    "--text",
    default="auto",
    show_default=True,
    type=click.Choice(["auto", "html", "plain"]),
    help="What the texts are; auto takes those for HTML that start with a block, such as <p>.",
)
@click.option(
    "--dev", "dev_size", default=100, show_default=True, type=click.IntRange(min=1), help="Dev tasks."
)
@click.option("--seed", default=42, show_default=True, help="Seed of the draws.")
@click.option(
    "--generate-positives",
    "url",
    metavar="URL",
    help="Ask a model for a positive of each question: OpenAI-compatible server (key: OPENAI_API_KEY).",
)
@click.option("--generate-model", metavar="NAME", help="That model.")
@click.option("--only-generated", is_flag=True, help="Its texts replace the answers, not add to them.")
@click.option(
    "--generate-tokens",
    default=2_048,
    show_default=True,
    type=click.IntRange(min=1),
    help="Longest text asked for.",
)
@click.option(
    "--generate-concurrency",
    default=16,
    show_default=True,
    type=click.IntRange(min=1),
    help="Questions at a time.",
)
@click.option(
    "--generate-deadline",
    default=600.0,
    show_default=True,
    metavar="SECONDS",
    type=click.FloatRange(0, min_open=True),
    help="For one question, with all attempts.",
)
def main(files: tuple[Path, ...], out: Path, **options: Any) -> None:
    """Make training tasks from questions of StackExchange with their answers.

    FILE is JSONL (.gz), a JSON array or parquet, or a folder of them. Rows:

    \b
      {"question", "positives": [text, ...]}
      {"question", "answers": [{"text", "pm_score", "selected"}, ...]}

    or "title" and "body" for "question". An accepted answer is the positive, else those with the votes.
    The same input, options and seed give the same bytes.

    What a model wrote is kept in OUT.generated.jsonl: run again to go on, or to ask anew what failed.

    \b
    Examples:
      python data/prepare_rqr.py biology.jsonl.gz --bright bright.examples.jsonl --out data/rqr
      python data/prepare_rqr.py posts/ --bright bright/ --out data/rqr \\
          --generate-positives http://127.0.0.1:8001 --generate-model deepseek-r1 --only-generated
    """
    if (options["url"] is None) != (options["generate_model"] is None):
        raise click.UsageError("--generate-positives and --generate-model go together.")
    if options["only_generated"] and options["url"] is None:
        raise click.UsageError("--only-generated needs --generate-positives.")
    prepare(files_of(files), out, options)


def prepare(files: list[Path], out: Path, options: dict[str, Any]) -> None:
    """Carry out the command. Raises DataError; then, and if interrupted, `out` is as it was."""
    tally = Tally()
    bright_files = files_of(options["bright_paths"])
    if not bright_files:
        click.secho(NO_BRIGHT, fg="red", bold=True, err=True)
    reading, filters = _reading(options), _filters(options, bright_files)
    draw = Draw(options["per_source"] or None, options["seed"], tally)
    posts = select(files, reading, filters, draw, tally)
    posts = without_duplicates(posts, options["duplicate_jaccard"], tally)
    generated = _generated(posts, out, options)
    failures = {
        post.id: generated.failures[post.question] for post in posts if post.question in generated.failures
    }
    if options["url"]:
        posts = list(with_generated(posts, generated, options["only_generated"], tally))
    tasks, corpus = tasks_of(posts)
    train, dev = split_tasks(tasks, options["dev_size"], options["seed"])
    told = report(tally, train, dev, corpus)
    if not train or not dev:
        raise DataError(f"too few questions are left, or --dev is too large: {summary(told['counts'])}")
    told |= {
        "generation_failures": failures,
        "options": {name: value for name, value in options.items() if name != "bright_paths"},
        "inputs": fingerprints(files),
        "bright": fingerprints(bright_files),
    }
    with filling(out) as folder:
        write(folder, train, dev, corpus)
        (folder / REPORT).write_text(json.dumps(told, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    click.echo(f"{out}: {summary(told['counts'])}")


def _reading(options: dict[str, Any]) -> Reading:
    needed = options["url"] is None
    return Reading(options["text"], options["min_score"], options["max_positives"], needed)


def _filters(options: dict[str, Any], bright_files: list[Path]) -> Filters:
    known = KnownTexts(read_bright(bright_files)) if bright_files else None
    needed = options["url"] is None
    return Filters(options["max_chars"], options["min_words"], needed, known, options["bright_overlap"])


def _generated(posts: Sequence[Post], out: Path, options: dict[str, Any]) -> Generated:
    """The model's texts, if it is to be asked; what failed is told."""
    if options["url"] is None:
        return Generated()
    asking = Asking(
        options["url"],
        options["generate_model"],
        options["generate_tokens"],
        options["generate_concurrency"],
        options["generate_deadline"],
    )
    kept = out.absolute().with_name(f"{out.absolute().name}.generated.jsonl")
    generated = generate([post.question for post in posts], asking, kept)
    click.echo(f"{kept}: {len(generated.texts):,} texts, {generated.asked:,} questions asked now", err=True)
    if generated.failures:
        reason = next(iter(generated.failures.values()))
        failed = f"WARNING: no text for {len(generated.failures):,} questions, see {REPORT}; one is: {reason}"
        click.secho(failed, fg="red", bold=True, err=True)
    return generated


if __name__ == "__main__":
    main()
