"""The protocol bound to a tokenizer: where turns stop, what is kept of them, injected blocks.

Everything here works on token ids. What the model sampled is never decoded and encoded again; only injected
text is encoded, once, after protocol tags and special tokens have been taken out of it.
"""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from research.episode.protocol import Protocol, closing, neutralise, render_passage, render_result
from research.episode.tools import Tool
from research.episode.trajectory import Passage, well_formed

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


# Longer runs without a blank are not words.
LONGEST_WORD = 40
# Scripts that write words without blanks between them: Thai to Khmer, Chinese and Japanese.
UNSPACED = re.compile(
    "[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3000-\u9fff\uf900-\ufaff\uff00-\uffef\U00020000-\U0003ffff]"
)

# As most models write them, and Gemma.
_CONTROL = re.compile(r"<\|\w+\|>|<(?:start|end)_of_turn>")


@dataclass(frozen=True)
class ResultBlock:
    """An injected block: its tokens, its text, and how many of the passages it holds."""

    token_ids: list[int]
    text: str
    shown: int


def end_token_ids(tokenizer: "PreTrainedTokenizerBase") -> set[int]:
    """Tokens that end a text: the tokenizer's end and padding, and those that the model's files name.

    Many chat models name their end of turn in generation_config.json alone; without that file config.json
    counts, as for vLLM. They are looked for where the tokenizer was loaded from.

    Raises:
        OSError: the hub cannot be reached. ValueError: a file is no JSON, or names no token ids.
    """
    found = {each for each in (tokenizer.eos_token_id, tokenizer.pad_token_id) if each is not None}
    return found | (_configured_end_token_ids(tokenizer.name_or_path) if tokenizer.name_or_path else set())


def beginning(tokenizer: "PreTrainedTokenizerBase") -> list[int]:
    """The tokens that the tokenizer itself puts in front of a text: BOS, for those that have one."""
    bare, whole = tokenizer.encode("a", add_special_tokens=False), tokenizer.encode("a")
    starts = (start for start in range(len(whole)) if whole[start : start + len(bare)] == bare)
    return list(whole[: next(starts, 0)])


def _configured_end_token_ids(model: str) -> set[int]:
    from transformers.utils.hub import cached_file

    for name in ("generation_config.json", "config.json"):
        path = cached_file(model, name, _raise_exceptions_for_missing_entries=False)
        if path is None:
            continue
        try:
            value = json.loads(Path(path).read_bytes())["eos_token_id"]
        except KeyError:
            return set()
        except (ValueError, TypeError) as error:
            raise ValueError(f"{model}: {name} is not a JSON object ({error})") from error
        ids = value if isinstance(value, list) else [] if value is None else [value]
        if not all(type(each) is int for each in ids):
            raise ValueError(f"{model}: {name}: eos_token_id must be token ids, not {value!r}")
        return set(ids)
    return set()


class TokenProtocol:
    """What the search loop and an engine need to know about tags as tokens, and a prompt's tokens.

    Attributes:
        eos_token_ids: tokens that end the model's text, see :func:`end_token_ids`.
        stop_tags: the closing tags at which an engine must stop, as ``protocol.stop`` says.
        stop_token_ids: token ids at which it must stop: end of sequence, where the model ends its turns the
            special tokens of ``turn_template`` too, and the closing tags where each is one token of the
            vocabulary.
        stop_strings: the closing tags, where they are not single tokens; else empty.

    Raises:
        ValueError: the model's chat template knows nothing of an option, or a template of the protocol writes
            a control token of another model.
    """

    def __init__(
        self, tokenizer: "PreTrainedTokenizerBase", protocol: Protocol, tools: Sequence[Tool] = ()
    ) -> None:
        self.tokenizer = tokenizer
        self.protocol = protocol
        self.tools = tools
        self._options = dict(protocol.template_options or {})
        self._check_options()
        self._check_control_tokens()
        self.answer_stop = closing(protocol.answer)
        calls = tuple(map(closing, protocol.call_tags))
        self.stop_tags = {"answer": (*calls, self.answer_stop), "end": ()}.get(protocol.stop, calls)
        added = tokenizer.get_added_vocab()
        tag_ids = [added.get(tag) for tag in self.stop_tags]
        self._tag_ids = [tag_id for tag_id in tag_ids if tag_id is not None] if None not in tag_ids else []
        self.eos_token_ids = end_token_ids(tokenizer)
        begun = {*self.encode(protocol.turn_template)} & {*tokenizer.all_special_ids}
        own = protocol.stop == "end" and not protocol.retokenise  # whether the model's turns are its own
        self._end_ids = self.eos_token_ids | (begun if own else set())
        self.stop_token_ids = sorted({*self._end_ids, *self._tag_ids})
        self.stop_strings = [] if self._tag_ids else list(self.stop_tags)
        # Control tokens that are not marked special (<tool_call>, say) look like tags, so their brackets give
        # them away.
        control = (each for each, i in added.items() if each[:1] in "<[" or i in self.eos_token_ids)
        self.special_tokens = tuple(sorted({*tokenizer.all_special_tokens, *control}))

    def _check_options(self) -> None:
        """Raises ValueError for an option that a template would silently ignore."""
        template = str(self.tokenizer.chat_template or "")
        if unknown := [name for name in self._options if not re.search(rf"\b{re.escape(name)}\b", template)]:
            raise ValueError(
                f"protocol.template_options: the model's chat template knows no {', '.join(unknown)}"
            )

    def _check_control_tokens(self) -> None:
        """Raises ValueError where a protocol made for one family of models is used with another."""
        for name in ("result_template", "turn_template", "opening", "invalid_turn"):
            for token in _CONTROL.findall(getattr(self.protocol, name)):
                if len(self.encode(token)) != 1:
                    raise ValueError(f"protocol.{name}: {token} is no token of this model: give its own form")

    def decode(self, token_ids: Sequence[int]) -> str:
        """Text of the tokens as they are, special tokens included."""
        return str(
            self.tokenizer.decode(
                list(token_ids), skip_special_tokens=False, clean_up_tokenization_spaces=False
            )
        )

    def until_end(self, token_ids: Sequence[int]) -> list[int]:
        """The tokens up to the first that ends the text, that one included; all of them if none does."""
        ends = (place for place, each in enumerate(token_ids, start=1) if each in self._end_ids)
        return list(token_ids[: next(ends, len(token_ids))])

    def has_ended(self, token_ids: Sequence[int]) -> bool:
        """Whether the model ended its text itself."""
        return not self.eos_token_ids.isdisjoint(token_ids[-1:])

    def said(self, token_ids: Sequence[int]) -> str:
        """Text of sampled tokens without those that end it."""
        return self.decode([each for each in token_ids if each not in self.eos_token_ids])

    def retokenised(self, token_ids: Sequence[int], tag: str | None) -> list[int]:
        """The tokens of a turn's text up to its closing tag, without special tokens.

        The one that ends an episode stays; where the model ends its turns, each gets one.
        """
        text = str(self.tokenizer.decode(list(token_ids), skip_special_tokens=True))
        text = text[: text.index(tag) + len(tag)] if tag and tag in text else text
        if self.protocol.stop == "end":
            return [*self.encode(text), self.tokenizer.eos_token_id]
        ends = not self.protocol.invalid_turn and self.has_ended(token_ids)
        return self.encode(text) + [*token_ids[-1:]] * ends

    def encode(self, text: str) -> list[int]:
        """Tokens of text that we wrote; never adds BOS or EOS."""
        return list(self.tokenizer.encode(text, add_special_tokens=False))

    def chat(self, system: str | None, user: str) -> list[int]:
        """Tokens of a prompt by the model's chat template; without one, of both texts as they stand.

        None sends no system message; an empty text sends an empty one.

        If the template has no place for a system message, its text goes in front of the user's.

        Raises:
            ValueError: the template fails, or leaves out what the user says or, with the prompt, the tools.
        """
        if not self.tokenizer.chat_template:
            return self.plain(f"{system or ''}\n\n{user}".lstrip())
        if system is not None and not self._takes_system_message:
            system, user = None, f"{system}\n\n{user}" if system else user
        rendered = self._rendered(system, user)
        if missing := [tool.name for tool in self._told if tool.name not in rendered]:
            raise ValueError(
                f"neither the model's chat template nor the prompt names the tools {', '.join(missing)}: "
                "put {tools} into the prompt"
            )
        return self.encode(rendered + self.protocol.opening)

    def plain(self, text: str) -> list[int]:
        """Tokens of a prompt without a chat template, behind what the tokenizer itself begins with (BOS)."""
        return beginning(self.tokenizer) + self.encode(text + self.protocol.opening)

    @property
    def _told(self) -> Sequence[Tool]:
        """The tools that the chat template is given."""
        return self.tools if self.protocol.calls == "json" and self.protocol.template_tools else ()

    @cached_property
    def _takes_system_message(self) -> bool:
        """Some templates refuse a system message (Gemma's), others leave it out."""
        system, user = "systemprobe", "userprobe"
        try:
            rendered = self._rendered(system, user)
            if system in rendered and user in rendered:
                return True
        except ValueError:
            pass  # said below, unless the template works without one
        if user not in self._rendered(None, user):
            raise ValueError("the model's chat template leaves out what the user says")
        return False

    def _rendered(self, system: str | None, user: str) -> str:
        messages = [] if system is None else [{"role": "system", "content": system}]
        messages.append({"role": "user", "content": user})
        said = [tool.schema for tool in self._told] or None
        try:
            rendered = self.tokenizer.apply_chat_template(
                messages, tools=said, tokenize=False, add_generation_prompt=True, **self._options
            )
        except Exception as error:  # a template is the model's own program, which may raise anything
            raise ValueError(f"the model's chat template fails: {' '.join(str(error).split())}") from error
        return str(rendered)

    def cut(self, token_ids: Sequence[int]) -> tuple[list[int], str | None]:
        """The sampled tokens up to the end of the text or of the first closing tag, and that tag or None.

        A token is never split: where the tag ends inside a token (``>\\n`` is one token for many
        vocabularies), that token is kept whole, since it is what the model sampled.
        """
        token_ids = self.until_end(token_ids)
        for position, token_id in enumerate(token_ids if self._tag_ids else ()):
            if token_id in self._tag_ids:
                return token_ids[: position + 1], self.stop_tags[self._tag_ids.index(token_id)]
        kept, tag = (token_ids, None) if self._tag_ids else self._cut_by_text(token_ids, self.stop_tags)
        if tag is None and self.protocol.stop == "call_first":
            return self._cut_by_text(kept, [self.answer_stop])
        return kept, tag

    def _cut_by_text(self, token_ids: list[int], tags: Sequence[str]) -> tuple[list[int], str | None]:
        text = self.decode(token_ids)
        _, tag = min(((text.index(tag), tag) for tag in tags if tag in text), default=(0, None))
        if tag is None:
            return token_ids, None
        low, high = 1, len(token_ids)  # the shortest prefix that holds the tag, by bisection
        while low < high:
            middle = (low + high) // 2
            low, high = (low, middle) if tag in self.decode(token_ids[:middle]) else (middle + 1, high)
        return token_ids[:low], tag

    def truncate(self, text: str, tokens: int) -> str:
        """A prefix of at most ``tokens`` tokens that ends between words, or anywhere in what has no words."""
        token_ids = self.encode(text)
        if len(token_ids) <= tokens:
            return text
        prefix = self.decode(token_ids[: max(tokens, 0)]).rstrip("\ufffd")
        return prefix[: len(prefix) - _begun_word(prefix)].rstrip() or prefix

    @property
    def tools_text(self) -> str:
        """The tools as a prompt can name them."""
        if self.protocol.calls == "json":
            return "\n".join(json.dumps(tool.schema, ensure_ascii=False) for tool in self.tools)
        return "\n".join(map(self._tool_line, self.tools))

    def _tool_line(self, tool: Tool) -> str:
        tag, names = self.protocol.tag_of(tool.name), list(tool.arguments.model_fields)
        content = names[0] if len(names) == 1 else "{" + ", ".join(f'"{each}": ...' for each in names) + "}"
        return f"<{tag}>{content}</{tag}>: {tool.description}"

    def clean(self, text: str) -> str:
        """Text from outside without tags and special tokens, as protocol.neutralise makes it."""
        if not self.protocol.neutralise:
            return well_formed(text)
        clean = self._neutralise(well_formed(text))
        if clean.isascii():
            return clean
        # Some tokenizers take other characters for those of a tag, or leave them out.
        read = self.decode(self.encode(clean))
        return clean if (safe := self._neutralise(read)) == read else safe

    def _neutralise(self, text: str) -> str:
        return neutralise(text, self.protocol, self.special_tokens)

    def passage_texts(self, passages: Sequence[Passage], tokens: int) -> list[str]:
        """Each passage, cleaned, by the protocol's template, of at most so many tokens."""
        # A token has at most that many characters; the rest of a huge passage need not be looked at.
        reach = (tokens + 1) * self._longest_token
        cleaned = [Passage(each.id, self.clean(each.contents[:reach])) for each in passages]
        return [
            self.truncate(render_passage(each, rank, self.protocol), tokens)
            for rank, each in enumerate(cleaned, start=1)
        ]

    @cached_property
    def _longest_token(self) -> int:
        return max(map(len, self.tokenizer.get_vocab()))

    def result_block(
        self, passages: Sequence[Passage], room: int, passage_tokens: int, call: str = ""
    ) -> ResultBlock | None:
        """The block to inject for retrieved passages, within ``room`` tokens, closing tag included.

        Each passage is cut to ``passage_tokens`` tokens. If all do not fit, the lowest-ranked go first; the
        best one is shortened if it does not fit alone. None if not even an empty block fits.
        """
        texts = self.passage_texts(passages, passage_tokens)
        for shown in range(len(texts), 0, -1):
            block = self._block(texts[:shown], shown, call)
            if len(block.token_ids) <= room:
                return block
        return self._shortened(texts[0] if texts else "", room, min(1, len(texts)), call)

    def text_block(self, text: str, room: int, most: int, call: str = "") -> ResultBlock | None:
        """The block to inject for a tool's text of at most `most` tokens; None if none fits."""
        reach = (most + 1) * self._longest_token
        return self._shortened(self.truncate(self.clean(text[:reach]).strip(), most), room, 0, call)

    def notice_block(self, notice: str, room: int, call: str = "") -> ResultBlock | None:
        """The block that stands in for passages when there are none to show; None if it does not fit."""
        return self._shortened(notice, room, 0, call, form="{value}")

    def turn_block(self, blocks: Sequence[ResultBlock], most: int | None) -> ResultBlock:
        """The blocks of all calls of a turn in one, cut to `most` tokens wherever that is."""
        text = self.protocol.turn_template.replace("{results}", "".join(block.text for block in blocks))
        block = ResultBlock(self.encode(text), text, sum(block.shown for block in blocks))
        if most is None or len(block.token_ids) <= most:
            return block
        return ResultBlock(block.token_ids[:most], self.decode(block.token_ids[:most]), block.shown)

    @cached_property
    def turn_frame(self) -> int:
        """Number of tokens around the results of a turn."""
        return len(self.encode(self.protocol.turn_template.replace("{results}", "")))

    def _block(self, texts: Sequence[str], shown: int, call: str, form: str | None = None) -> ResultBlock:
        passages = self.protocol.passage_separator.join(texts).strip()
        form = self.protocol.value_template if form is None else form
        passages = form.replace("{value}", passages) if passages else ""
        if self.protocol.neutralise:  # once more as a whole: two texts may form a tag where they meet
            passages = self._neutralise(passages)
        text = render_result([passages], self.protocol, self.clean(call))
        return ResultBlock(self.encode(text), text, shown)

    def _shortened(
        self, text: str, room: int, shown: int, call: str, form: str | None = None
    ) -> ResultBlock | None:
        block = self._block([text], shown, call, form)
        while len(block.token_ids) > room and text:
            keep = len(self.encode(text)) - (len(block.token_ids) - room)
            text = self.truncate(text, keep) if keep > 0 else ""
            block = self._block([text], shown if text else 0, call, form)
        return block if len(block.token_ids) <= room else None


def _begun_word(text: str) -> int:
    """How many characters at the end belong to an unfinished word; 0 for scripts without word breaks."""
    end = re.split(r"\s", text[-LONGEST_WORD - 1 :])[-1]
    return 0 if len(end) > LONGEST_WORD or UNSPACED.search(end) else len(end)
