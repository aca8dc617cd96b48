"""nDCG@10 on BRIGHT as others have published it, shown beside ours if the retriever is the same.

Texts searched with, by BRIGHT's BM25 (`bm25_query_weighted`, k1 .9, b .4): the question and GPT-4o's and
DeepSeek-R1's reasoning, and RQR (TongSearch-QR), from the paper and repository of TongSearch-QR
(bigai-nlco/TongSearch-QR); ReDI-8B, 3 to 10 sub-queries with scores summed, from its paper. For
ReasonIR-8B's vectors with RQR-7B's texts only the mean is known.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from research.datasets.bright import SIZES
from research.evaluation.bright.config import RetrieverSettings
from research.report.tables import markdown_table

BM25 = {
    "original": (18.9, 27.2, 14.9, 12.5, 13.6, 18.4, 15.0, 24.4, 7.9, 6.2, 10.4, 4.9),
    "GPT-4o reasoning": (53.6, 53.6, 24.3, 38.6, 18.8, 22.7, 25.9, 19.3, 17.7, 3.9, 18.9, 20.2),
    "DeepSeek-R1": (62.7, 58.3, 26.0, 42.9, 21.8, 28.1, 30.3, 19.6, 10.7, 6.0, 25.8, 22.4),
    "RQR-1.5B": (46.0, 47.1, 21.1, 31.2, 19.8, 21.7, 24.3, 22.5, 21.7, 4.3, 19.7, 15.9),
    "RQR-7B": (57.9, 50.9, 21.9, 37.0, 21.3, 27.0, 25.6, 23.6, 14.4, 7.0, 26.1, 22.0),
    "ReDI-8B": (49.0, 53.5, 28.7, 43.4, 27.5, 36.3, 29.4, 25.3, 9.3, 6.0, 31.5, 30.0),
}
"""what is searched with -> nDCG@10 in percent, in the order of research.datasets.bright.SIZES"""
DENSE_MEAN = {"RQR-7B": 31.9}
"""the same for ReasonIR-8B, the mean of the 12 tasks"""


def published(retriever: RetrieverSettings, long: bool) -> dict[str, dict[str, float]]:
    """Published figures for a retriever: name -> task (or "mean", of all 12) -> nDCG@10 in percent."""
    if not long and retriever.name == "bm25_query_weighted" and (retriever.k1, retriever.b) == (0.9, 0.4):
        return {name: dict(zip(SIZES, values, strict=True)) for name, values in BM25.items()}
    if not long and "reasonir" in retriever.encoder.lower():
        return {name: {"mean": value} for name, value in DENSE_MEAN.items()}
    return {}


def comparison(results: Sequence[Mapping[str, Any]], retriever: RetrieverSettings, long: bool) -> str:
    """Our nDCG@10 per task and in the mean beside the published ones, in percent, as a table with remarks.

    `results` are the rows of metrics.json. The mean of a published row is that of the same tasks.
    """
    ours = {row["task"]: row for row in results if row["task"] in SIZES}
    if not ours:
        return ""
    others = published(retriever, long)
    if not others:
        return f"No published figures to compare with: they are for retrievers other than {retriever.kind}."
    rows = {"ours": {name: 100 * row["ndcg@10"]["mean"] for name, row in ours.items()}, **others}
    columns = [*ours, "mean"]
    lines = [["nDCG@10", *columns]]
    for name, values in rows.items():
        known = [values[task] for task in ours if task in values]
        mean = sum(known) / len(known) if known else values["mean"] if len(ours) == len(SIZES) else None
        cells = [values.get(task) for task in ours] + [mean]
        lines.append([name, *("-" if cell is None else f"{cell:.1f}" for cell in cells)])
    return "\n".join([markdown_table(lines), *_remarks(ours)])


def _remarks(ours: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Why figures do not compare."""
    other = [name for name, row in ours.items() if row["questions"] != SIZES[name][0]]
    parts = [f"{name} {ours[name]['questions']} of {SIZES[name][0]}" for name in other]
    remarks = [f"Not comparable, because the questions differ: {', '.join(parts)}."] if parts else []
    if sizes := [name for name, row in ours.items() if row["passages"] != SIZES[name][1]]:
        remarks.append(f"Other passages than the published ones: {', '.join(sizes)}.")
    return remarks
