"""Training tasks for query reasoners from Stack Exchange's questions: filtered, free of BRIGHT, split.

    python data/prepare_rqr.py biology.jsonl.gz math.parquet --bright bright.examples.jsonl --out data/rqr

Input rows: research/datasets/stack_exchange/dump.py. Written, all at once:
  train.parquet, dev.parquet   tasks (datasets/rewriting_tasks.py), no question and no positive on both sides
  corpus.jsonl                 all positive texts as passages, for an index that retrieval_gain searches
  report.json                  what became of every row, duplicates with their partners, options, checksums
"""

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import click
from tqdm import tqdm

from research.datasets.json_rows import read_objects, write_json_rows
from research.datasets.rewriting_tasks import RewritingTask, write_tasks
from research.datasets.stack_exchange.dump import Post, Reading, read_posts
from research.datasets.stack_exchange.generated_positives import Asking, Generated, generate
from research.datasets.stack_exchange.near_duplicates import BAR_PAUSE_S, KnownTexts
from research.datasets.stack_exchange.selection import Filters, Tally, draw, split_tasks, without_duplicates
from research.errors import DataError, warn
from research.files import filling, write_atomically
from research.values import Number

REPORT = "report.json"
FILES = (".jsonl", ".json", ".gz", ".parquet")
PATH, POSITIVE = click.Path(path_type=Path), click.IntRange(1)
SHARE, SECONDS = Number(0, 1, min_open=True), Number(0, min_open=True)


def files_of(paths: Iterable[Path]) -> list[Path]:
    """The files, and those in the folders, in order. Raises DataError: missing, or empty."""
    files: list[Path] = []
    for path in paths:
        if not path.exists():
            raise DataError(f"{path}: no such file or folder")
        inside = [path] if not path.is_dir() else [each for each in path.rglob("*") if each.suffix in FILES]
        if not inside:
            raise DataError(f"{path}: holds no file of {', '.join(FILES)}")
        files += sorted(inside)
    return files


def read_bright(paths: Sequence[Path]) -> dict[str, str]:
    """BRIGHT's questions by id, from its own rows ("query") or ours ("question"). Raises DataError.

    BRIGHT numbers each file from 0, so ids of several files are prefixed with the file's name.
    """
    texts: dict[str, str] = {}
    for path in paths:
        for where, row in read_objects(path, "row of BRIGHT"):
            text = row.get("query") or row.get("question")
            if not isinstance(text, str) or row.get("id") is None:
                raise DataError(f'{where}: a row of BRIGHT needs "id", and "query" or "question"')
            name = f"{path.name.split('.')[0]}/{row['id']}" if len(paths) > 1 else str(row["id"])
            if name in texts:
                raise DataError(f"{where}: the id {name!r} was given already")
            texts[name] = text
    if not texts:
        raise DataError(f"{paths[0]}: holds no questions of BRIGHT")
    return texts


def tasks_of(posts: Iterable[Post]) -> tuple[list[RewritingTask], dict[str, str]]:
    """(tasks, the positive texts by id); the id of a text is its hash. Raises DataError for an id twice."""
    tasks: list[RewritingTask] = []
    corpus: dict[str, str] = {}
    places: dict[str, str] = {}
    for post in posts:
        if places.setdefault(post.id, post.where) != post.where:
            raise DataError(f"{post.where}: the id {post.id!r} was given already, in {places[post.id]}")
        ids = [f"p{hashlib.sha256(text.encode()).hexdigest()[:16]}" for text in post.positives]
        corpus.update(zip(ids, post.positives, strict=True))
        tasks.append(RewritingTask(post.id, post.question, post.positives, tuple(ids), source=post.source))
    return tasks, corpus


def with_generated(
    posts: Iterable[Post], texts: dict[str, str], only_generated: bool, tally: Tally
) -> Iterator[Post]:
    """The posts with the model's text behind their own positives, or instead of them."""
    for post in posts:
        own = () if only_generated else post.positives
        positives = (*own, texts[post.question]) if post.question in texts else own
        if positives:
            yield replace(post, positives=tuple(dict.fromkeys(positives)))
        else:
            tally.drop("generation_failed")


def write(folder: Path, train: list[RewritingTask], dev: list[RewritingTask], corpus: dict[str, str]) -> None:
    """The tasks and their passages, in the order of the tasks."""
    write_tasks(folder / "train.parquet", train)
    write_tasks(folder / "dev.parquet", dev)
    rows = ({"id": name, "contents": text} for name, text in corpus.items())
    write_json_rows(folder / "corpus.jsonl", rows)


def account(
    tally: Tally, train: list[RewritingTask], dev: list[RewritingTask], passages: int
) -> dict[str, Any]:
    """What happened to every row: `read` is the sum of `dropped`, `train` and `dev`."""
    of_train, of_dev = (Counter(task.source for task in side) for side in (train, dev))
    counts = {
        "read": tally.read.total(),
        "dropped": dict(sorted(tally.dropped.items())),
        "train": len(train),
        "dev": len(dev),
        "corpus": passages,
    }
    sources = {
        name: {"read": count, "train": of_train[name], "dev": of_dev[name]}
        for name, count in sorted(tally.read.items())
    }
    return {"counts": counts, "sources": sources, "removed": tally.removals}


def fingerprints(files: Iterable[Path]) -> list[dict[str, Any]]:
    """Name, bytes and SHA-256 of input files."""
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


@click.command(context_settings={"help_option_names": ["-h", "--help"], "show_default": True})
@click.argument("files", nargs=-1, required=True, metavar="FILE...", type=PATH)
@click.option("--out", required=True, type=PATH, help="Folder for the files.")
@click.option(
    "--bright",
    "bright_paths",
    multiple=True,
    metavar="FILE|DIR",
    type=PATH,
    help="BRIGHT's examples; may be repeated. Questions that are there too are removed.",
)
@click.option(
    "--bright-overlap", default=0.3, type=SHARE, help="Overlap from which a question counts as BRIGHT's."
)
@click.option(
    "--duplicate-jaccard",
    default=0.5,
    type=SHARE,
    help="Jaccard index from which two questions count as one.",
)
@click.option("--max-chars", default=16_000, type=POSITIVE, help="Longest question.")
@click.option("--min-words", default=5, type=POSITIVE, help="Shortest question, and shortest positive.")
@click.option("--per-source", default=1_200, type=click.IntRange(0), help="Most questions per site; 0: all.")
@click.option("--min-score", default=2.0, help="If no answer was accepted: least score of a positive.")
@click.option(
    "--max-positives", default=3, type=POSITIVE, help="If no answer was accepted: most positives, best first."
)
@click.option(
    "--text",
    default="auto",
    type=click.Choice(["auto", "html", "plain"]),
    help="Form of the texts; auto takes those for HTML that start with a block, such as <p>.",
)
@click.option("--dev", "dev_size", default=100, type=POSITIVE, help="Dev tasks.")
@click.option("--seed", default=42, help="Seed of the draws.")
@click.option(
    "--generate-positives",
    "url",
    metavar="URL",
    help="Generate a positive per question: OpenAI-compatible server (key: OPENAI_API_KEY).",
)
@click.option("--generate-model", metavar="NAME", help="Its model.")
@click.option("--only-generated", is_flag=True, help="Its texts replace the answers instead of joining them.")
@click.option("--generate-tokens", default=2_048, type=POSITIVE, help="Longest text.")
@click.option("--generate-concurrency", default=16, type=POSITIVE, help="Questions at a time.")
@click.option("--generate-deadline", default=600.0, type=SECONDS, help="Seconds per question, with retries.")
def main(files: tuple[Path, ...], out: Path, **options: Any) -> None:
    """Make training tasks from questions of StackExchange with their answers.

    FILE is JSONL (.gz), a JSON array or parquet, or a folder of them. Rows:

    \b
      {"question", "positives": [text, ...]}
      {"question", "answers": [{"text", "pm_score", "selected"}, ...]}

    or "title" and "body" for "question". An accepted answer is the positive, else those with the most votes.
    The same input, options and seed give the same bytes.

    Texts are compared by their three-word runs; the overlap is the share of the shorter text's.

    Texts of a model are kept in OUT.generated.jsonl: run again to resume, or to retry what failed.

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
    tally, bright_files = Tally(), files_of(options["bright_paths"])
    if not bright_files:
        warn("without --bright, questions that are in BRIGHT too stay in the training data.")
    posts = _unique_posts(files, bright_files, options, tally)
    failures: dict[str, str] = {}
    if options["url"]:
        generated = _generate(posts, out, options)
        reasons = {post.id: generated.failures.get(post.question) for post in posts}
        failures = {name: reason for name, reason in reasons.items() if reason is not None}
        posts = list(with_generated(posts, generated.texts, options["only_generated"], tally))
    tasks, corpus = tasks_of(posts)
    train, dev = split_tasks(tasks, options["dev_size"], options["seed"])
    rows = account(tally, train, dev, len(corpus))
    if not train or not dev:
        raise DataError(f"too few questions are left, or --dev is too large: {summary(rows['counts'])}")
    rows |= {
        "generation_failures": failures,
        "options": {name: value for name, value in options.items() if name != "bright_paths"},
        "inputs": fingerprints(files),
        "bright": fingerprints(bright_files),
    }
    with filling(out) as folder:
        write(folder, train, dev, corpus)
        write_atomically(folder / REPORT, json.dumps(rows, indent=1, ensure_ascii=False) + "\n")
    click.echo(f"{out}: {summary(rows['counts'])}")


def _unique_posts(
    files: list[Path], bright_files: list[Path], options: dict[str, Any], tally: Tally
) -> list[Post]:
    """The posts that pass the filters and are drawn, without duplicates."""
    need_positives = options["url"] is None
    reading = Reading(options["text"], options["min_score"], options["max_positives"], need_positives)
    known = KnownTexts(read_bright(bright_files)) if bright_files else None
    bounds = (options["max_chars"], options["min_words"], need_positives, known, options["bright_overlap"])
    bar = partial(tqdm, unit=" rows", mininterval=BAR_PAUSE_S)
    rows = chain.from_iterable(bar(read_posts(path, reading), desc=path.name) for path in files)
    posts = Filters(*bounds).kept(rows, tally)
    drawn = draw(posts, options["per_source"] or None, options["seed"], tally)
    return without_duplicates(drawn, options["duplicate_jaccard"], tally)


def _generate(posts: Sequence[Post], out: Path, options: dict[str, Any]) -> Generated:
    """The model's texts; prints how many there are, and warns of failures."""
    names = ("url", "generate_model", "generate_tokens", "generate_concurrency", "generate_deadline")
    path = out.absolute().with_name(f"{out.absolute().name}.generated.jsonl")
    generated = generate([post.question for post in posts], Asking(*(options[name] for name in names)), path)
    click.echo(f"{path}: {len(generated.texts):,} texts; {generated.asked:,} questions asked now", err=True)
    if generated.failures:
        reason = next(iter(generated.failures.values()))
        warn(f"no text for {len(generated.failures):,} questions, see {REPORT}; one reason: {reason}")
    return generated


if __name__ == "__main__":
    main()
