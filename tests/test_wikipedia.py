"""--corpus wiki18: the Wikipedia of 2018 as the passages of any run, and what it takes."""

import re
from pathlib import Path

import pytest
from test_recipe_options import dry_run, options
from transformers import BertConfig

from research.places import CACHE
from research.training.run.options import RecipeOptions
from research.training.run.plan import RunPlan, make_plan
from research.training.run.preflight import problems
from research.training.sizes import disk
from research.training.sizes.memory import GB
from research.training.sizes.wikipedia import memory_of_index

WIKI = CACHE / "wiki18"
ROLLOUT = "actor_rollout_ref.rollout"


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


def test_vectors_of_another_encoder_count_by_their_width(tmp_path: Path) -> None:
    folder = tmp_path / "encoder"
    BertConfig(hidden_size=1024, num_attention_heads=16).save_pretrained(folder)

    def counted(encoder: str | None) -> int:
        words = {"corpus": Path("wiki18"), "index": "flat", "encoder": encoder}
        return memory_of_index(make_plan(options(tmp_path, **words)))

    assert counted(None) == counted("intfloat/e5-base-v2") == 65 * GB
    assert counted(str(folder)) == 65 * GB * 1024 // 768 and counted("minilm") == 65 * GB // 2
    (folder / "config.json").write_text("{")
    assert counted(str(folder)) == 65 * GB, "nothing tells its width"


@pytest.mark.parametrize(
    ("words", "slow"),
    [({}, True), ({"index": "ivfpq"}, False), ({"serve_args": "--index-device auto"}, False)],
)
def test_a_search_that_is_slow_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], words: dict[str, str], slow: bool
) -> None:
    problems(make_plan(options(tmp_path, corpus=Path("wiki18"), **words)))
    assert ("exact search of Wikipedia reads 65.0 GB" in capsys.readouterr().err) == slow


def test_only_the_bare_word_means_it(tmp_path: Path) -> None:
    """A mistyped path is no reason to fetch 79 GB."""
    missing = tmp_path / "wiki18"
    done = dry_run("--corpus", missing, "--run-dir", tmp_path / "run")
    assert f"--corpus: there is no file {missing}" in done.stdout


def test_an_index_on_gpus_counts_on_each(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    words = ["--hardware", "gpu", "--gpus", 2, "--gpu-memory", 80, "--model", "Qwen/Qwen2.5-0.5B-Instruct"]
    words += ["--corpus", "wiki18", "--index", "flat", "--run-dir", tmp_path / "run"]
    done = dry_run(*words, "--serve-args", "--index-device auto")
    assert re.search(r"retrieval service: index +16.0 GB +16.0 GB +65.0 GB\n", done.stdout), done.stderr
    full = dry_run(*words, "--serve-args", "--index-device=gpu", f"{ROLLOUT}.gpu_memory_utilization=0.9")
    assert f"80.0 GB: lower {ROLLOUT}.gpu_memory_utilization" in full.stdout


@pytest.mark.parametrize(
    ("words", "free", "said"),
    [
        ({"encoder": "minilm"}, 70, ""),
        ({}, 70, "Wikipedia 2018 and its E5 index in "),
        ({"encoder": "none"}, 70, "Wikipedia 2018 and the flat index that is built in "),
        ({}, 90, ""),
        ({"index": "hnsw"}, 90, "Wikipedia 2018 and its E5 index and the hnsw index that is built in "),
        ({}, 79.5, "the run folder (checkpoints, trajectories) in "),
    ],
)
def test_all_that_goes_to_a_disk_is_added_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: dict[str, str], free: float, said: str
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr(disk, "_disk_of", lambda path: 0)
    monkeypatch.setattr(disk, "free_space", lambda path: int(free * GB))
    found = [*disk.disk_faults(make_plan(options(tmp_path, corpus=Path("wiki18"), **words)))]
    assert len(found) == bool(said) and said in "".join(found)
