"""What the recipe refuses, and what it says: options, dry runs, both hardware profiles. Starts no
training.
"""

import json
import os
import shlex
import shutil
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner
from loopback import speaking

from research.training.__main__ import _default_run_dir, resolve_options
from research.training.__main__ import musique as main
from research.training.config import read_research_config
from research.training.run.execute import resume_command
from research.training.run.options import RecipeOptions, RunFailed
from research.training.run.plan import compose_config, make_plan
from research.training.run.preflight import file_problems, free_port, problems
from research.training.run.retriever_keeper import RetrieverKeeper, is_healthy

ROOT = Path(__file__).resolve().parents[1]


def test_a_port_that_is_no_http_is_no_healthy_retriever():
    with speaking(b"SSH-2.0-OpenSSH_9.6\r\n") as address:
        assert not is_healthy(f"http://{address}")
    assert not is_healthy("http://a..b:80"), "nor is a host that can be no name"


def test_a_training_that_has_ended_waits_for_no_retriever(tmp_path):
    plan = make_plan(options(tmp_path, retriever_url="http://127.0.0.1:1")).on_port(1)
    ended = subprocess.Popen(["false"])
    ended.wait()
    with RetrieverKeeper(plan) as keeper:
        keeper.wait_until_healthy(ended)  # else RunFailed: no healthy retriever
    assert not (plan.options.run_dir / "retriever.json").exists()


@pytest.mark.parametrize("url", ["http://127.0.0.1:1", "http://a..b:80"])
def test_a_retriever_that_does_not_answer_is_told_before_the_start(tmp_path, url):
    result = run_main("--run-dir", tmp_path / "run", "--retriever-url", url)
    assert result.exit_code == 1 and "cannot start:" in result.output
    assert f"--retriever-url: no healthy retriever at {url}" in result.output
    assert not (tmp_path / "run").exists()


def test_a_retriever_that_answers_may_be_used(tmp_path):
    answer = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\n{}"
    with speaking(answer) as address:
        plan = make_plan(options(tmp_path, retriever_url=f"http://{address}"))
        assert not any("--retriever-url" in line for line in problems(plan))


def test_folders_of_models_are_those_of_the_users_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine").mkdir()
    values = {"hardware": "cpu", "run_dir": Path("run"), "model": "mine", "encoder": "intfloat/e5-base-v2"}
    resolved = resolve_options(values, set(), resume=False)
    assert (resolved.model, resolved.encoder) == (str(tmp_path / "mine"), "intfloat/e5-base-v2")


def options(tmp_path, hardware="cpu", **values):
    return RecipeOptions(hardware=hardware, run_dir=tmp_path / "run", **values)


def compose(tmp_path, hardware="cpu", *overrides, **values):
    return compose_config(make_plan(options(tmp_path, hardware, overrides=overrides, **values)).on_port(1))


def run_main(*arguments):
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def dry_run(*arguments):
    """In a process of its own: veRL fixes its platform at import."""
    command = [sys.executable, "-m", "research.training", "musique", "--dry-run", *map(str, arguments)]
    environment = {name: value for name, value in os.environ.items() if name != "VERL_PLATFORM"}
    return subprocess.run(command, capture_output=True, text=True, timeout=600, env=environment)


def test_gpu_profile_passes_verls_own_validation_without_a_gpu(tmp_path):
    done = dry_run("--hardware", "gpu", "--gpus", 8, "--run-dir", tmp_path / "run")
    assert done.returncode == 0, done.stderr
    assert "path: Qwen/Qwen2.5-7B-Instruct" in done.stdout
    for command in (
        "research.datasets.musique",
        "research.datasets.wiki18",
        "retriever_server build",
        "research.training.verl.launch",
    ):
        assert command in done.stdout
    assert "would not start: GPU" in done.stdout
    assert not (tmp_path / "run").exists()


def test_gpu_profile_has_the_hyper_parameters_of_the_paper(tmp_path):
    config = compose(tmp_path, "gpu", gpus=8)
    actor, rollout = config.actor_rollout_ref.actor, config.actor_rollout_ref.rollout
    assert config.algorithm.adv_estimator == "grpo" and rollout.n == 5
    assert config.data.train_batch_size == actor.ppo_mini_batch_size == 256
    assert (actor.ppo_epochs, actor.clip_ratio, actor.grad_clip) == (1, 0.2, 1.0)
    assert (actor.use_kl_loss, actor.kl_loss_type, actor.kl_loss_coef) == (True, "low_var_kl", 0.001)
    assert (actor.optim.lr, actor.optim.weight_decay, actor.optim.lr_scheduler_type) == (
        1e-6,
        1e-2,
        "constant",
    )
    assert (config.data.max_prompt_length, config.data.max_response_length) == (512, 8192)
    assert (rollout.temperature, rollout.top_p, rollout.val_kwargs.temperature) == (1.0, 1.0, 0)
    assert config.research.reward == "exact_match" and config.research.retriever.top_k == 5
    assert config.trainer.total_epochs == 2 and config.trainer.n_gpus_per_node == 8


def test_cpu_dry_run_prints_configuration_and_commands(tmp_path):
    done = dry_run("--run-dir", tmp_path / "run", "--steps", 3, "--supervised-control")
    assert done.returncode == 0, done.stderr
    assert "research.datasets.mini.policy" in done.stdout and "--clean --seconds SECONDS" in done.stdout
    assert "total_training_steps: 3" in done.stdout and "research.datasets.mini.world" in done.stdout
    assert not (tmp_path / "run").exists()


def test_several_nodes_join_the_cluster(tmp_path):
    config = compose(tmp_path, "cpu", nodes=2)
    assert config.ray_kwargs.ray_init.address == "auto" and config.trainer.nnodes == 2
    assert "num_gpus" not in config.ray_kwargs.ray_init
    single = compose(tmp_path, "cpu")
    assert single.trainer.nnodes == 1 and single.ray_kwargs.ray_init.address == "local"


def test_the_environment_decides_whether_threads_spin(tmp_path, monkeypatch):
    def spins():
        return compose(tmp_path).ray_kwargs.ray_init.runtime_env.env_vars.GOMP_SPINCOUNT

    monkeypatch.delenv("GOMP_SPINCOUNT", raising=False)
    assert spins() == "20000"
    monkeypatch.setenv("GOMP_SPINCOUNT", "0")
    assert spins() == "0"


def test_epochs_that_are_asked_for_decide_unless_steps_are(tmp_path):
    def steps(*overrides, **values):
        return compose(tmp_path, "cpu", *overrides, **values).trainer.total_training_steps

    assert steps() and steps("trainer.total_epochs=2") is None
    assert steps("trainer.total_epochs=2", steps=6) == 6
    assert steps("trainer.total_epochs=2", "trainer.total_training_steps=9") == 9


def test_search_r1_is_chosen_by_name(tmp_path):
    config = compose(
        tmp_path, "cpu", "protocol@research.protocol=search_r1_own", "research.prompt=search_r1_own"
    )
    settings = read_research_config(config.research).environment.settings
    assert settings.protocol.result == "information" and not settings.protocol.boxed


@pytest.mark.parametrize("option", ["--questions", "--validation", "--corpus", "--faiss-index"])
def test_wrong_path_is_one_clear_line(tmp_path, option):
    result = run_main("--run-dir", tmp_path / "run", option, tmp_path / "nowhere.jsonl")
    assert result.exit_code == 1 and "nowhere.jsonl" in result.output and option in result.output
    assert "Traceback" not in result.output


OWN = {
    "--questions": '{"id": 1, "question": "q", "golden_answers": ["a"]}\n' * 2,
    "--validation": "[]",
    "--test": '{"id": 1, "question": "q"}\n',
    "--corpus": '{"id": 1, "contents": "a"}\n{"id": 2}\n',
}


def test_faults_in_own_files_are_told_first_of_all(tmp_path):
    words = []
    for option, text in OWN.items():
        path = tmp_path / f"{option[2:]}.jsonl"
        path.write_text(text)
        words += [option, path]
    result = run_main("--run-dir", tmp_path / "run", *words)
    lines = result.output.split("cannot start:\n")[1].splitlines()
    found = [line.strip().removeprefix(f"{tmp_path}/") for line in lines if line.strip()]
    assert result.exit_code == 1 and [line.split(": ")[0] for line in found] == [
        "questions.jsonl:2",
        "validation.jsonl",
        "test.jsonl:1",
        "corpus.jsonl:2",
    ]
    assert not (tmp_path / "run").exists()


def test_what_own_files_are_too_small_for_is_told_first_of_all(tmp_path):
    question = '{"id": 1, "question": "q", "golden_answers": ["a"]}\n'
    (tmp_path / "q.jsonl").write_text(question)
    (tmp_path / "c.jsonl").write_text('{"id": 1, "contents": "a"}\n')
    files = {"questions": tmp_path / "q.jsonl", "test": tmp_path / "q.jsonl", "corpus": tmp_path / "c.jsonl"}
    plan = make_plan(options(tmp_path, **files)).on_port(1)
    few, one_text, one_passage = file_problems(plan, compose_config(plan))
    assert "1 questions are fewer than one batch" in few and "all test questions are one text" in one_text
    assert "1 passages, and research.retriever.top_k is 1" in one_passage


def test_the_index_and_its_server_take_more_words(tmp_path):
    corpus = tmp_path / "c.jsonl"
    corpus.write_text('{"id": 1, "contents": "a"}\n')
    words = {"build_args": "--index-option M=8 --threads 1", "serve_args": "--threads 1 --cache-size 0"}
    plan = make_plan(options(tmp_path, corpus=corpus, index="hnsw", **words))
    plain = make_plan(options(tmp_path, corpus=corpus, index="hnsw"))
    build, serve = plan.build[-1].argv, plan.serve.argv
    assert build[build.index("--index") + 1] == "hnsw" and build[-4:] == shlex.split(words["build_args"])
    assert (
        serve[5:9] == shlex.split(words["serve_args"]) and plan.build[-1].creates != plain.build[-1].creates
    )
    assert problems(plan) == []
    bm25 = make_plan(options(tmp_path, index="bm25"))
    assert "--encoder" not in bm25.build[-1].argv
    assert not any("encoder" in command.task for command in bm25.prepare)


@pytest.mark.parametrize("path", ["research/__init__.py", "torch.py", "queue.py"])
def test_a_module_in_the_folder_that_would_hide_one_of_the_workers(tmp_path, monkeypatch, path):
    for each in (
        path,
        "tests/__init__.py",
        "few_searches.py",
        "data/__init__.py",
        "retriever_server/notes.txt",
    ):
        (tmp_path / each).parent.mkdir(exist_ok=True)
        (tmp_path / each).touch()
    monkeypatch.chdir(tmp_path)
    (found,) = [line for line in problems(make_plan(options(tmp_path))) if "would hide" in line]
    assert str(tmp_path / path).removesuffix("/__init__.py") in found and "another folder" in found


def test_other_kinds_are_built_from_the_vectors_of_the_index_that_is_downloaded(tmp_path):
    argv = make_plan(options(tmp_path, "gpu", index="hnsw")).build[-1].argv
    assert argv[argv.index("--vectors") + 1].endswith("e5_Flat.index") and "--faiss-index" not in argv
    own = make_plan(options(tmp_path, "gpu", index="hnsw", corpus=tmp_path / "c", faiss_index=tmp_path / "i"))
    assert "--faiss-index" in own.build[-1].argv


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ({"index": "nope"}, "--index: there is no kind nope"),
        ({"build_args": "--nope"}, "--build-args: No such option"),
        ({"build_args": "--threads 0"}, "--build-args: Invalid value for '--threads'"),
        ({"build_args": "--index-option M=8"}, "--build-args: "),  # flat has no options
        ({"build_args": "--index=hnsw"}, "--build-args: --index=hnsw cannot be given here"),
        ({"serve_args": "--port 3"}, "--serve-args: --port cannot be given here"),
        ({"serve_args": "--token x"}, "RETRIEVER_TOKEN"),
        ({"serve_args": "stray"}, "--serve-args: "),
    ],
)
def test_words_that_the_retrieval_server_does_not_take(tmp_path, words, message):
    (found,) = problems(make_plan(options(tmp_path, **words)))
    assert message in found and "\n" not in found


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"retriever": "x"}, "retriever: Unexpected keyword argument"),
        ({"hardware": "tpu"}, "hardware: Input should be 'cpu', 'gpu' or 'rehearsal'"),
        ({"steps": "ten"}, "steps: Input should be a valid integer"),
        ({"overrides": None}, "overrides: "),
        ({"corpus": 5}, "corpus: "),
        (None, "not JSON"),
        ([], "not an object"),
    ],
)
def test_a_recipe_of_another_version_is_one_line(tmp_path, change, why):
    path = tmp_path / "run" / "recipe.json"
    path.parent.mkdir()
    options(tmp_path).save(path)
    saved = json.loads(path.read_text())
    path.write_text("{" if change is None else json.dumps({**saved, **change} if change else change))
    result = run_main("--run-dir", path.parent, "--resume")
    assert result.exit_code == 1 and "Traceback" not in result.output and why in result.output
    assert f"{path} is no recipe.json of this version" in result.output
    assert len(result.output.strip().splitlines()) == 1


def test_model_folder_without_a_model(tmp_path):
    result = run_main("--run-dir", tmp_path / "run", "--model", tmp_path)
    assert result.exit_code == 1 and "config.json" in result.output


def test_a_model_folder_that_is_not_whole_is_told_before_the_start(tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    lines = problems(make_plan(options(tmp_path, model=str(tmp_path / "model"))))
    for what in ("weights", "tokenizer"):
        assert any(line.startswith("--model: ") and f"its {what}" in line for line in lines)


def test_port_in_use(tmp_path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        result = run_main("--run-dir", tmp_path / "run", "--retriever-port", taken.getsockname()[1])
    assert result.exit_code == 1 and "in use" in result.output and "--retriever-port" in result.output


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "0.0.0.0", "127.8.9.1", "0"])
def test_several_nodes_need_an_address_that_all_of_them_reach(tmp_path, host):
    result = run_main("--run-dir", tmp_path / "run", "--nodes", 2, "--retriever-host", host)
    assert result.exit_code == 1 and "--retriever-host: with --nodes 2" in result.output
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("host", ["127.0.0.1:80", "[::1]:80", "[::ffff:127.0.0.1]:80", "localhost"])
def test_several_nodes_need_a_retriever_that_all_of_them_reach(tmp_path, host):
    plan = make_plan(options(tmp_path, nodes=2, retriever_url=f"http://{host}"))
    assert any("--retriever-url: with --nodes 2" in line for line in problems(plan))
    other = make_plan(options(tmp_path, nodes=2, retriever_url="http://192.0.2.1:80"))
    assert not any("--nodes" in line for line in problems(other))


def test_a_host_that_is_not_this_machine(tmp_path):
    result = run_main("--run-dir", tmp_path / "run", "--retriever-host", "192.0.2.1")
    assert result.exit_code == 1 and "--retriever-host: '192.0.2.1' is no address of this" in result.output


def test_a_free_port_is_kept_for_who_is_told_its_number():
    with free_port("127.0.0.1") as port:
        with socket.socket() as other, pytest.raises(OSError, match="in use"):
            other.bind(("127.0.0.1", port))
        with pytest.raises(OSError, match="in use"), free_port("127.0.0.1", port):
            pass  # of another run
        for _ in range(2):  # a retriever, and the one that is started when it died
            socket.create_server(("127.0.0.1", port)).close()


@pytest.mark.parametrize("words", [["--gpus", "2"], ["--gpu-memory", "24"]])
def test_options_of_gpus_are_refused_on_a_cpu(tmp_path, words):
    result = run_main("--run-dir", tmp_path / "run", *words)
    assert result.exit_code == 1 and f"{words[0]}: only with --hardware gpu" in result.output


def test_full_disk_is_noticed_before_the_start(tmp_path, monkeypatch):
    usage = type(shutil.disk_usage(tmp_path))(10**12, 10**12, 10**6)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    result = run_main("--run-dir", tmp_path / "run")
    assert result.exit_code == 1 and "disk" in result.output


def test_folder_that_is_no_run(tmp_path):
    (tmp_path / "thesis.txt").write_text("precious")
    result = run_main("--run-dir", tmp_path)
    assert result.exit_code == 1 and "is not a run folder" in result.output
    assert (tmp_path / "thesis.txt").read_text() == "precious"


def test_nothing_to_resume(tmp_path):
    result = run_main("--resume", "--run-dir", tmp_path / "run")
    assert result.exit_code == 1 and "not a run folder" in result.output


def test_the_newest_run_is_found_beside_one_of_another_version(tmp_path, monkeypatch):
    monkeypatch.setattr("research.training.__main__.RUNS", tmp_path)
    for name, content in (("a", '{"recipe": "musique", "hardware": "cpu", "run_dir": "x"}'), ("b", "{")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "recipe.json").write_text(content)
    os.utime(tmp_path / "a" / "recipe.json", (1, 1))
    assert _default_run_dir("musique", resume=True) == tmp_path / "a"
    with pytest.raises(RunFailed, match="no run of train_rqr"):
        _default_run_dir("rqr", resume=True)


def test_resume_takes_the_saved_options_and_refuses_others(tmp_path):
    saved = options(tmp_path, seed=7, steps=10, overrides=("data.train_batch_size=8",))
    (saved.run_dir / "checkpoints" / "global_step_10").mkdir(parents=True)
    (saved.run_dir / "checkpoints" / "latest_checkpointed_iteration.txt").write_text("10")
    saved.save(saved.run_dir / "recipe.json")
    values = {**vars(options(tmp_path)), "steps": 20}
    assert resolve_options(dict(values), {"steps", "run_dir"}, resume=True) == replace(saved, steps=20)
    with pytest.raises(RunFailed, match="with --seed 7, not with --seed 8"):
        resolve_options({**values, "seed": 8}, {"seed"}, resume=False)


@pytest.mark.parametrize("key", ["research.limits.turn_token", "trainer.nope"])
def test_a_misspelt_key_is_not_advised(tmp_path, key):
    result = run_main("--dry-run", "--run-dir", tmp_path / "run", f"{key}=5")
    assert result.exit_code == 1 and f"Could not override '{key}'. There is no such key" in result.output


@pytest.mark.parametrize("hardware", ["cpu", "gpu", "rehearsal"])
def test_the_command_that_a_stopped_run_prints_resumes_it(tmp_path, hardware):
    saved = options(tmp_path / "my runs", hardware, seed=7, steps=2)
    saved.run_dir.mkdir(parents=True)
    saved.save(saved.run_dir / "recipe.json")
    _, script, *words = shlex.split(resume_command(saved))
    assert (ROOT / script).is_file()
    result = run_main(*words, "--dry-run")
    assert result.exit_code == 0, result.output
    assert "total_training_steps: 2" in result.output


def test_a_wrong_key_leaves_no_folder(tmp_path):
    result = run_main("--run-dir", tmp_path / "run", "research.reward=exact")
    assert result.exit_code == 1 and "exact_match" in result.output and "Traceback" not in result.output
    assert not (tmp_path / "run").exists()


def test_malformed_rows_are_named_by_file_and_line(tmp_path):
    questions = tmp_path / "mine.jsonl"
    questions.write_text('{"id": 1, "question": "q", "golden_answers": ["a"]}\n{"id": 2, "question": "q"}\n')
    result = subprocess.run(
        [sys.executable, "-m", "research.datasets.questions", questions, "--out", tmp_path / "x.parquet"],
        capture_output=True,
        text=True,
        cwd=ROOT,
    )
    assert result.returncode == 1 and "mine.jsonl:2" in result.stderr and "golden_answers" in result.stderr


def test_the_help_says_which_checkpoint_is_exported_and_which_questions_are_read():
    text = " ".join(run_main("--help").output.split())
    assert "Only write the checkpoint that research.keep names" in text
    assert all(name in text for name in ("FlashRAG", "MuSiQue", "HotpotQA", "2Wiki", "Search-R1"))
