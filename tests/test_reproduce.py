"""Released checkpoints by name: what a run would do, and ours beside the published figures."""

import pytest
from click.testing import CliRunner

from research.evaluation.released import family_of, preset_of, published_of
from research.evaluation.reproduce import beside_published, main


def dry_run(*arguments: str) -> str:
    result = CliRunner().invoke(main, [*arguments, "--dry-run"])
    assert result.exit_code == 0, result.output
    return result.output


@pytest.mark.parametrize(
    ("checkpoint", "said"),
    [
        ("agentrl/ReSearch-Qwen-7B", ("--preset research_base", "hotpotqa: 0.406", "wiki-18.jsonl")),
        ("agentrl/ReSearch-Qwen-7B-Instruct", ("--preset research_instruct", "bamboogle: 0.424")),
        ("agentrl/ReSearch-Qwen-32B-Instruct", ("--preset research_instruct", "hotpotqa: 0.467")),
        (
            "PeterJinGo/SearchR1-nq_hotpotqa_train-qwen2.5-7b-em-ppo-v0.2",
            ("--preset search_r1", "mean: 0.431"),
        ),
        (
            "PeterJinGo/SearchR1-nq_hotpotqa_train-qwen2.5-3b-it-em-grpo-v0.3",
            ("--preset search_r1", "no figure"),
        ),
        (
            "runs-instruct/SearchR1-nq_hotpotqa_train-qwen2.5-14b-em-ppo-v0.2",
            ("nq,triviaqa,popqa,hotpotqa", "e5-base-v2"),
        ),
        ("agentrl/ReCall-Qwen2.5-7B", ("--preset recall", "no figure")),
        ("TongSearch/TongSearch-QR-1.5B", ("--prompt tongsearch_qr", "mean: 24.6", "xlangai/BRIGHT")),
        ("TongSearch/TongSearch-QR-3B", ("--retriever bm25_query_weighted", "no figure")),
        ("TongSearch/TongSearch-QR-7B", ("revision 3066d29c", "mean: 27.9")),
    ],
)
def test_a_dry_run_says_all_that_it_would_do(checkpoint: str, said: tuple[str, ...]) -> None:
    text = dry_run(checkpoint)
    assert all(each in text for each in (*said, "what still differs", f"--model {checkpoint}"))


def test_a_revision_a_retriever_and_a_limit_are_taken() -> None:
    words = ("--revision", "abc123", "--retriever", "http://127.0.0.1:8000", "--limit", "50")
    text = dry_run("agentrl/ReSearch-Qwen-7B", *words, "sampling.seed=1")
    assert "questions-abc123/musique.questions.jsonl" in text and "--limit 50" in text
    assert "wiki18" not in text and "sampling.seed=1" in text
    assert "revision=abc123" in dry_run("TongSearch/TongSearch-QR-7B", "--revision", "abc123")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--model", "/no/such/folder"), "there is no folder /no/such/folder"),
        (("--retriever", "127.0.0.1:8000"), "is no URL"),
        (("--out", __file__), "is no folder"),
    ],
)
def test_what_is_wrong_is_said_before_anything_is_fetched(words: tuple[str, ...], said: str) -> None:
    result = CliRunner().invoke(main, ["agentrl/ReSearch-Qwen-7B", *words])
    assert result.exit_code == 1 and said in result.output and "fetch" not in result.output


def test_another_checkpoint_needs_a_family() -> None:
    assert "give --family" in CliRunner().invoke(main, ["me/mine", "--dry-run"]).output
    assert "--preset search_r1" in dry_run("me/mine", "--family", "Search-R1")


def test_ours_stands_beside_the_published_figure() -> None:
    checkpoint = "agentrl/ReSearch-Qwen-7B-Instruct"
    family = family_of(checkpoint)
    assert family is not None and preset_of(family, checkpoint) == "research_instruct"
    figure = {"mean": 0.414, "low": 0.33, "high": 0.5}
    results = [{"dataset": "bamboogle", "em": figure}, {"dataset": "mean", "em": {"mean": 0.4}}]
    table = beside_published(family, checkpoint, {"results": results})
    assert (
        ".414 [0.330, 0.500]" in table
        and "-0.010" in table
        and published_of(family, checkpoint)["2wiki"] == 0.476
    )
    assert "| mean" in table and all(each in table for each in family.remaining)
    reasoner = "TongSearch/TongSearch-QR-7B"
    bright = family_of(reasoner)
    assert bright is not None
    scores = {"results": [{"task": "mean", "ndcg@10": {"mean": 0.281, "low": 0.27, "high": 0.292}}]}
    in_percent = beside_published(bright, reasoner, scores)
    assert "28.1 [27.0, 29.2]" in in_percent and "+0.2" in in_percent
