"""Fact verification with searches: a claim in, SUPPORTED, REFUTED or NOT ENOUGH INFO out (FEVER, HoVer).

Rows are FEVER's, {"id", "claim", "label": "SUPPORTS" | "REFUTES" | "NOT ENOUGH INFO", "evidence"}, HoVer's,
{"uid", "claim", "label": "SUPPORTED" | "NOT_SUPPORTED", "supporting_facts", "num_hops"}, or questions whose
golden answers are labels. HoVer does not distinguish refuted claims from unverifiable ones: both answers are
right for its NOT_SUPPORTED.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

from research.datasets.json_rows import text_of
from research.datasets.question_forms import question_of
from research.datasets.questions import Question, read_question_file, training_rows
from research.environments import Row
from research.environments.headline import REWARD, Chart, Headline
from research.environments.question_answering import HEADLINE as QUESTION_ANSWERING
from research.environments.question_answering import Environment as QuestionAnswering
from research.errors import DataError

SUPPORTED, REFUTED, UNKNOWN = LABELS = ("SUPPORTED", "REFUTED", "NOT ENOUGH INFO")
GOLDEN = {
    "SUPPORTS": (SUPPORTED,),
    "REFUTES": (REFUTED,),
    "NOT_SUPPORTED": (REFUTED, UNKNOWN),
    **{label: (label,) for label in LABELS},
}
HEADLINE = replace(
    QUESTION_ANSWERING,
    label="accuracy",
    title="Accuracy on held-out claims, by label",
    note="Accuracy with its 95% interval (Wilson). Searches and valid formats are means, before -> after.",
    step_line=(("accuracy", "search/em", ".3f"), *QUESTION_ANSWERING.step_line[1:]),
    training_chart=Chart("Training claims", {REWARD: "reward", "search/em": "accuracy"}, share=True),
)


class Environment(QuestionAnswering):
    """Question answering whose questions are claims; results are reported by label."""

    headline: ClassVar[Headline] = HEADLINE

    def questions(self, path: Path) -> list[Question]:
        """The claims of a file. Raises DataError naming file, line and field."""
        return read_question_file(path, claim_of).questions

    def _rows(self, questions: Sequence[Question], split: str, source: str) -> list[Row]:
        """Each label is a data source of its own: a policy that always gives one answer shows at once."""
        groups: dict[str, list[Question]] = {}
        for each in questions:
            groups.setdefault("_or_".join(each.golden_answers).lower().replace(" ", "_"), []).append(each)
        named = ((f"{source}_{label}", claims) for label, claims in sorted(groups.items()))
        return [row for name, claims in named for row in training_rows(claims, split, name)]


def claim_of(row: dict[str, Any], where: str) -> Question | None:
    """The claim of a row of any of these forms. Raises DataError."""
    claim = question_of(_as_question(row, where) if "claim" in row else row, where)
    if claim and not set(claim.golden_answers) <= set(LABELS):
        raise DataError(f"{where}: the golden answers of a claim must be of {', '.join(LABELS)}")
    return claim


def _as_question(row: dict[str, Any], where: str) -> dict[str, Any]:
    label = row.get("label")
    if not isinstance(label, str) or label not in GOLDEN:
        raise DataError(f'{where}: "label" must be one of {", ".join(GOLDEN)}, not {label!r}')
    metadata = {"label": label, "supporting_titles": _titles(row, where)}
    if type(row.get("num_hops")) is int:
        metadata["hops"] = row["num_hops"]
    claim = {"id": row.get("id", row.get("uid")), "question": text_of(row["claim"], "claim", where)}
    return {**claim, "golden_answers": list(GOLDEN[label]), "metadata": metadata}


def _titles(row: dict[str, Any], where: str) -> list[str]:
    """Titles of the deciding passages, from FEVER's (annotation, id, title, sentence) or HoVer's pairs."""
    try:
        titles = [title for group in row.get("evidence") or [] for _, _, title, _ in group]
        titles += [title for title, _ in row.get("supporting_facts") or []]
    except (TypeError, ValueError):
        forms = f"{where}: evidence and supporting_facts must have the form of FEVER's and HoVer's"
        raise DataError(forms) from None
    return list(dict.fromkeys(str(title).replace("_", " ") for title in titles if title))
