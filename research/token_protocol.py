"""The protocol bound to a tokenizer: where a turn stops, what of it is kept, and the tokens of an injected
block.

Everything here works on token ids. What the model sampled is never decoded and encoded again; only injected
text is encoded, once, after protocol tags and special tokens have been taken out of it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from research.protocol import Protocol, closing, neutralise, render_passage, render_result
from research.trajectory import Passage, encodable

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class ResultBlock:
    """An injected block: its tokens, its text, and how many of the passages stand in it."""

    token_ids: list[int]
    text: str
    shown: int


class TokenProtocol:
    """What the search loop and an engine need to know about tags as tokens.

    Attributes:
        stop_token_ids: token ids at which an engine must stop: end of sequence, and the closing tags where
        each is one
            token of the vocabulary.
        stop_strings: the closing tags, where they are not single tokens; else empty.
    """

    def __init__(self, tokenizer: "PreTrainedTokenizerBase", protocol: Protocol) -> None:
        self.tokenizer = tokenizer
        self.protocol = protocol
        self.stop_tags = (closing(protocol.search), closing(protocol.answer))
        added = tokenizer.get_added_vocab()
        tag_ids = [added.get(tag) for tag in self.stop_tags]
        self._tag_ids = [tag_id for tag_id in tag_ids if tag_id is not None] if None not in tag_ids else []
        self.eos_token_ids = {i for i in (tokenizer.eos_token_id, tokenizer.pad_token_id) if i is not None}
        self.stop_token_ids = sorted({*self.eos_token_ids, *self._tag_ids})
        self.stop_strings = [] if self._tag_ids else list(self.stop_tags)
        # Control tokens that are not marked special (<tool_call>, say) look like tags, so their brackets give
        # them away.
        self.special_tokens = sorted(
            {*tokenizer.all_special_tokens, *(token for token in added if token[:1] in "<[")},
            key=len,
            reverse=True,
        )

    def decode(self, token_ids: Sequence[int]) -> str:
        """Text of the tokens as they are, special tokens included."""
        return str(
            self.tokenizer.decode(
                list(token_ids), skip_special_tokens=False, clean_up_tokenization_spaces=False
            )
        )

    def encode(self, text: str) -> list[int]:
        """Tokens of text that we wrote; never adds BOS or EOS."""
        return list(self.tokenizer.encode(text, add_special_tokens=False))

    def cut(self, token_ids: Sequence[int]) -> tuple[list[int], str | None]:
        """The sampled tokens up to the one that completes the first closing tag, and that tag (None if there
        is none).

        A token is never split: where the tag ends inside a token (``>\\n`` is one token for many
        vocabularies), that token is kept whole, since it is what the model sampled.
        """
        if self._tag_ids:
            for position, token_id in enumerate(token_ids):
                if token_id in self._tag_ids:
                    return list(token_ids[: position + 1]), self.stop_tags[self._tag_ids.index(token_id)]
            return list(token_ids), None
        return self._cut_by_text(list(token_ids))

    def _first_tag(self, text: str) -> str | None:
        found = [(text.index(tag), tag) for tag in self.stop_tags if tag in text]
        return min(found)[1] if found else None

    def _cut_by_text(self, token_ids: list[int]) -> tuple[list[int], str | None]:
        tag = self._first_tag(self.decode(token_ids))
        if tag is None:
            return token_ids, None
        low, high = 1, len(token_ids)  # the shortest prefix that holds the tag, by bisection
        while low < high:
            middle = (low + high) // 2
            low, high = (low, middle) if tag in self.decode(token_ids[:middle]) else (middle + 1, high)
        return token_ids[:low], tag

    def truncate(self, text: str, tokens: int) -> str:
        """The longest prefix of at most ``tokens`` tokens that ends between words."""
        token_ids = self.encode(text)
        if len(token_ids) <= tokens:
            return text
        prefix = self.decode(token_ids[: max(tokens, 0)]).rstrip("\ufffd")
        head, blank, _ = prefix.rpartition(" ")
        return (head if blank else prefix).rstrip()

    def clean(self, text: str) -> str:
        """Text from outside without tags and special tokens, see :func:`research.protocol.neutralise`."""
        return neutralise(encodable(text), self.protocol, self.special_tokens)

    def result_block(self, passages: Sequence[Passage], room: int, passage_tokens: int) -> ResultBlock | None:
        """The block to inject for retrieved passages, within ``room`` tokens, closing tag included.

        Each passage is cut to ``passage_tokens`` tokens. If all do not fit, the lowest-ranked go first; the
        best one is shortened if it does not fit alone. None if not even an empty block fits.
        """
        cleaned = [Passage(passage.id, self.clean(passage.contents)) for passage in passages]
        texts = [
            self.truncate(render_passage(passage, rank, self.protocol), passage_tokens)
            for rank, passage in enumerate(cleaned, start=1)
        ]
        for shown in range(len(texts), 0, -1):
            block = self._block(texts[:shown], shown)
            if len(block.token_ids) <= room:
                return block
        return self._shortened(texts[0] if texts else "", room, shown=min(1, len(texts)))

    def notice_block(self, notice: str, room: int) -> ResultBlock | None:
        """The block that stands in for passages when there are none to show; None if it does not fit."""
        return self._shortened(notice, room, shown=0)

    def _block(self, texts: Sequence[str], shown: int) -> ResultBlock:
        text = render_result(texts, self.protocol)
        return ResultBlock(self.encode(text), text, shown)

    def _shortened(self, text: str, room: int, shown: int) -> ResultBlock | None:
        block = self._block([text], shown)
        while len(block.token_ids) > room and text:
            keep = len(self.encode(text)) - (len(block.token_ids) - room)
            text = self.truncate(text, keep) if keep > 0 else ""
            block = self._block([text], shown if text else 0)
        return block if len(block.token_ids) <= room else None
