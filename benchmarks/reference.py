r"""Our loop, prompts and rewards beside a reference's own code, with the same scripted model.

    git clone https://github.com/PeterGriffinJin/Search-R1 ../Search-R1
    pip download --no-deps dashscope && unzip dashscope*.whl '*qwen.tiktoken'
    python -m benchmarks.reference --system search_r1 --reference ../Search-R1 \
        --tiktoken dashscope/resources/qwen.tiktoken

Prints how many scripts are equal in prompt, in the context of each turn, in response, mask, answer and
reward, and for the others why not. Exits 1 if a difference has no reason on the list; docs/fidelity.md says
what the reasons mean. The checkout is read, never changed or copied.
"""

import json
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import click
from tqdm import tqdm

from benchmarks.references import ours, recall, research, research_eval, search_r1, tongsearch_qr
from benchmarks.references.cases import write_cases
from benchmarks.references.model import Outcome, byte_tokenizer, qwen_tokenizer
from benchmarks.references.scripts import Script, scripts
from benchmarks.references.tool_scripts import tool_scripts
from research.datasets.mini.policy import named_protocol
from research.datasets.reference_prompts import notice_to_keep
from research.episode.protocol import Protocol
from research.episode.tokens import TokenProtocol

Player = Callable[[Script], Outcome]
# A cause of differences -> what both make of a script without it.
Causes = dict[str, Callable[[Script], tuple[Outcome, Outcome]]]
DEFUSED = "tags and special tokens of question or passages are defused"
ROUNDING = 1e-3  # of sums of float32
FIELDS = ("prompt", "contexts", "response", "mask", "answer", "reward")
EVALUATED = ("prompt", "contexts", "requests", "response", "answer", *research_eval.SCORES)
PRESETS = {"research_eval": "research_instruct", "research_eval_base": "research_base"}


def _differences(theirs: Outcome, mine: Outcome) -> list[str]:
    """The fields that differ."""
    pairs = {
        "prompt": (theirs.contexts[:1], mine.contexts[:1]),
        "contexts": (theirs.contexts[1:], mine.contexts[1:]),
        "response": (theirs.response_ids, mine.response_ids),
        "mask": (theirs.mask, mine.mask),
        "requests": (theirs.requests, mine.requests),
        **{name: (True, abs(each - mine.scores[name]) < 1e-9) for name, each in theirs.scores.items()},
        "answer": (theirs.answer or "", mine.answer or ""),
        "reward": (True, abs(theirs.reward - mine.reward) < ROUNDING),
    }
    return [name for name, (their_value, my_value) in pairs.items() if their_value != my_value]


def _reason(theirs: Outcome, mine: Outcome, tokenizer: Any) -> str:
    """Why an episode differs, by the list of docs/fidelity.md; empty where that explains not all."""
    reasons = []
    if _has_block_behind(theirs, mine):
        reasons.append("the calls of the last turn are made, though no turn reads what they give")
        length = len(mine.response_ids)
        behind = tokenizer.decode(theirs.response_ids[length:])
        theirs = replace(theirs, response_ids=theirs.response_ids[:length], mask=theirs.mask[:length])
        if theirs.answer and f"\\boxed{{{theirs.answer}" in behind:  # of a block that no turn reads
            theirs = replace(theirs, answer=mine.answer, reward=mine.reward)
    different = {*_differences(theirs, mine)}
    boxed = theirs.answer == f"\\boxed{{{mine.answer}}}"
    if different <= {"contexts", "response", "mask"} and _texts(theirs, tokenizer) == _texts(mine, tokenizer):
        reasons += ["the same text, tokenized again by the reference"] * bool(different)
    elif boxed and different <= {"answer", "reward"}:
        reasons.append("a box around the whole text is taken off")
    else:
        return ""
    return "; ".join(reasons)


def _has_block_behind(theirs: Outcome, mine: Outcome) -> bool:
    """Whether theirs is ours and a block that is not trained, behind a turn that is."""
    length = len(mine.response_ids)
    more = len(theirs.response_ids) > length and not any(theirs.mask[length:])
    return more and theirs.response_ids[:length] == mine.response_ids and mine.mask[-1:] == [1]


def _texts(outcome: Outcome, tokenizer: Any) -> list[str]:
    """All that token ids are in an outcome, as text: contexts, response, and what of it is trained."""
    pairs = zip(outcome.response_ids, outcome.mask, strict=True)
    trained = [token for token, own in pairs if own]
    return [tokenizer.decode(each) for each in (*outcome.contexts, outcome.response_ids, trained)]


def _defused(script: Script, tokenizer: Any) -> Script:
    """The script with the tags and special tokens of question and passages defused for both sides."""
    for protocol in (named_protocol("search_r1_own"), Protocol()):
        clean = TokenProtocol(tokenizer, protocol).clean
        script = replace(script, question=clean(script.question), pool=tuple(map(clean, script.pool)))
    return script


@dataclass
class Comparison:
    """Equal episodes by field, others by reason, those without one, and those equal in everything."""

    equal: Counter[str] = field(default_factory=Counter)
    reasons: Counter[str] = field(default_factory=Counter)
    unexplained: list[dict[str, Any]] = field(default_factory=list)
    equal_episodes: list[tuple[Script, Outcome]] = field(default_factory=list)


def _compare(made: list[Script], play: Player, own: Player, causes: Causes, tokenizer: Any) -> Comparison:
    compared = Comparison()
    for number, script in enumerate(tqdm(made, disable=None)):
        theirs, mine = play(script), own(script)
        different = _differences(theirs, mine)
        compared.equal.update(name for name in {*FIELDS, *EVALUATED} if name not in different)
        if not different:
            compared.equal_episodes.append((script, theirs))
        reason = _reason(theirs, mine, tokenizer) if different else "equal in everything"
        for cause, again in causes.items() if not reason else ():  # is tried: without it both must be equal
            theirs, mine = again(script)
            left = _reason(theirs, mine, tokenizer) if _differences(theirs, mine) else "equal"
            if left:
                reason = f"{cause}; else {left}"
                break
        compared.reasons[reason or "NO REASON"] += 1
        if not reason:
            compared.unexplained.append(_report(number, script, different, theirs, mine, tokenizer))
    return compared


def _report(
    number: int, script: Script, different: list[str], theirs: Outcome, mine: Outcome, tokenizer: Any
) -> dict[str, Any]:
    return {
        "script": number,
        "different": different,
        "turns": [turn.text for turn in script.turns[: len(theirs.contexts)]],
        "where they part (theirs, ours)": _parting(theirs, mine, tokenizer),
        "answers": [theirs.answer, mine.answer],
        "rewards": [theirs.reward, mine.reward],
        "requests": [theirs.requests, mine.requests],
    }


def _parting(theirs: Outcome, mine: Outcome, tokenizer: Any) -> list[str]:
    """Both responses from a little before they part."""
    pairs = zip(theirs.response_ids, mine.response_ids, strict=False)
    place = next((at for at, (one, other) in enumerate(pairs) if one != other), -20)
    return [tokenizer.decode(each.response_ids[max(place - 20, 0) :][:60]) for each in (theirs, mine)]


def _causes(system: str, checkout: Path, tokenizer: Any, words: tuple[str, ...]) -> Causes:
    """What both may differ by: each cause by itself, then all of them."""
    if system.startswith("recall"):
        players = recall.Players(system.endswith("evaluation"), checkout, tokenizer, words)
        causes = {each: partial(players.again, without=(each,)) for each in players.causes}
        return {**causes, "several of these": partial(players.again, without=players.causes)}
    play, own = _players(system, checkout, tokenizer, words)

    def again(script: Script) -> tuple[Outcome, Outcome]:
        harmless = _defused(script, tokenizer)
        return play(harmless), own(harmless)

    return {DEFUSED: again}


def _players(system: str, checkout: Path, tokenizer: Any, words: tuple[str, ...]) -> tuple[Player, Player]:
    """The reference's and ours."""
    if system.startswith("recall"):
        players = recall.Players(system.endswith("evaluation"), checkout, tokenizer, words)
        return players.theirs, players.ours
    if system.startswith("tongsearch_qr"):
        think = system.endswith("think")
        return tongsearch_qr.their_player(think, checkout, tokenizer), tongsearch_qr.our_player(
            think, tokenizer
        )
    if system == "search_r1":
        config = ours.preset("search_r1", *words)
        return (
            lambda script: search_r1.play(script, checkout, tokenizer),
            lambda script: ours.play(script, config, tokenizer, "search_r1_reference"),
        )
    if system in PRESETS:
        evaluated, chat = ours.preset(PRESETS[system], *words), system == "research_eval"
        return (
            lambda script: research_eval.play(script, checkout, tokenizer, chat),
            lambda script: research_eval.evaluate(script, evaluated, tokenizer),
        )
    config = ours.preset("research_instruct", *ours.TRAINING["research"], *words)
    return (
        lambda script: research.play(script, checkout, tokenizer),
        lambda script: ours.play(script, config, tokenizer, "research_reference"),
    )


def _scripts(system: str, count: int, seed: int) -> list[Script]:
    if system.startswith("recall"):
        return tool_scripts(count, seed)
    return scripts(
        count, seed, system.startswith("research"), "information" if system == "search_r1" else "result"
    )


@click.command()
@click.option(
    "--system",
    required=True,
    type=click.Choice(
        ["search_r1", "research", *PRESETS, "recall", "recall_evaluation"]
        + ["tongsearch_qr", "tongsearch_qr_think"]
    ),
)
@click.option("--reference", required=True, type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option(
    "--tiktoken",
    type=click.Path(exists=True, path_type=Path),
    help="qwen.tiktoken, a file in the wheel dashscope.  [default: a token per byte]",
)
@click.option("--record", type=click.Path(path_type=Path), help="Write equal episodes, as facts for a test.")
@click.option("--scripts", "count", default=2000, show_default=True)
@click.option("--seed", default=0, show_default=True)
@click.option("--show", default=3, show_default=True, help="Unexplained differences to print.")
@click.argument("words", nargs=-1)
def main(
    system: str,
    reference: Path,
    tiktoken: Path | None,
    record: Path | None,
    count: int,
    seed: int,
    show: int,
    words: tuple[str, ...],
) -> None:
    """See the top of this file. WORDS are key=value of our configuration, like protocol.neutralise=false."""
    tokenizer = qwen_tokenizer(tiktoken) if tiktoken else byte_tokenizer()
    made = _scripts(system, count, seed)
    play, own = _players(system, reference, tokenizer, words)
    compared = _compare(made, play, own, _causes(system, reference, tokenizer, words), tokenizer)
    compared_fields = EVALUATED if system in PRESETS else FIELDS
    fields = ", ".join(f"{each} {compared.equal[each]}" for each in compared_fields)
    print(f"{system}: {count} scripts; equal in {fields}")
    for reason, number in compared.reasons.most_common():
        print(f"  {number:6,}  {reason}")
    for each in compared.unexplained[:show]:
        print(json.dumps(each, indent=1, ensure_ascii=False))
    if record:
        notice = notice_to_keep("search_r1") if system == "search_r1" else ""
        write_cases(record, system, compared.equal_episodes, tokenizer, notice)
    sys.exit(bool(compared.unexplained))


if __name__ == "__main__":
    main()
