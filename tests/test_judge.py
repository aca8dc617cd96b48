"""The judge on its own, as a reward uses it: verdicts that are cached and shared, failures that say why."""

import asyncio
from collections.abc import Sequence
from pathlib import Path

import pytest
from evaluation_stack import ModelServer

from research.episode.tokens import TokenProtocol
from research.judge import Judge, JudgeConfig, Verdict, read_verdicts

GOLDEN = ["Rhine"]


def verdicts(url: str, cache: Path, answers: Sequence[str], deadline: float = 30) -> list[Verdict]:
    async def ask() -> list[Verdict]:
        judge = Judge(JudgeConfig(url, "scripted", deadline=deadline), cache)
        try:
            return list(
                await asyncio.gather(*(judge.judge("Which river?", GOLDEN, each) for each in answers))
            )
        finally:
            await judge.close()

    return asyncio.run(ask())


def test_an_answer_is_judged_once_and_the_verdict_is_kept(tmp_path: Path, tag_tokens: TokenProtocol) -> None:
    server, cache = ModelServer(tag_tokens), tmp_path / "judgements.jsonl"
    with server.running() as url:
        right, same, wrong, empty = verdicts(url, cache, ["Rhine", "Rhine", "Rhone", " "])
        assert right == same == Verdict(True, "as accepted")
        assert (wrong.right, wrong.failed, empty.right, empty.reason) == (False, False, False, "no answer")
        assert server.verdicts == 2
        assert verdicts(url, cache, ["Rhine", "Rhone"]) == [right, wrong]
        assert server.verdicts == 2 and len(read_verdicts(cache)) == 2


def test_a_reply_that_is_no_verdict_fails_visibly_and_is_asked_for_again(
    tmp_path: Path, tag_tokens: TokenProtocol
) -> None:
    server, cache = ModelServer(tag_tokens), tmp_path / "judgements.jsonl"
    with server.running() as url:
        for requests in (1, 2):
            [verdict] = verdicts(url, cache, ["Arthur"])
            assert verdict.failed and not verdict.lasting and "not a verdict" in verdict.reason
            assert server.verdicts == requests
    assert not cache.exists()


def test_a_judge_that_is_not_there_fails_for_every_answer(tmp_path: Path) -> None:
    [verdict] = verdicts("http://127.0.0.1:9", tmp_path / "judgements.jsonl", ["Rhine"], deadline=0.1)
    assert verdict.failed and verdict.lasting and "127.0.0.1:9" in verdict.reason


def test_a_line_that_a_kill_cut_short_costs_that_verdict_alone(
    tmp_path: Path, tag_tokens: TokenProtocol
) -> None:
    server, cache = ModelServer(tag_tokens), tmp_path / "judgements.jsonl"
    with server.running() as url:
        verdicts(url, cache, ["Rhine"])
        with cache.open("a") as file:
            file.write('{"key": "ab')
        verdicts(url, cache, ["Rhine", "Rhone"])
        assert server.verdicts == 2
    assert [verdict.right for verdict in read_verdicts(cache).values()] == [True, False]


@pytest.mark.parametrize(("url", "model"), [(None, "judge"), ("http://127.0.0.1:9", None)])
def test_a_judge_needs_a_server_and_a_model(tmp_path: Path, url: str | None, model: str | None) -> None:
    with pytest.raises(ValueError, match="a judge needs"):
        Judge(JudgeConfig(url, model), tmp_path / "judgements.jsonl")
