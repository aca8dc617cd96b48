"""Data of your own: a table of questions, answers and texts becomes questions and a corpus.

cd examples/your_data
python convert.py handbook.csv --out handbook
bash ../../recipes/train_musique.sh --questions handbook/questions.jsonl --corpus handbook/corpus.jsonl
"""

import csv
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import click


def write_lines(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    """One JSON object a line."""
    lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    path.write_text("".join(lines), encoding="utf-8")


@click.command()
@click.argument("table", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Folder for both files.")
def main(table: Path, out: Path) -> None:
    """Convert TABLE, a CSV file with the columns question, answer (several with |), title and text."""
    with table.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    out.mkdir(parents=True, exist_ok=True)
    questions = (
        {
            "id": f"q{number}",
            "question": row["question"],
            "golden_answers": row["answer"].split("|"),
            "metadata": {"supporting_ids": [f"p{number}"]},  # lets reports count the gold passages found
        }
        for number, row in enumerate(rows)
    )
    corpus = ({"id": f"p{n}", "contents": f"{row['title']}\n{row['text']}"} for n, row in enumerate(rows))
    write_lines(out / "questions.jsonl", questions)
    write_lines(out / "corpus.jsonl", corpus)
    click.echo(f"{len(rows)} questions and passages in {out}")


if __name__ == "__main__":
    main()
