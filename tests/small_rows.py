"""Rows of our own making in the form of ../shared/data, for where the real ones are not."""

import json
from pathlib import Path
from typing import Any

from stack_rows import jsonl, prose

TASKS = ("biology", "economics", "pony")
# Prediction, golden answers, and what the official scripts give: EM, F1, contained answer.
CASES: list[tuple[str, list[str], float, float, float]] = [
    ("Alan Turing", ["Alan Turing"], 1, 1, 1),
    ("the  alan turing!", ["Alan Turing"], 1, 1, 1),
    ("Turing", ["Alan Turing"], 0, 2 / 3, 0),
    ("It was Alan Turing.", ["Alan Turing"], 0, 2 / 3, 1),
    ("Bob", ["Alan Turing"], 0, 0, 0),
    ("", ["Alan Turing"], 0, 0, 0),
    ("Turing", ["Bob", "Turing"], 1, 1, 1),
    ("4 March 1797", ["March 4, 1797"], 0, 1, 0),
    ("6300 km", ["6,300 km"], 1, 1, 1),
    ("yes", ["Yes"], 1, 1, 1),
    ("yes indeed", ["yes"], 0, 0, 1),
    ("no", ["yes"], 0, 0, 0),
    ("New York, New York", ["New York"], 0, 2 / 3, 1),
    ("Zürich", ["Zürich (city)"], 0, 2 / 3, 0),
]
OFFICIAL = ("hotpot", "2wiki", "musique", "flashrag")


def write_small_rows(folder: Path) -> Path:
    """The folder, filled."""
    (folder / "crosscheck").mkdir()
    _musique(folder)
    _bright(folder)
    _metrics(folder / "crosscheck")
    _runs(folder / "crosscheck")
    passages = [prose(f"biology_{number}", 120)[:60] + prose(("passage", number)) for number in range(6)]
    jsonl(
        folder / "hotpotqa.corpus.jsonl", [_passage(f"h{n}", "Land", text) for n, text in enumerate(passages)]
    )
    return folder


def _passage(name: str, title: str, text: str) -> dict[str, str]:
    return {"id": name, "title": title, "text": text, "contents": f"{title}\n{text}"}


def _musique(folder: Path) -> None:
    rows = []
    for hops in (2, 3, 4):
        support = {"support_title": "Rome", "support_id": "m0"}
        steps = [{"question": f"step {step}", "answer": "Rome", **support} for step in range(hops)]
        metadata = {"source": "own", "hops": hops, "type": f"{hops}hop", "supporting_titles": ["Rome"]}
        metadata |= {"question_decomposition": steps, "dev_index": hops}
        metadata |= {"supporting_ids": ["m0"], "context_ids": ["m0"]}
        row = {
            "id": f"{hops}hop__{hops}",
            "question": f"Where, after {hops} steps?",
            "golden_answers": ["Rome"],
        }
        rows.append({**row, "metadata": metadata})
    jsonl(folder / "musique.questions.jsonl", rows)
    jsonl(folder / "musique.corpus.jsonl", [_passage("m0", "Rome", "A city.")])


def _bright(folder: Path) -> None:
    """Six questions a task; answers share words with their question and with another. The last has none."""
    questions, answers, rewrites = [], [], []
    for number, name in enumerate(f"{task}_{n}" for task in TASKS for n in range(6)):
        words, task = prose(name, 120).split(), name.rpartition("_")[0]
        mixed = [*words[: 15 - number % 6 * 2], *prose(f"{task}_{(number + 1) % 6}", 120).split()[20:28]]
        text = " ".join([*mixed, *prose(("answer", name)).split()])
        metadata: dict[str, Any] = {"task": task, "bright_id": name.rpartition("_")[2], "hops": 1}
        metadata |= {"gold_ids": ["gold 1", "gold2", "gold 1"], "answer_doc_id": f"a{number}"}
        row = {"id": name, "question": " ".join(words), "golden_answers": [text], "metadata": metadata}
        questions.append(row)
        answers.append({"id": f"a{number}", "title": task, "text": text, "contents": text})
        rewrites.append({"id": name, "rewrite_1.5b": " ".join(mixed), "rewrite_7b": text})
    questions[-1] |= {"golden_answers": []}
    del questions[-1]["metadata"]["answer_doc_id"]
    jsonl(folder / "bright.questions.jsonl", questions)
    jsonl(folder / "bright_answers.corpus.jsonl", answers)
    jsonl(folder / "bright_rewrites.jsonl", rewrites)


def _metrics(folder: Path) -> None:
    cases, trajectories = [], []
    for number, (prediction, golden, em, f1, acc) in enumerate(CASES):
        scores = {f"{name}_em": em for name in OFFICIAL} | {f"{name}_f1": f1 for name in OFFICIAL}
        common = {"id": str(number), "pred": prediction, "golden_answers": golden}
        cases.append({**common, "scores": {**scores, "flashrag_acc": acc}})
        trajectories.append(
            {**common, "pred": prediction or None, "metric_score": {"em": em, "f1": f1, "acc": acc}}
        )
    jsonl(folder / "metric_cases.jsonl", cases)
    jsonl(folder / "bamboogle_trajectories.jsonl", trajectories)


def _runs(folder: Path) -> None:
    """Of three questions: gold at ranks 1 and 3, at rank 2, and none; nDCG@10 by hand."""
    ranked = {"0": ["gold 1", "x", "gold2"], "1": ["x", "gold2"], "2": ["x"]}
    # 1.5 and 0.63093 of the best, which is 1 + 0.63093, and 0: .91972, .38685, 0.
    figures = {task: {"queries": 3, "ndcg@10": 0.43552} for task in ("biology", "pony")}
    (folder / "bright_reasonir_ndcg.json").write_text(json.dumps(figures))
    lines = [
        f"{query} Q0 {name} {rank} {1 / rank} own\n"
        for query, names in ranked.items()
        for rank, name in enumerate(names, start=1)
    ]
    for task in figures:
        (folder / f"bright_{task}.reasonir_gpt4cot_top100.trec").write_text("".join(lines))
