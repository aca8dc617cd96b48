"""The recipe of query reasoners end to end, as a user starts it: two steps on a few tasks, both rewards.

Once it has trained it is killed, and started again.
"""

import json
import signal

import pytest
from stack import RecipeRun

from research.datasets.rewriting_tasks import RewritingTask, write_tasks
from research.training.run_files import latest_checkpoint, read_trajectories, trajectory_path

pytestmark = [pytest.mark.launch, pytest.mark.timeout(3600)]
ANIMALS = ("cat", "dog", "cow", "horse", "sheep", "goat", "hen", "duck")
MIX = "research.reward={retrieval_gain: 1.0, embedding_gain: 0.1}"


def write_world(folder):
    """A question an animal; another's post is excluded from what it finds."""
    names = ANIMALS[1:] + ANIMALS[:1]
    tasks = [
        RewritingTask(name, f"what does a {name} eat", (f"the {name} eats hay",), (name,), (other,), "farm")
        for name, other in zip(ANIMALS, names, strict=True)
    ]
    for split in ("train", "test"):
        write_tasks(folder / f"{split}.jsonl", tasks)
    rows = ({"id": name, "contents": f"{name}\nthe {name} eats hay"} for name in ANIMALS)
    (folder / "corpus.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_a_query_reasoner_is_trained_killed_judged_and_exported(policy, tmp_path):
    write_world(tmp_path)
    files = {"--tasks": "train.jsonl", "--test": "test.jsonl", "--corpus": "corpus.jsonl"}
    words = [word for name, file in files.items() for word in (name, str(tmp_path / file))]
    sizes = ("actor_rollout_ref.rollout.max_model_len=512", "research.rewriting.free_tokens=16", MIX)
    sizes += ("trainer.total_epochs=1",)  # one step, with seven tasks: the two of --steps decide
    folder = tmp_path / "run"
    with RecipeRun(folder, "--model", policy, "--steps", "2", *words, *sizes, recipe="rqr") as killed:
        killed.wait_for(lambda: 2 in killed.step_rows() and latest_checkpoint(folder) == 2)
        assert killed.end_by(signal.SIGKILL) == -signal.SIGKILL
    with RecipeRun(folder, recipe="rqr") as run:
        assert run.wait() == 0, run.text()
        run.assert_nothing_left()
    assert "is finished: step 2 of 2" in run.output.read_text()
    assert sorted(run.step_rows()) == [1, 2]
    for step, row in run.step_rows().items():
        assert row["training/rollout_probs_diff_mean"] <= 1e-3 and row["search/scoring_failed"] == 0
        trajectories = list(read_trajectories(trajectory_path(run.run_dir, step, "train")))
        assert len(trajectories) == 16
        for each in trajectories:
            assert each.searches == [] and each.metadata["gold_ids"] and each.reward_reason
            assert each.metrics["original_ndcg"] == 1.0
    text = run.output.read_text()
    assert "nDCG@10 of the question" in text and "test_farm" in text and "report: " in text
    assert (run.run_dir / "policy" / "model.safetensors").exists()
