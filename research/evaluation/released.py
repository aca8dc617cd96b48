"""Released checkpoints: how their authors evaluate each, and what figures they published.

Their prompts, protocols and limits are the presets of research/config/preset; docs/fidelity.md lists what
still differs.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

MULTIHOP = ("hotpotqa", "2wiki", "musique", "bamboogle")
SEVEN = ("nq", "triviaqa", "popqa", *MULTIHOP)
BRIGHT = "bright"


@dataclass(frozen=True)
class Family:
    """Checkpoints that are evaluated alike.

    Attributes:
        pattern: for the last part of a checkpoint's name.
        datasets: names of research/datasets/flashrag.py; BRIGHT alone for query reasoners.
        preset: for the data sets; `base` for names without "instruct" where that differs.
        prompt: for BRIGHT.
        source: of the figures.
        published: EM, or nDCG@10 in percent for BRIGHT, by checkpoint and data set.
        remaining: what still differs from the authors' evaluation.
    """

    name: str
    pattern: str
    datasets: tuple[str, ...]
    source: str
    preset: str = ""
    base: str = ""
    prompt: str = ""
    published: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    remaining: tuple[str, ...] = ()

    @property
    def rewrites(self) -> bool:
        """Whether its checkpoints are query reasoners, which BRIGHT measures."""
        return self.datasets == (BRIGHT,)


def _of(*values: float) -> dict[str, float]:
    return dict(zip(MULTIHOP, values, strict=True))


_COMMON = (
    "tags and special tokens in passages and questions are defused (protocol.neutralise)",
    "the retriever is this project's server over the same corpus, index and encoder",
)
FAMILIES = (
    Family(
        "ReSearch",
        r"ReSearch-Qwen-\d+B(-Instruct)?",
        MULTIHOP,
        "arXiv 2503.19470, table of main results",
        preset="research_instruct",
        base="research_base",
        published={
            "ReSearch-Qwen-7B": _of(0.406, 0.447, 0.217, 0.432),
            "ReSearch-Qwen-7B-Instruct": _of(0.435, 0.476, 0.223, 0.424),
            "ReSearch-Qwen-32B": _of(0.428, 0.385, 0.264, 0.544),
            "ReSearch-Qwen-32B-Instruct": _of(0.467, 0.449, 0.264, 0.568),
        },
        remaining=(*_COMMON, "if a search fails, the model is told; there it ends the evaluation"),
    ),
    Family(
        "Search-R1",
        r"SearchR1-.*qwen2\.5-\d+b.*",
        SEVEN,
        "arXiv 2503.09516, table of main results (the mean over seven sets)",
        preset="search_r1",
        published={"SearchR1-nq_hotpotqa_train-qwen2.5-7b-em-ppo-v0.2": {"mean": 0.431}},
        remaining=(
            *_COMMON,
            "a response of more than 4,096 tokens ends; there the context loses its beginning",
        ),
    ),
    Family(
        "ReCall",
        r"ReCall-Qwen[\d.]+-\d+B.*",
        MULTIHOP,
        "Agent-RL/ReCall, which shows its figures as a picture alone",
        preset="recall",
        remaining=(*_COMMON, "its sandbox for Python is not part of this project"),
    ),
    Family(
        "TongSearch-QR",
        r"TongSearch-QR-[\d.]+B",
        (BRIGHT,),
        "arXiv 2506.11603, BRIGHT with BM25, the mean over twelve tasks",
        prompt="tongsearch_qr",
        published={
            "TongSearch-QR-1.5B": {"mean": 24.6},
            "TongSearch-QR-7B": {"mean": 27.9},
        },
        remaining=(
            "BRIGHT's relevance judgements and passages are being corrected: the revision matters",
            "BM25 is this project's own, weighted by the query's words as there (docs/bright.md)",
        ),
    ),
)


def family_of(checkpoint: str) -> Family | None:
    """The family by a hub name, or by a folder's."""
    name = name_of(checkpoint)
    return next((each for each in FAMILIES if re.fullmatch(each.pattern, name, re.IGNORECASE)), None)


def name_of(checkpoint: str) -> str:
    """The last part of a hub name or a folder."""
    return checkpoint.rstrip("/").rpartition("/")[2]


def preset_of(family: Family, checkpoint: str) -> str:
    """Instruct checkpoints and base ones were trained with other prompts."""
    return family.preset if not family.base or "instruct" in name_of(checkpoint).lower() else family.base


def published_of(family: Family, checkpoint: str) -> Mapping[str, float]:
    """Figures of the checkpoint by data set; empty if none are known here."""
    return family.published.get(name_of(checkpoint), {})
