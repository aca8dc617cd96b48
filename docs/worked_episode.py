"""The episode of docs/method.md in numbers: tokens, mask and reward, and the advantages of its group.

python docs/worked_episode.py

The policy is a script, so nothing is sampled; everything else is the code that trainings run.
"""

import asyncio
from statistics import mean, stdev

from research.datasets.mini.tokenizer import train_tokenizer
from research.episode.loop import Generation, Limits, run_episode
from research.episode.prompts import build_prompt
from research.episode.protocol import Protocol
from research.episode.tokens import TokenProtocol
from research.episode.tools import search_tool
from research.episode.trajectory import Passage, Trajectory
from research.rewards import AnswerReward, Reference

QUESTION = "What is the setting of the national epic of Finey Fannland?"
ANSWERS = ("Marlus Keddburg", "Marlus Keddburg the spa", "spa Marlus Keddburg")
TURNS = (
    "<think> the national epic, then the setting</think>"
    "<search> makes its children read Finey Fannland</search>",
    "<think> the national epic is Meli Rammtale, then the setting</think>"
    "<search> takes place in Meli Rammtale</search>",
    "<think> the setting is Marlus Keddburg the spa</think>"
    "<answer>\\boxed{ Marlus Keddburg the spa}</answer>",
)
PASSAGES = {
    "Finey Fannland": "Winters in Finey Fannland are long. A song tells of Wunen Wanner. It swore in Treden "
    "Primmole. It makes its children read Meli Rammtale.",
    "Meli Rammtale": "Meli Rammtale is a play in three parts. It came from the pen of Drita Javett. It takes "
    "place in Marlus Keddburg the spa. A song tells of Lama Remmavia the kingdom.",
}
GROUP = (1.0, 1.0, 1.0, 0.0, 0.0, 0.0, 0.0, 0.0)
"""Rewards of eight samples of the question, of which the episode is the first."""


async def search(query: str) -> list[Passage]:
    """The passage whose title ends the query."""
    return [Passage(title, f"{title}\n{text}") for title, text in PASSAGES.items() if query.endswith(title)]


async def play(tokens: TokenProtocol) -> Trajectory:
    """The episode, with its reward."""
    turns = iter(TURNS)

    async def generate(token_ids: list[int], max_tokens: int) -> Generation:
        sampled = tokens.encode(next(turns))[:max_tokens]
        return Generation(sampled, [0.0] * len(sampled))

    limits = Limits(searches=8, turn_tokens=64, response_tokens=768, passage_tokens=100)
    prompt_ids = build_prompt("question", QUESTION, tokens)
    trajectory = await run_episode(prompt_ids, generate, [search_tool(search)], tokens, limits)
    reward = await AnswerReward("exact_match")(trajectory, Reference(QUESTION, ANSWERS, tokens.protocol))
    trajectory.reward, trajectory.reward_reason = reward.score, reward.reason
    return trajectory


def main() -> None:
    tokens = TokenProtocol(train_tokenizer(), Protocol())
    trajectory = asyncio.run(play(tokens))
    print(f"prompt {len(trajectory.prompt_ids)} tokens: {tokens.decode(trajectory.prompt_ids)!r}")
    for segment in trajectory.segments:
        mask = int(segment.author == "model")
        print(f"{segment.author:11} {len(segment.token_ids):3} tokens, mask {mask}: {segment.text!r}")
    mask_sum, length = sum(trajectory.response_mask), trajectory.response_length
    print(f"response {length} tokens, {mask_sum} of them trained on, {length - mask_sum} masked")
    print(f"ended by {trajectory.finish_reason}, reward {trajectory.reward}: {trajectory.reward_reason}")
    print(f"group: mean {mean(GROUP)}, standard deviation {stdev(GROUP):.4f}")
    for reward in sorted(set(GROUP)):
        print(f"advantage of reward {reward}: {(reward - mean(GROUP)) / (stdev(GROUP) + 1e-6):+.4f}")


if __name__ == "__main__":
    main()
