"""The one record of an episode, from the search loop to rewards, veRL, files, evaluation and viewer."""

import json
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from pydantic import ConfigDict, TypeAdapter, with_config

from research.validation import checked

FinishReason = Literal["answer", "eos", "length", "search_limit"]
# Of a line that is read: what is unknown is not dropped in silence. Others write ids as numbers.
_AS_WRITTEN = with_config(ConfigDict(extra="forbid", coerce_numbers_to_str=True))


def well_formed(text: str) -> str:
    """The text with ``?`` for each half of a surrogate pair.

    JSON can spell one, but no tokenizer and no file in UTF-8 takes it.
    """
    return text.encode("utf-8", errors="replace").decode("utf-8")


@_AS_WRITTEN
@dataclass(frozen=True)
class Passage:
    """A retrieved passage, its texts well formed, whatever they come from.

    ``contents`` is ``title\\ntext``; ``score`` is the retriever's own, higher is better.
    """

    id: str
    contents: str
    score: float | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "id", well_formed(self.id))
        object.__setattr__(self, "contents", well_formed(self.contents))

    @property
    def title(self) -> str:
        """The first line, without the quotes that some corpora put around it."""
        return self.contents.partition("\n")[0].strip().strip('"')


@_AS_WRITTEN
@dataclass
class Call:
    """One call of a tool: what was asked, what came back, and what it cost.

    ``query``: of a search; of another tool its arguments as JSON. ``error`` is None if the tool answered;
    otherwise the model read a notice instead. ``shown`` counts the passages that fitted into the block, and
    ``text`` is what a tool without passages gave. ``tool`` is empty where none was called. ``searched``:
    whether it counts as a search; records without it are from a version in which only ``search`` did.
    """

    query: str | None
    passages: list[Passage] = field(default_factory=list)
    shown: int = 0
    error: str | None = None
    seconds: float = 0.0
    tool: str = "search"
    text: str = ""
    searched: bool | None = None

    def __post_init__(self) -> None:
        if self.searched is None:
            self.searched = self.tool == "search"


@_AS_WRITTEN
@dataclass
class Segment:
    """A run of response tokens with one author: the model (trained on) or the environment (masked).

    ``log_probs`` has one natural-log probability a token, under the policy that sampled it; 0.0 for injected
    tokens. ``text`` leaves out the end token of the model's last turn.
    """

    author: Literal["model", "environment"]
    token_ids: list[int]
    log_probs: list[float]
    text: str

    def __post_init__(self) -> None:
        if len(self.token_ids) != len(self.log_probs):
            raise ValueError(f"{len(self.token_ids)} tokens but {len(self.log_probs)} log-probs")


@_AS_WRITTEN
@dataclass
class Trajectory:
    """An episode: the prompt, segments of model and environment, how it ended and what it earned."""

    prompt_ids: list[int]
    segments: list[Segment] = field(default_factory=list)
    calls: list[Call] = field(default_factory=list)
    finish_reason: FinishReason | None = None
    generate_seconds: float = 0.0
    reward: float | None = None
    reward_reason: str = ""
    metrics: dict[str, float] = field(default_factory=dict)
    metadata: dict[str, Any] = field(default_factory=dict)

    @property
    def response_ids(self) -> list[int]:
        """All response tokens, the model's and the injected ones, in order."""
        return [token for segment in self.segments for token in segment.token_ids]

    @property
    def response_mask(self) -> list[int]:
        """1 for a token the model sampled, 0 for an injected one; as long as ``response_ids``."""
        return [int(segment.author == "model") for segment in self.segments for _ in segment.token_ids]

    @property
    def response_log_probs(self) -> list[float]:
        """Rollout log-probs, 0.0 where injected; as long as ``response_ids``."""
        return [value for segment in self.segments for value in segment.log_probs]

    @property
    def response_length(self) -> int:
        return sum(len(segment.token_ids) for segment in self.segments)

    @property
    def model_turns(self) -> list[str]:
        """The text of the model's segments alone: what rewards may read."""
        return [segment.text for segment in self.segments if segment.author == "model"]

    @property
    def environment_turns(self) -> int:
        """How often something was injected."""
        return sum(segment.author == "environment" for segment in self.segments)

    @property
    def text(self) -> str:
        """The whole response as text."""
        return "".join(segment.text for segment in self.segments)

    @property
    def searches(self) -> list[Call]:
        """The calls of the tools that search."""
        return [call for call in self.calls if call.searched]

    @property
    def asked_searches(self) -> list[Call]:
        """The searches with a query: whether one failed is the retriever's doing."""
        return [search for search in self.searches if search.query]

    @property
    def call_seconds(self) -> float:
        """Spent in tools."""
        return sum(call.seconds for call in self.calls)

    def to_json(self) -> str:
        """One line of a trajectory file."""
        return well_formed(json.dumps(asdict(self), ensure_ascii=False))

    @classmethod
    def from_json(cls, line: str) -> "Trajectory":
        """The inverse of :meth:`to_json`.

        Raises:
            ValueError: the line is not a trajectory of this version; a one-line message says why.
        """
        try:
            row = json.loads(line)
            if isinstance(row, dict) and "searches" in row:  # as written when search was the only tool
                row["calls"] = row.pop("searches")
            return checked(_RECORD, row)
        except RecursionError:
            raise ValueError("it is nested too deeply") from None


_RECORD = TypeAdapter(Trajectory)
