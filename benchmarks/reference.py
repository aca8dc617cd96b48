r"""Our loop, prompts and rewards beside a reference's own code, with the same scripted model.

    git clone https://github.com/PeterGriffinJin/Search-R1 ../Search-R1
    pip download --no-deps dashscope && unzip dashscope*.whl '*qwen.tiktoken'
    python -m benchmarks.reference --system search_r1 --reference ../Search-R1 \
        --tiktoken dashscope/resources/qwen.tiktoken

Prints how many scripts are equal in prompt, in the context of each turn, in response, mask, answer and reward,
and for the others why not. Exits 1 if a difference has no reason on the list; docs/fidelity.md says what
the reasons mean. The checkout is read, never changed or copied.
"""

import asyncio
import json
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import click

from benchmarks.references import ours, research, search_r1, tongsearch_qr
from benchmarks.references.model import Outcome, ScriptedModel, qwen_tokenizer
from benchmarks.references.scripts import HOSTILE, Script, scripts

FIELDS = ("prompt", "contexts", "response", "mask", "answer", "reward")
SPECIAL = ("<|im_start|>", "<|im_end|>", "<|endoftext|>")


def _differences(theirs: Outcome, mine: Outcome) -> list[str]:
    """The fields that differ."""
    pairs = {
        "prompt": (theirs.contexts[:1], mine.contexts[:1]),
        "contexts": (theirs.contexts[1:], mine.contexts[1:]),
        "response": (theirs.response_ids, mine.response_ids),
        "mask": (theirs.mask, mine.mask),
        "answer": (theirs.answer or "", mine.answer or ""),
        "reward": (round(theirs.reward, 4), round(mine.reward, 4)),
    }
    return [name for name in FIELDS if pairs[name][0] != pairs[name][1]]


def _reason(script: Script, theirs: Outcome, mine: Outcome, tokenizer: Any, budget: int) -> str:
    """Why an episode differs, by the list of docs/fidelity.md; empty where nothing on it explains it."""
    if "<" in script.question:
        return "a tag in the question is defused"
    shown = [each for each in script.pool if each in (*HOSTILE,)]
    their_text, our_text = (tokenizer.decode(each.response_ids) for each in (theirs, mine))
    if any(each.split("\n")[0] in their_text for each in shown):
        return "tags and special tokens of a passage are defused"
    if their_text == our_text:
        return "the reference decodes and tokenizes again"
    if len(theirs.response_ids) > budget or len(theirs.contexts[-1]) > budget:
        return "the length ends it elsewhere"
    if _squeezed(their_text) == _squeezed(our_text):
        return "a token that ends behind its tag is kept whole"
    return ""


def _squeezed(text: str) -> str:
    return "".join(text.split())


def _compare(
    made: list[Script], play: Callable[[Script], Outcome], own: Callable[[Script], Outcome], tokenizer: Any
) -> tuple[Counter[str], Counter[str], list[dict[str, Any]]]:
    """Equal ones by field, the others by reason, and those without one."""
    equal: Counter[str] = Counter()
    reasons: Counter[str] = Counter()
    unexplained = []
    for number, script in enumerate(made):
        theirs, mine = play(script), own(script)
        different = _differences(theirs, mine)
        equal.update(name for name in FIELDS if name not in different)
        if not different:
            reasons["equal in everything"] += 1
            continue
        reason = _reason(script, theirs, mine, tokenizer, 4096)
        reasons[reason or "NO REASON"] += 1
        if not reason:
            unexplained.append(_report(number, script, different, theirs, mine, tokenizer))
    return equal, reasons, unexplained


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
    }


def _parting(theirs: Outcome, mine: Outcome, tokenizer: Any) -> list[str]:
    """Both responses from a little before they part."""
    pairs = zip(theirs.response_ids, mine.response_ids, strict=False)
    place = next((at for at, (one, other) in enumerate(pairs) if one != other), -20)
    return [tokenizer.decode(each.response_ids[max(place - 20, 0) :][:60]) for each in (theirs, mine)]


def _own_rewriting(think: bool, tokenizer: Any) -> Callable[[Script], Outcome]:
    """Our reading of a rewritten text and embedding_gain, as the reference's training has them."""
    from research.datasets.reference_prompts import prompt_to_keep
    from research.datasets.rewriting_tasks import RewritingTask
    from research.episode.loop import Generation, Limits
    from research.episode.prompts import build_prompt
    from research.episode.protocol import Protocol
    from research.episode.rewriting import rewritten_query, run_rewriting
    from research.episode.tokens import TokenProtocol
    from research.rewards.rewriting.embedding_gain import TextReward

    protocol = Protocol(stop="end", answer_rule="after_think", boxed=False)
    tokens = TokenProtocol(tokenizer, protocol)
    prompt = prompt_to_keep("tongsearch_qr_think" if think else "tongsearch_qr")
    encoder = tongsearch_qr.WordEncoder()

    async def encode(texts: list[str]) -> Any:
        return encoder.encode(texts)

    reward = TextReward(SimpleNamespace(load_encoder=lambda: None, encode=encode))  # type: ignore[arg-type]

    async def play(script: Script) -> Outcome:
        model = ScriptedModel(script, tokenizer)

        async def generate(context: list[int], most: int) -> Generation:
            sampled, _ = model.sample(context, tokens.stop_strings, most)
            return Generation(sampled, [-1.0] * len(sampled))

        prompt_ids = build_prompt(prompt, script.question, tokens)
        trajectory = await run_rewriting(prompt_ids, generate, tokens, Limits(0, 500, 500, 0))
        text = rewritten_query(trajectory, tokens, think)
        task = RewritingTask("1", script.question, script.pool, ("1",), ())
        score = (await reward(task, text)).score if text else -1.0
        return Outcome(model.contexts, trajectory.response_ids, trajectory.response_mask, text, score)

    return lambda script: asyncio.run(play(script))


def _their_rewriting(think: bool, checkout: Path, tokenizer: Any) -> Callable[[Script], Outcome]:
    def play(script: Script) -> Outcome:
        model = ScriptedModel(script, tokenizer)
        sampled, _ = model.sample(tongsearch_qr.prompt_ids(script, checkout, tokenizer, think), (), 500)
        text = tokenizer.decode(sampled, skip_special_tokens=True)
        query, reward = tongsearch_qr.score(script, text, checkout, think)
        return Outcome(model.contexts, sampled, [1] * len(sampled), query, reward)

    return play


def _players(
    system: str, checkout: Path, tokenizer: Any, words: tuple[str, ...]
) -> tuple[Callable[[Script], Outcome], Callable[[Script], Outcome]]:
    """The reference's and ours."""
    if system.startswith("tongsearch_qr"):
        think = system.endswith("think")
        return _their_rewriting(think, checkout, tokenizer), _own_rewriting(think, tokenizer)
    if system == "search_r1":
        config = ours.preset("search_r1", *words)
        return (
            lambda script: search_r1.play(script, checkout, tokenizer),
            lambda script: ours.play(script, config, tokenizer, "search_r1_reference"),
        )
    # Its training bounds the response alone, and searches for an empty query.
    words = ("limits.total_tokens=null", "protocol.empty_query=search", "protocol.retokenise=false", *words)
    config = ours.preset("research_instruct", *words)
    return (
        lambda script: research.play(script, checkout, tokenizer),
        lambda script: ours.play(script, config, tokenizer, "research_reference"),
    )


@click.command()
@click.option(
    "--system",
    required=True,
    type=click.Choice(["search_r1", "research", "tongsearch_qr", "tongsearch_qr_think"]),
)
@click.option("--reference", required=True, type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option(
    "--tiktoken", required=True, type=click.Path(exists=True, path_type=Path), help="qwen.tiktoken."
)
@click.option("--scripts", "count", default=2000, show_default=True)
@click.option("--seed", default=0, show_default=True)
@click.option("--show", default=3, show_default=True, help="Unexplained differences to print.")
@click.argument("words", nargs=-1)
def main(
    system: str, reference: Path, tiktoken: Path, count: int, seed: int, show: int, words: tuple[str, ...]
) -> None:
    """See the top of this file. WORDS are key=value of our configuration, like protocol.neutralise=false."""
    tokenizer = qwen_tokenizer(tiktoken)
    made = scripts(count, seed, system == "research", "information" if system == "search_r1" else "result")
    play, own = _players(system, reference, tokenizer, words)
    equal, reasons, unexplained = _compare(made, play, own, tokenizer)
    print(f"{system}: {count} scripts; equal in " + ", ".join(f"{each} {equal[each]}" for each in FIELDS))
    for reason, number in reasons.most_common():
        print(f"  {number:6,}  {reason}")
    for each in unexplained[:show]:
        print(json.dumps(each, indent=1, ensure_ascii=False))
    sys.exit(bool(unexplained))


if __name__ == "__main__":
    main()
