"""The agent protocol as pure functions: tags, parsing of turns, injected passages, the format check.

A model thinks in ``<think>``, asks in ``<search>``, reads the ``<result>`` that the environment injects and
ends with ``<answer>`` (ReSearch, arXiv 2503.19470). Other protocols are other values of the same fields:
Search-R1 calls the result ``<information>`` and puts its answer straight into ``<answer>``
(research/config/protocol/search_r1.yaml).
"""

import re
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from os.path import commonprefix
from typing import Any

from research.episode.trajectory import Passage, Trajectory


@dataclass(frozen=True)
class Protocol:
    """Tag names and templates of one protocol.

    ``result_template`` must hold ``{passages}`` between the result tags, and ``passage_template`` may use
    ``{rank}`` (from 1), ``{title}``, ``{text}``, ``{contents}``, ``{first_line}`` and ``{rest}``. ``boxed``:
    the exact answer stands in ``\\boxed{}``. ``calls`` is how tools are called, ``tags`` or ``json``
    (research/episode/calls.py); with ``json``, ``search`` is the tag of every call, ``{call}`` in the result
    template is the call as it was written, and ``turn_template`` stands around the ``{results}`` of a turn's
    calls. ``tools``: the tags of further tools. The other fields say where released checkpoints expect
    something else than the default; docs/fidelity.md has the reasons.

    Attributes:
        template_options: further values for the chat template, by their names in it (``enable_thinking``).
        template_tools: with ``json``, whether the chat template is given the tools; else a prompt names them.
        stop: the closing tags at which an engine stops: ``answer``, those of calls and of the answer;
            ``call``, those of calls, so that the model ends its answer itself; ``call_first``, the same, but
            what follows an answer is cut, unless a call does (Search-R1); ``end``, none: the model ends all
            its turns, and one that it has not ended calls nothing (ReCall).
        parse: what a turn asks for: ``last_tag``, the last opening tag before the closing one it ended at;
            ``first_pair``, the first complete pair of tags in it, of a call or of an answer (Search-R1).
        empty_query: what an empty search gets: ``notice``, ``search``, or the text that it gets instead.
        no_results: what stands in the result of a call that gave nothing.
        value_template, error_template: how what a call gave, and why it failed, stand in its result.
        faults: with ``json``, how a call that cannot be made is told: ``own``, in our words; ``parsed``, in
            Python's; ``executed``, the same, but a call that is no JSON was run for all that (ReCall).
        opening: what the first turn begins with, after the prompt; ``turn_template`` ends in it.
        invalid_turn: what is said, as it stands, after a turn that neither calls nor answers; with an empty
            text such a turn ends the episode.
        answer_rule: the answer that counts: ``last_turn``, the last one of the last turn; ``first`` or
            ``last`` of the whole response; ``last_text``, the last turn but for its thoughts, without tags;
            ``after_think``, the first one that follows a closed thought (TongSearch-QR).
        unwrap_text: whether ``\\text{Paris}`` in the box is Paris; else the box is read as ReSearch's
            reference reads it.
        retokenise: whether a turn is cut at its closing tag by its text and tokenized again, as theirs are.
            Its tokens are then not those sampled, so that nothing can be trained on them. With ``stop: end``
            each turn gets an end token.
        retokenise_whole: with `retokenise`, whether a turn is sampled behind prompt and response tokenized
            as one text, so that tokens may reach across the borders of results (ReSearch's evaluation).
        neutralise: whether tags and special tokens in questions and results are defused.

    Raises:
        ValueError: a template lacks its placeholder or its tags.
    """

    think: str = "think"
    search: str = "search"
    result: str = "result"
    answer: str = "answer"
    boxed: bool = True
    result_template: str = " <result>\n{passages}\n</result>"
    passage_template: str = "{contents}"
    passage_separator: str = "\n\n"
    calls: str = "tags"
    template_tools: bool = True
    tools: tuple[str, ...] = ()
    stop: str = "answer"
    parse: str = "last_tag"
    empty_query: str = "notice"
    no_results: str = "No results."
    value_template: str = "{value}"
    error_template: str = "{error}"
    faults: str = "own"
    opening: str = ""
    invalid_turn: str = ""
    turn_template: str = "{results}"
    answer_rule: str = "last_turn"
    unwrap_text: bool = True
    retokenise: bool = False
    retokenise_whole: bool = False
    neutralise: bool = True
    template_options: Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        before, found, after = self.result_template.partition("{passages}")
        if not found or opening(self.result) not in before or closing(self.result) not in after:
            tags = f"{opening(self.result)}, {{passages}} and {closing(self.result)}"
            raise ValueError(f"protocol.result_template must hold {tags}")

    @property
    def names(self) -> tuple[str, ...]:
        """All tags."""
        return self.think, self.search, self.result, self.answer, *self.tools

    @property
    def call_tags(self) -> tuple[str, ...]:
        """The tags whose closing ends a turn for a call."""
        return self.search, *self.tools

    def with_tools(self, names: Iterable[str]) -> "Protocol":
        """The protocol with the tags of these tools."""
        return self if self.calls == "json" else replace(self, tools=tuple(n for n in names if n != "search"))

    def failed(self, error: str) -> str:
        """What the model reads after a failed call."""
        return self.error_template.replace("{error}", error)

    def tag_of(self, tool: str) -> str:
        """The tag by which a tool is called."""
        return self.search if tool == "search" else tool


def opening(name: str) -> str:
    """``think`` -> ``<think>``."""
    return f"<{name}>"


def closing(name: str) -> str:
    """``think`` -> ``</think>``."""
    return f"</{name}>"


def first_pair(turn: str, protocol: Protocol) -> tuple[str, str] | None:
    """The tag of the first complete pair in a turn, call or answer, and the stripped text in it."""
    names = "|".join(map(re.escape, (*protocol.call_tags, protocol.answer)))
    found = re.search(rf"<({names})>(.*?)</\1>", turn, re.DOTALL)
    return (found[1], found[2].strip()) if found else None


def parse_call(turn: str, protocol: Protocol) -> tuple[str, str] | None:
    """The tag of the call that a turn ends in, and the stripped text in it.

    None if the turn closes no call, or closes one that it never opened. An empty call is an empty text.
    """
    if protocol.parse == "first_pair":
        pair = first_pair(turn, protocol)
        return pair if pair and pair[0] != protocol.answer else None
    ends = [(end, tag) for tag in protocol.call_tags if (end := turn.find(closing(tag))) >= 0]
    end, tag = min(ends, default=(0, ""))
    _, opened, content = turn[:end].rpartition(opening(tag))
    return (tag, content.strip()) if ends and opened else None


# ----------------------------------------------------------------------------------------------------
# tags and injection

# What a reader does not see: white space, soft hyphens, zero-width characters. Possessive (*+), so that a
# long run of them is scanned only once.
_BLANKS = r"[\s\u00ad\u200b-\u200f\u2060\ufeff]*+"


def _tag(names: Iterable[str]) -> str:
    """What counts as a tag, whoever wrote it: any case, blanks anywhere but in the name, which is group 1."""
    return rf"(?i:<{_BLANKS}/?{_BLANKS}({'|'.join(map(re.escape, names))}){_BLANKS}>)"


@lru_cache(maxsize=32)
def _tag_pattern(names: tuple[str, ...]) -> re.Pattern[str]:
    return re.compile(_tag(names))


def _any_of(literals: Collection[str]) -> str:
    """A pattern for any of the literals; thousands of them take hardly longer than one."""
    prefix = commonprefix(list(literals))
    rests: dict[str, set[str]] = {}
    for literal in sorted(literals):
        rest = literal[len(prefix) :]
        rests.setdefault(rest[:1], set()).add(rest)
    optional = "?" if rests.pop("", None) and rests else ""
    branches = "|".join(map(_any_of, rests.values()))
    return re.escape(prefix) + (f"(?:{branches}){optional}" if branches else "")


@lru_cache(maxsize=32)
def _control_pattern(names: tuple[str, ...], literals: tuple[str, ...]) -> tuple[re.Pattern[str], str]:
    """Tags and literals, and a character that is in none of them, so that it parts each for good."""
    pattern = re.compile("|".join([_tag(names), *([_any_of(literals)] if literals else [])]))
    candidates = map(chr, (ord(" "), *range(ord("·"), 0x3000)))
    return pattern, next(each for each in candidates if each not in "".join(literals))


_BRACKETS = str.maketrans("<>[]", "()()")


def _defuse(literal: str, separator: str) -> str:
    """The literal with other brackets, or split after its first character: no longer a control token."""
    defused = literal.translate(_BRACKETS)
    if defused != literal:
        return defused
    return literal[0] + separator + literal[1:] if len(literal) > 1 else separator


def neutralise(text: str, protocol: Protocol, special_tokens: Iterable[str] = ()) -> str:
    """Text from outside without protocol tags and without special tokens of the tokenizer.

    ``<answer>`` becomes ``(answer)`` and ``<|im_end|>`` becomes ``(|im_end|)``, so neither the tokenizer, nor
    the format check, nor the policy can take them for control tokens. Repeats until nothing is left: defusing
    one literal may make another. Blank special tokens stay, because every text has blanks.
    """
    literals = tuple(token for token in special_tokens if token.strip())
    pattern, separator = _control_pattern(protocol.names, literals)
    while True:
        clean = pattern.sub(lambda match: _defuse(match.group(), separator), text)
        if clean == text:
            return clean
        text = clean


def render_passage(passage: Passage, rank: int, protocol: Protocol) -> str:
    """One passage by the protocol's template. ``rank`` counts from 1.

    ``{title}`` and ``{text}`` are stripped, the title of quotes too; ``{first_line}`` and ``{rest}`` are not.
    """
    first_line, _, rest = passage.contents.partition("\n")
    return protocol.passage_template.format(
        rank=rank,
        title=first_line.strip().strip('"'),
        text=rest.strip(),
        contents=passage.contents,
        first_line=first_line,
        rest=rest,
    )


def render_result(passages: Sequence[str], protocol: Protocol, call: str = "") -> str:
    """The injected block around rendered, neutralised passages (or around one notice)."""
    before, _, after = protocol.result_template.partition("{passages}")
    return before.replace("{call}", call) + protocol.passage_separator.join(passages).strip() + after


# ------------------------------------------------------------------------------------------- answer and
# format


_BRACE = re.compile(r"\\.|[{}]", re.DOTALL)  # an escaped brace is none


def _boxed_content(text: str) -> str | None:
    """The content of the last ``\\boxed{...}``, None if its braces do not balance.

    For ``\\boxed 5`` it is what follows, up to a ``$``, as in the reference.
    """
    _, command, after = text.rpartition("\\boxed")
    content = after.lstrip()
    if not command or not content:
        return None
    if content[0] != "{":
        return None if after[0].isalpha() else content.partition("$")[0]
    depth = 0
    for found in _BRACE.finditer(content):
        depth += {"{": 1, "}": -1}.get(found.group(), 0)
        if depth == 0:
            return content[1 : found.start()]
    return None


def plain_box(text: str) -> str | None:
    """The content of the last box as the references read it, or None: each brace counts, blanks stay."""
    if "\\boxed " in text:
        return text.rpartition("\\boxed ")[2].partition("$")[0]
    _, command, after = text.rpartition("\\boxed")
    depth = 0
    for place, character in enumerate(after if command and after.startswith("{") else ""):
        depth += {"{": 1, "}": -1}.get(character, 0)
        if depth == 0:
            return after[1:place]
    return None


def unboxed(text: str) -> str:
    """The content of a ``\\boxed{}`` that is the whole text; other texts unchanged."""
    content = _boxed_content(text)
    return content.strip() if content is not None and text == f"\\boxed{{{content}}}" else text


_LATEX_TEXT = re.compile(
    r"\\(?:text(?:bf|it|rm|sf|tt|up|md|sc|sl|normal)?|math(?:bf|it|rm|sf|tt)|mbox|emph)\s*+\{"
    r"|\\(?:[{}&%$#_ ]|\\)|[{}]"
)


def _without_text_commands(latex: str) -> str:
    """``\\text{New York}, \\textbf{\\$5}`` -> ``New York, $5``; other commands, and their braces, stay."""
    text_braces: list[bool] = []  # those that are open: whether a text command opened them

    def plain(found: re.Match[str]) -> str:
        piece = found.group()
        if piece == "}":
            return "" if text_braces and text_braces.pop() else piece
        if piece[-1] == "{" and piece != "\\{":
            text_braces.append(piece != "{")
            return "{" if piece == "{" else ""
        return piece if piece == "\\\\" else piece[1:]

    return _LATEX_TEXT.sub(plain, latex)


def answer_of(trajectory: Trajectory, protocol: Protocol) -> str | None:
    """The final answer of an episode, or None; the references' rules read the whole response."""
    in_a_turn = bool(trajectory.segments) and trajectory.segments[-1].author == "model"
    if protocol.stop == "call" and trajectory.finish_reason == "length" and in_a_turn:
        return None  # cut off: the model was to end its answer itself
    whole = protocol.answer_rule in ("first", "last")
    return extract_answer([trajectory.text] if whole else trajectory.model_turns, protocol)


def extract_answer(turns: Sequence[str], protocol: Protocol) -> str | None:
    """The final answer in the model's own text, or None.

    Args:
        turns: the model's turns in order, injected blocks left out. ``protocol.answer_rule`` says which
            answer counts; by default only the last turn can answer, and of several the last closed one.
    """
    inside = _answer_content(turns, protocol)
    if inside is None or not protocol.boxed:
        return None if inside is None else inside.strip()
    if not protocol.unwrap_text:
        return plain_box(inside)
    boxed = _boxed_content(inside)
    return None if boxed is None else _without_text_commands(boxed).strip()


def _answer_content(turns: Sequence[str], protocol: Protocol) -> str | None:
    """The text between the answer tags that count, None without them."""
    if protocol.answer_rule == "last_text":
        thought, text = rf"<{protocol.think}>.*?</{protocol.think}>", "".join(turns[-1:])
        return re.sub(thought, "", protocol.opening + text, flags=re.DOTALL).strip() or None
    if protocol.answer_rule == "after_think":
        pattern = rf"<{protocol.think}>.*?</{protocol.think}>\s*<{protocol.answer}>(.*?)</{protocol.answer}>"
        found = re.search(pattern, "".join(turns), re.DOTALL)
        return found[1] if found else None
    opened, closed = opening(protocol.answer), closing(protocol.answer)
    if protocol.answer_rule == "last_turn":
        before, end, _ = (turns[-1] if turns else "").rpartition(closed)
        _, start, inside = before.rpartition(opened)
        return inside if end and start else None
    pairs = re.findall(f"{re.escape(opened)}(.*?){re.escape(closed)}", "".join(turns), re.DOTALL)
    return (pairs[0] if protocol.answer_rule == "first" else pairs[-1]) if pairs else None


def format_fault(turns: Sequence[str], protocol: Protocol) -> str | None:
    """Why the model's own text breaks the protocol, or None if it keeps it.

    The rules are those of ReSearch's reference reward, read on the model's turns alone, so that neither a
    passage nor the prompt can change the verdict; in addition a result block that the model wrote itself is a
    fault.
    """
    found = list(_tag_pattern(protocol.names).finditer("".join(turns)))
    count = Counter(each.group() for each in found)
    think, answer, result = protocol.think, protocol.answer, protocol.result
    if any(each[1].casefold() == result.casefold() for each in found):
        return "the model wrote a result block itself"
    if misspelt := count.keys() - {write(name) for name in protocol.names for write in (opening, closing)}:
        return f"a tag is not spelt as the protocol has it: {min(misspelt)[:30]}"
    if count[opening(think)] != count[closing(think)] or not count[opening(think)]:
        return "think tags missing or unbalanced"
    for tag in protocol.call_tags:
        if count[opening(tag)] != count[closing(tag)]:
            return f"{tag} tags unbalanced"
    if any(parse_call(turn, protocol) is None for turn in turns[:-1]):
        return "a call was closed but never opened"
    if count[opening(answer)] != 1 or count[closing(answer)] != 1:
        return "not exactly one answer"
    if extract_answer(turns, protocol) is None:
        return "the answer holds no \\boxed{}" if protocol.boxed else "answer tags in the wrong order"
    return None
