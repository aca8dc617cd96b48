"""What the cold start takes of the questions, and what is made again when they change."""

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner
from test_recipe_options import compose, options
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from research.datasets.question_forms import Question
from research.errors import DataError
from research.training.cold_start.commands import cold_start
from research.training.cold_start.corpus import paragraphs_of
from research.training.cold_start.demonstrations import demonstrations
from research.training.cold_start.hops import hops_of
from research.training.cold_start.split import parts_of
from research.training.run.execute import _forget_other_preparations, control_commands
from research.training.run.options import OWN_CORPUS
from research.training.run.plan import RunPlan, make_plan
from research.training.run.preflight import file_problems, problems


def questions(count: int, start: int = 0) -> list[Question]:
    step: list[dict[str, Any]] = [{"question": "capital of X", "answer": "Y"}] * 2
    metadata = {"question_decomposition": step}
    return [
        Question(f"q{number}", f"What is {number}?", ["Y"], metadata)
        for number in range(start, start + count)
    ]


def written(path: Path, count: int, start: int = 0) -> Path:
    rows = [
        {
            "id": each.id,
            "question": each.question,
            "golden_answers": each.golden_answers,
            "metadata": each.metadata,
        }
        for each in questions(count, start)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def passages(file: Path) -> Path:
    rows = ({"id": str(place), "contents": f"Y is the capital of X, volume {place}"} for place in range(9))
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return file


def test_no_question_is_in_two_parts_and_none_is_lost() -> None:
    parts = parts_of(questions(80), Path("some.jsonl"), validation=60, test=60)
    assert [len(part) for part in parts] == [40, 10, 10, 20]
    assert len({each.id for part in parts for each in part}) == 80


def test_a_question_with_two_ids_is_in_one_part() -> None:
    twice = [*questions(80), *(replace(each, id=f"again{each.id}") for each in questions(80))]
    parts = parts_of(twice, Path("some.jsonl"), validation=20, test=20)
    texts = [{each.question for each in part} for part in parts]
    assert sum(map(len, texts)) == len(set.union(*texts)) == 80


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("evidences", [["A", "father", "B"], ["B", "country", "C"]]),
        (
            "question_decomposition",
            [{"question": "A >> father", "answer": "B"}, {"question": "#1 >> country", "answer": "C"}],
        ),
    ],
)
def test_json_text_is_read_as_what_it_holds(field: str, value: Any) -> None:
    plain, text = (Question("q", "Q?", ("C",), {field: each}) for each in (value, json.dumps(value)))
    assert hops_of(text) == hops_of(plain) != ()


def test_paragraphs_as_json_text_are_read() -> None:
    paragraphs = [{"title": "A", "paragraph_text": "B"}]
    assert list(paragraphs_of({"paragraphs": json.dumps(paragraphs)})) == [("A", "B")]


@pytest.mark.parametrize("evidences", [{"fact": 5}, "[" * 100_000, "no JSON", 7])
def test_evidences_that_are_none_lead_nowhere(evidences: Any) -> None:
    assert hops_of(Question("q", "Q?", ("C",), {"evidences": evidences})) == ()


def run(command: str, *words: object) -> str:
    done = CliRunner().invoke(cold_start, [command, *map(str, words)])
    assert done.exit_code
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
    return done.output


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--share", "nan"), "nan is not a finite number"),
        (("--share", "0"), "is not in the range 0<x<=1"),
        (("--share", "1e-9"), "at most a share of 1e-09"),
        (("--out", "."), "exists already"),
        (("--out", ""), "exists already"),
    ],
)
def test_parts_that_mean_nothing_are_refused(words: tuple[str, ...], said: str, tmp_path: Path) -> None:
    file = written(tmp_path / "q.jsonl", 20)
    assert said in run("split", "--questions", file, "--out", tmp_path / "new", *words)


def test_parts_do_not_overwrite(tmp_path: Path) -> None:
    file, out = written(tmp_path / "q.jsonl", 20), tmp_path / "parts"
    words = ["split", "--questions", str(file), "--out", str(out)]
    assert CliRunner().invoke(cold_start, words).exit_code == 0
    assert "exists already" in run(*words)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--model", "/nowhere/m", "--corpus", "{here}/q.jsonl"), "there is no folder /nowhere/m"),
        (("--model", "{here}", "--corpus", "{here}/q.jsonl"), "config.json is missing"),
        (("--model", "a/b", "--retriever", "nonsense"), "http"),
        (("--model", "a/b", "--retriever", "http://x", "--index", "{here}"), "give one of --corpus, --index"),
        (("--model", "a/b", "--retriever", "http://x", "--policy", "no"), "'no' is not one of"),
    ],
)
def test_demonstrations_of_nothing_are_refused(words: tuple[str, ...], said: str, tmp_path: Path) -> None:
    file = written(tmp_path / "q.jsonl", 4)
    given = [word.format(here=tmp_path) for word in words]
    assert said in run("demonstrations", "--questions", file, "--out", tmp_path / "out.parquet", *given)


def small_words(folder: Path, *rows: dict[str, list[int]]) -> tuple[str, ...]:
    """What `train` is told: a file of these demonstrations, and a random model of a few weights."""
    schema = pa.schema({"input_ids": pa.list_(pa.int32()), "labels": pa.list_(pa.int32())})
    pq.write_table(pa.Table.from_pylist(list(rows), schema=schema), folder / "shown.parquet")
    config = LlamaConfig(
        vocab_size=8, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1
    )
    LlamaForCausalLM(config).save_pretrained(folder / "model")
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(WordLevel({"a": 0})))
    tokenizer.save_pretrained(folder / "model")
    return "--demonstrations", str(folder / "shown.parquet"), "--model", str(folder / "model")


def test_a_training_that_its_seconds_end_says_so(tmp_path: Path) -> None:
    words = small_words(tmp_path, {"input_ids": [1, 2, 3], "labels": [-100, 2, 3]})
    words += ("--seconds", "0.5", "--epochs", "1000000", "--out", str(tmp_path / "policy"))
    result = CliRunner().invoke(cold_start, ["train", *words])
    assert result.exit_code == 0 and (tmp_path / "policy").exists(), result.output
    assert re.search(r"ended after 0.5 s and \d+ updates, before 1000000 epochs were over", result.output)


def test_no_policy_is_saved_that_was_not_trained(tmp_path: Path) -> None:
    words = small_words(tmp_path)
    assert "nothing was trained: 0 demonstrations" in run("train", *words, "--out", tmp_path / "policy")
    assert not (tmp_path / "policy").exists()


def small_plan(folder: Path, **words: Any) -> RunPlan:
    return make_plan(options(folder, policy="smollm2", **words))


def test_a_test_is_parted_off_where_there_is_none(tmp_path: Path) -> None:
    file, other = written(tmp_path / "q.jsonl", 80), written(tmp_path / "other.jsonl", 9)
    parts = "cold_start/parts/test.questions.jsonl"
    assert str(small_plan(tmp_path, questions=file).inputs.test).endswith(parts)
    assert small_plan(tmp_path, questions=file, test=other).inputs.test == other
    assert small_plan(tmp_path, questions=file, validation=other).inputs.test is None


def test_the_supervised_control_needs_a_test(tmp_path: Path) -> None:
    file = written(tmp_path / "q.jsonl", 80)
    faults = problems(small_plan(tmp_path, questions=file, validation=file, supervised_control=True))
    assert "--supervised-control: it is judged by test questions" in " ".join(faults)


def test_the_supervised_control_continues_the_cold_start_with_grpos_own_questions(tmp_path: Path) -> None:
    plan = small_plan(tmp_path, questions=written(tmp_path / "q.jsonl", 80), supervised_control=True)
    shown, train = (command.argv for command in control_commands(plan, "90"))
    assert str(plan.inputs.questions) in shown and "cold_start/parts" in str(plan.inputs.questions)
    assert shown.count("--index") == 1, "it searches as the policy did"
    both = [train[place + 1] for place, word in enumerate(train) if word == "--demonstrations"]
    assert [Path(each).parent.name for each in both] == ["cold_start", "supervised"]
    assert train[train.index("--model") + 1] == plan.inputs.model and train[-1] == "90"


def test_a_test_of_the_users_comes_with_its_passages(tmp_path: Path) -> None:
    faults = " ".join(problems(small_plan(tmp_path, test=written(tmp_path / "q.jsonl", 8))))
    assert "--test: the corpus is that of the profile's own questions" in faults


def test_the_demonstrations_search_what_the_training_searches(tmp_path: Path) -> None:
    file = written(tmp_path / "q.jsonl", 80)
    plan = small_plan(tmp_path, questions=file, index="flat", encoder="a/b", build_args="--device cpu")
    tasks = {each.task: each.argv for each in plan.prepare}
    assert list(tasks).index("build the index") < list(tasks).index("demonstrate searching")
    words, built = tasks["demonstrate searching"], plan.build[-1]
    assert words[words.index("--index") + 1] == str(built.creates) and built.argv == tasks["build the index"]
    assert plan.serve and str(built.creates) in plan.serve.argv


def test_questions_of_two_splits_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Whatever their case and the space around them."""
    file, test = written(tmp_path / "q.jsonl", 80), written(tmp_path / "test.jsonl", 5)
    test.write_text(test.read_text().replace("What is", " what IS"), encoding="utf-8")
    plan = small_plan(tmp_path, questions=file, test=test, corpus=file)
    file_problems(plan, compose(tmp_path, "cpu", policy="smollm2", questions=file))
    assert f"{test}: 5 of its 5 questions (test) are also in {file}" in " ".join(
        capsys.readouterr().err.split()
    )


def test_questions_without_paragraphs_are_told_before_the_cold_start(tmp_path: Path) -> None:
    file = written(tmp_path / "q.jsonl", 80)
    faults = file_problems(small_plan(tmp_path, questions=file), compose(tmp_path, "cpu", policy="smollm2"))
    assert f"{file}: the questions come without paragraphs" in " ".join(faults)


def test_a_test_without_paragraphs_is_told_and_asked(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, test = written(tmp_path / "q.jsonl", 80), written(tmp_path / "test.jsonl", 5, start=90)
    paragraph = {"title": "X", "paragraph_text": "Y is its capital"}
    rows = [json.loads(line) | {"paragraphs": [paragraph]} for line in file.read_text().splitlines()]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    plan = small_plan(tmp_path, questions=file, test=test)
    assert not file_problems(plan, compose(tmp_path, "cpu", policy="smollm2"))
    said = " ".join(capsys.readouterr().err.split())
    assert f"{test}: 5 of its 5 questions come without paragraphs" in said and str(file) not in said


def test_the_mini_world_makes_no_corpus_of_paragraphs(tmp_path: Path) -> None:
    assert "--corpus dataset: the mini world" in " ".join(
        problems(make_plan(options(tmp_path, corpus=OWN_CORPUS)))
    )


def test_a_run_from_before_goes_on_with_what_it_has(tmp_path: Path) -> None:
    """Whatever is asked of a new one; it resumes with the options it was started with."""
    plan = small_plan(tmp_path, test=written(tmp_path / "q.jsonl", 8))
    assert "--test" in " ".join(problems(plan))
    plan.options.run_dir.mkdir(parents=True)
    plan.options.save(plan.options.run_dir / "recipe.json")
    assert "--test" not in " ".join(problems(plan))


@pytest.mark.parametrize(
    ("given", "index"),
    [({}, "bm25"), ({"encoder": "minilm"}, "flat"), ({"encoder": "minilm", "index": "hnsw"}, "hnsw")],
)
def test_an_encoder_is_for_an_index_of_vectors(tmp_path: Path, given: dict[str, str], index: str) -> None:
    assert small_plan(tmp_path, **given).inputs.index == index


def test_questions_are_not_written_over_others(tmp_path: Path) -> None:
    written(tmp_path / "train.questions.jsonl", 4)
    assert f"{tmp_path} exists already" in " ".join(run("questions", "--out", tmp_path).split())


@pytest.mark.parametrize("count", [1, 3])
def test_too_few_are_told_by_the_users_file(count: int) -> None:
    with pytest.raises(
        DataError, match=f"some.jsonl: {count} questions, {count} of them with a decomposition"
    ):
        parts_of(questions(count), Path("some.jsonl"), validation=60)


def test_what_is_left_for_grpo_is_counted_before_the_cold_start(tmp_path: Path) -> None:
    """24 questions are more than a batch of 16, but 6 are left."""
    file = written(tmp_path / "few.jsonl", 24)
    plan = small_plan(tmp_path, questions=file, corpus=passages(tmp_path / "corpus.jsonl"))
    (fault,) = file_problems(plan, compose(tmp_path, "cpu", policy="smollm2", questions=file))
    assert "6 questions left of 24 after those for cold start, validation and test" in fault


@pytest.mark.parametrize("change", ["options", "file", "index"])
def test_what_was_made_of_other_questions_is_made_again(tmp_path: Path, change: str) -> None:
    file = written(tmp_path / "mine.jsonl", 40)
    made = tmp_path / "run/cold_start/parts"
    made.mkdir(parents=True)

    def forget(seed: int = 1, index: str | None = None) -> bool:
        corpus = Path("dataset")
        given = options(tmp_path, policy="smollm2", questions=file, corpus=corpus, seed=seed, index=index)
        _forget_other_preparations(make_plan(given))
        return not made.exists()

    assert forget(), "nobody knows what it was made of"
    made.mkdir()
    assert not forget()
    if change == "file":
        written(file, 41)
    assert forget(2 if change == "options" else 1, "flat" if change == "index" else None)


def test_a_missing_corpus_is_one_line(tmp_path: Path) -> None:
    words = ["--questions", str(written(tmp_path / "q.jsonl", 4)), "--corpus", str(tmp_path / "none")]
    done = CliRunner().invoke(
        demonstrations, [*words, "--model", "m", "--out", str(tmp_path / "out.parquet")]
    )
    assert "--corpus: there is no file" in str(done.output) + str(done.exception)
    assert isinstance(done.exception, SystemExit | DataError)
