"""Write demonstrations for real questions as parquet, which any trainer of token ids takes.

    python -m research.training cold-start demonstrations --questions train.questions.jsonl \
        --corpus corpus.jsonl --model DIR --out demonstrations.parquet research.preset=search_r1

A row has ``id``, ``question``, ``text`` (the whole episode, prompt and special tokens included),
``input_ids``, and ``labels``: the same ids where the policy speaks, -100 elsewhere.
"""

import asyncio
from collections import Counter
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import click
import pyarrow as pa
import pyarrow.parquet as pq
from tqdm import tqdm

from research.datasets.questions import Question, read_questions
from research.environments import BaseEnvironment
from research.episode.tokens import TokenProtocol
from research.episode.tools import Tool
from research.episode.trajectory import Trajectory
from research.errors import DataError
from research.files import atomic_path
from research.model_folder import load_tokenizer
from research.tools.search import TOKEN_VARIABLE
from research.tools.service import Service, serving, serving_index
from research.training.cold_start.demonstrator import Lost, demonstrate
from research.training.cold_start.hops import hops_of
from research.training.config import read_research_config
from research.training.run.options import URL, RecipeOptions
from research.training.run.plan import compose_words
from research.training.run.retriever_keeper import is_healthy

UNTRAINED = -100  # the label that torch's cross-entropy leaves out
AT_ONCE = 32  # episodes whose searches wait for one another
SCHEMA = pa.schema(
    {
        "id": pa.string(),
        "question": pa.string(),
        "text": pa.string(),
        "input_ids": pa.list_(pa.int32()),
        "labels": pa.list_(pa.int32()),
    }
)


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--questions", required=True, type=click.Path(path_type=Path), help="With decompositions.")
@click.option("--corpus", type=click.Path(path_type=Path), help="Passages to search, by BM25.")
@click.option(
    "--index", type=click.Path(path_type=Path), help="Or an index, by `python -m retriever_server build`."
)
@click.option("--retriever", type=URL, help="Or a retrieval server that is running.")
@click.option("--model", required=True, help="Whose tokenizer and chat template are used.")
@click.option("--out", required=True, type=click.Path(path_type=Path), help="Parquet file.")
@click.option(
    "--policy",
    type=click.Choice(["tiny", "smollm2"]),
    default="smollm2",
    show_default=True,
    help="Profile, as in recipes/train_musique.sh.",
)
@click.argument("overrides", nargs=-1)
def demonstrations(
    questions: Path,
    corpus: Path | None,
    index: Path | None,
    retriever: str | None,
    model: str,
    out: Path,
    policy: Any,
    overrides: tuple[str, ...],
) -> None:
    """Demonstrate searching on questions whose data set says how they are answered.

    OVERRIDES are key=value words of the training's configuration: its prompt, protocol, limits and retriever
    are those of the demonstrations. Questions without a decomposition, and those with a hop that no search
    finds, are left out.
    """
    if sum(each is not None for each in (corpus, index, retriever)) != 1:
        raise click.UsageError("give one of --corpus, --index and --retriever")
    if retriever is not None and not is_healthy(retriever):
        reason = f"no healthy retriever at {retriever}; check host, port and {TOKEN_VARIABLE}"
        raise DataError(f"--retriever: {reason}")
    if corpus is not None and not corpus.is_file():
        raise DataError(f"--corpus: there is no file {corpus}")
    tokenizer = load_tokenizer(model)
    asked = read_questions(questions)
    with _searched(corpus, index, retriever) as url:
        options = RecipeOptions("cpu", out.parent, policy=policy, overrides=overrides)
        section = compose_words(options, {"research.retriever.url": url}).research
        environment = read_research_config(section).environment
        rows, lost = write_demonstrations(asked, environment, tokenizer, out)
    tokens = sum(len(row["input_ids"]) for row in rows)
    left_out = f"; left out: {_reasons(lost)}" if lost else ""
    click.echo(f"{out}: {len(rows)} demonstrations of {len(asked)} questions, {tokens:,} tokens{left_out}")


def _reasons(lost: Counter[str]) -> str:
    return ", ".join(f"{count} {reason}" for reason, count in lost.most_common())


def _searched(corpus: Path | None, index: Path | None, retriever: str | None) -> AbstractContextManager[str]:
    """The address of the retriever: that of a temporary server, unless one is running."""
    if corpus is not None:
        return serving(Service(corpus, "minilm", "bm25"))
    return serving_index(index) if index is not None else nullcontext(str(retriever))


def write_demonstrations(
    questions: Sequence[Question], environment: BaseEnvironment, tokenizer: Any, out: Path
) -> tuple[list[dict[str, Any]], Counter[str]]:
    """Play every question that can be played and write it: (rows, how many were left out, by reason).

    Raises DataError if nothing can be.
    """
    tokens = TokenProtocol(tokenizer, environment.protocol, environment.tools)
    rows, lost = asyncio.run(_rows(questions, environment, tokens))
    if not rows:
        raise DataError(
            f"no question could be demonstrated: {_reasons(lost)}; they need question_decomposition "
            "(MuSiQue), evidences (2Wiki) or supporting_facts (HotpotQA), a corpus that holds their "
            "passages, and limits that let them end"
        )
    with atomic_path(out) as temporary:
        pq.write_table(pa.Table.from_pylist(rows, schema=SCHEMA), temporary)
    return rows, lost


async def _rows(
    questions: Sequence[Question], environment: BaseEnvironment, tokens: TokenProtocol
) -> tuple[list[dict[str, Any]], Counter[str]]:
    turn, progress = asyncio.Semaphore(AT_ONCE), tqdm(total=len(questions), unit="question", disable=None)
    search, lost = _search_of(environment), Counter[str]()

    async def row(question: Question) -> dict[str, Any] | None:
        async with turn:
            try:
                trajectory = await demonstrate(question, hops_of(question), environment, search, tokens)
            except Lost as reason:
                lost[str(reason)] += 1
                return None
            finally:
                progress.update()
        return _row(question, trajectory, tokens)

    try:
        return [each for each in await asyncio.gather(*map(row, questions)) if each], lost
    finally:
        progress.close()
        if search.close:
            await search.close()


def _search_of(environment: BaseEnvironment) -> Tool:
    """Raises DataError if no tool searches."""
    if found := [tool for tool in environment.tools if tool.searches]:
        return found[0]
    raise DataError("research.tools: none searches, and a demonstration is a question answered by searches")


def _row(question: Question, trajectory: Trajectory, tokens: TokenProtocol) -> dict[str, Any]:
    """The tokens of an episode, with the end token after its last turn, so the policy learns to end."""
    ids, mask = trajectory.prompt_ids + trajectory.response_ids, trajectory.response_mask
    labels = [UNTRAINED] * len(trajectory.prompt_ids)
    labels += [each if own else UNTRAINED for each, own in zip(trajectory.response_ids, mask, strict=True)]
    if ids[-1] not in tokens.eos_token_ids:
        ids, labels = [*ids, tokens.tokenizer.eos_token_id], [*labels, tokens.tokenizer.eos_token_id]
    text = tokens.decode(ids)
    return {
        "id": question.id,
        "question": question.question,
        "text": text,
        "input_ids": ids,
        "labels": labels,
    }
