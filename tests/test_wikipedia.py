"""--corpus wiki18: the Wikipedia of 2018 as the passages of any run, and what it takes."""

import re
from pathlib import Path

import pytest
from test_recipe_options import dry_run, options

from research.places import CACHE
from research.training.run.options import RecipeOptions
from research.training.run.plan import RunPlan, make_plan
from research.training.run.preflight import problems

WIKI = CACHE / "wiki18"


def fetching(plan: RunPlan) -> list[str]:
    """The words of the command that downloads it."""
    (command,) = (each for each in plan.prepare if "research.datasets.wiki18" in each.argv)
    return command.argv[command.argv.index("--out") :]


@pytest.mark.parametrize("hardware", ["cpu", "gpu"])
@pytest.mark.parametrize("policy", ["tiny", "smollm2"])
def test_it_is_a_word_on_any_hardware(tmp_path: Path, hardware: str, policy: str) -> None:
    """An index of words needs no vectors, and ivfpq is made of those that the hub has."""

    def plan(index: str) -> RunPlan:
        return make_plan(options(tmp_path, hardware, corpus=Path("wiki18"), index=index, policy=policy))

    dense, words = plan("ivfpq"), plan("bm25")
    assert dense.inputs.corpus == words.inputs.corpus == WIKI / "wiki-18.jsonl"
    assert dense.inputs.encoder == "intfloat/e5-base-v2"
    assert dense.build[-1].argv[-2:] == ["--vectors", str(WIKI / "e5_Flat.index")]
    assert fetching(dense) == ["--out", str(WIKI)]
    assert fetching(words) == ["--out", str(WIKI), "--only", "corpus"] and words.inputs.faiss_index is None


def test_another_encoder_does_not_get_its_vectors(tmp_path: Path) -> None:
    plan = make_plan(options(tmp_path, "gpu", encoder="BAAI/bge-base-en-v1.5"))
    assert fetching(plan)[2:] == ["--only", "corpus"] and plan.build[-1].argv[-1] == "BAAI/bge-base-en-v1.5"


def test_a_run_resumes_with_it(tmp_path: Path) -> None:
    given = options(tmp_path, corpus=Path("wiki18"))
    given.save(tmp_path / "recipe.json")
    assert make_plan(RecipeOptions.load(tmp_path / "recipe.json")).inputs == make_plan(given).inputs


def test_its_index_counts_in_main_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    words = ("--hardware", "gpu", "--gpus", 1, "--gpu-memory", 80, "--model", "Qwen/Qwen2.5-0.5B-Instruct")
    done = dry_run(*words, "--corpus", "wiki18", "--index", "ivfpq", "--run-dir", tmp_path / "run")
    assert re.search(r"retrieval service: index .* 24.0 GB\n", done.stdout), done.stderr


@pytest.mark.parametrize(
    ("words", "slow"),
    [({}, True), ({"index": "ivfpq"}, False), ({"serve_args": "--index-device auto"}, False)],
)
def test_a_search_that_is_slow_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], words: dict[str, str], slow: bool
) -> None:
    problems(make_plan(options(tmp_path, corpus=Path("wiki18"), **words)))
    assert ("exact search of Wikipedia reads 65 GB" in capsys.readouterr().err) == slow


def test_only_the_bare_word_means_it(tmp_path: Path) -> None:
    """A mistyped path is no reason to fetch 79 GB."""
    missing = tmp_path / "wiki18"
    done = dry_run("--corpus", missing, "--run-dir", tmp_path / "run")
    assert f"--corpus: there is no file {missing}" in done.stdout
