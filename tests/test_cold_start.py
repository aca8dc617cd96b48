"""A cold start: hops of gold decompositions, demonstrations by real retrieval, training on them."""

import json
import re
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
from click.testing import CliRunner
from flask import Flask, request
from loopback import serving
from test_recipe_options import compose, options
from transformers import AutoTokenizer, Qwen2Config, Qwen2ForCausalLM

from benchmarks.references.model import byte_tokenizer
from research.datasets.questions import Question, read_questions
from research.errors import DataError
from research.training.cold_start.commands import cold_start
from research.training.cold_start.corpus import paragraphs_of
from research.training.cold_start.demonstrations import UNTRAINED
from research.training.cold_start.hops import comparison_of, hops_of
from research.training.cold_start.sft import Schedule, fit
from research.training.run.plan import make_plan

PAGES = {
    "Hana Brook": "Hana Brook is a river that joins the sea near Ostwick.",
    "Ostwick": "Ostwick is a town. Its mayor is Ada Lund, elected in 2011.",
    "The Long Tide": "The Long Tide is a film directed by Piet Marrow.",
    "Piet Marrow": "Piet Marrow, born in Ostwick on 3 May 1950, directs films.",
    "Gull (bird)": "A gull lives by the sea and eats what the tide brings.",
}
ROWS = [
    {
        "id": "2hop__1_2",
        "question": "Who is the mayor of the town where Hana Brook joins the sea?",
        "golden_answers": ["Ada Lund"],
        "data_source": "musique",
        "metadata": {
            "question_decomposition": [
                {"question": "Hana Brook >> joins the sea near", "answer": "Ostwick"},
                {"question": "Who is the mayor of #1 ?", "answer": "Ada Lund"},
            ]
        },
    },
    {
        "id": "w1",
        "question": "When was the director of film The Long Tide born?",
        "golden_answers": ["3 May 1950"],
        "metadata": {
            "evidences": [
                ["The Long Tide", "director", "Piet Marrow"],
                ["Piet Marrow", "date of birth", "3 May 1950"],
            ]
        },
    },
    {
        "id": "h1",
        "question": "Does a gull live where Hana Brook ends?",
        "golden_answers": ["yes"],
        "metadata": {"supporting_facts": [["Gull (bird)", 0], ["Hana Brook", 0]]},
    },
    {  # of no use: the second hop is in no passage
        "id": "w2",
        "question": "Who is the wife of the director of The Long Tide?",
        "golden_answers": ["Nobody Here"],
        "metadata": {
            "evidences": [
                ["The Long Tide", "director", "Piet Marrow"],
                ["Piet Marrow", "spouse", "Nobody Here"],
            ]
        },
    },
    {"id": "x", "question": "Why?", "golden_answers": ["because"]},
]


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """Questions, the corpus of their pages, and a tiny model with a chat template."""
    pages = [{"id": str(i), "contents": f"{title}\n{text}"} for i, (title, text) in enumerate(PAGES.items())]
    write(tmp_path / "corpus.jsonl", pages)
    write(tmp_path / "questions.jsonl", ROWS)
    return tmp_path


@pytest.fixture(scope="module")
def byte_model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A tiny model with a token per byte and a chat template."""
    folder = tmp_path_factory.mktemp("byte_model")
    byte_tokenizer().save_pretrained(folder)
    tiny(vocabulary=300).save_pretrained(folder)
    return str(folder)


# A token per byte: texts are four times as long.
LIMITS = (
    "research.limits.turn_tokens=1000",
    "research.limits.passage_tokens=500",
    "data.max_response_length=5000",
)


def write(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def run(*words: Any) -> str:
    result = CliRunner().invoke(cold_start, list(map(str, words)))
    assert result.exit_code == 0, result.output
    return result.output


def question(name: str) -> Question:
    (row,) = (each for each in ROWS if each["id"] == name)
    return Question(row["id"], row["question"], tuple(row["golden_answers"]), row.get("metadata", {}))


def test_hops_name_what_earlier_ones_found() -> None:
    first, second = hops_of(question("2hop__1_2"))
    assert first.queries == ("Hana Brook joins the sea near", "Hana Brook") and first.answer == "Ostwick"
    assert second.queries == ("Who is the mayor of Ostwick ?", "Ostwick") and second.answer == "Ada Lund"
    assert [hop.queries[0] for hop in hops_of(question("w1"))] == [
        "The Long Tide director",
        "Piet Marrow date of birth",
    ]
    assert [hop.queries for hop in hops_of(question("h1"))] == [("Gull",), ("Hana Brook",)]
    assert hops_of(question("x")) == ()


@pytest.mark.parametrize(
    ("relation", "values", "answer", "compared", "follows"),
    [
        (
            "date of birth",
            ("7 May 1912", "April 1, 1899"),
            "a",
            "The earlier, 1899, is of B; the later, 1912, is of A.",
            "That is the later, 1912, of A.",
        ),
        (
            "publication date",
            ("1912", "1999"),
            "A",
            "The earlier, 1912, is of A; the later, 1999, is of B.",
            "That is the earlier, 1912, of A.",
        ),
        ("date of birth", ("7 May 1912", "8 May 1912"), "A", "", ""),
        ("date of birth", ("7 May 1912", "unknown"), "A", "", ""),
        ("date of birth", ("7 May 1912", "8 May 1999"), "87 years", "", ""),
        ("country", ("1912", "1999"), "A", "", ""),
        ("country", ("France", "French"), "yes", "", "France and French are the same."),
        ("country", ("France", "Italy"), "no", "", "France and Italy are not the same."),
    ],
)
def test_what_is_compared_is_put_in_words_before_the_answer(
    relation: str, values: tuple[str, str], answer: str, compared: str, follows: str
) -> None:
    evidences = [[subject, relation, value] for subject, value in zip("AB", values, strict=True)]
    asked = Question("q", "Who?", (answer,), metadata={"evidences": evidences})
    assert comparison_of(asked) == (compared, follows)


def test_of_two_directors_it_is_said_whose_film_it_is() -> None:
    evidences = [
        ["F", "director", "A"],
        ["G", "director", "B"],
        ["A", "date of birth", "1912"],
        ["B", "date of birth", "1899"],
    ]
    asked = Question("q", "Which?", ("G",), metadata={"evidences": evidences})
    assert comparison_of(asked)[1] == "That is the earlier, 1899, of B, director of G."


def test_a_page_that_the_question_does_not_name_is_led_to() -> None:
    bridge = Question(
        "h2",
        "Who is the mayor of the town at Hana Brook?",
        ("Ada Lund",),
        {"supporting_titles": ["Ostwick", "Hana Brook"]},
    )
    first, second = hops_of(bridge)
    assert first.queries == ("Hana Brook",) and first.answer == "Ostwick"
    assert second.queries[0] == "Ostwick" and second.is_in("Ostwick\nIts mayor is Ada Lund.")
    unnamed = Question("h3", "Who?", ("A",), {"supporting_titles": ["Ostwick", "Hana Brook"]})
    assert hops_of(unnamed) == ()


@pytest.mark.parametrize("answer", ["Ada Lund", "ada lund", "Ada Lund."])
def test_a_hop_is_found_in_whole_words(answer: str) -> None:
    hop = hops_of(question("2hop__1_2"))[1]
    assert hop.is_in(f"It says: {answer} was elected.") and not hop.is_in("Ada Lundqvist was elected.")


@pytest.mark.parametrize(
    ("preset", "said"),
    [
        (
            "own",
            "<search> Hana Brook joins the sea near </search> <result>\nHana Brook\nHana Brook is a river",
        ),
        (
            "search_r1_cpu",
            "<search> Hana Brook joins the sea near </search>\n\n<information>Doc 1(Title: Hana Brook)",
        ),
        (
            "recall",
            '<tool_call>\n{"name": "wikipedia_search", "arguments": {"query": "Hana Brook joins'
            ' the sea near"}}',
        ),
    ],
)
def test_demonstrations_are_episodes_of_the_training(
    files: Path, byte_model: str, preset: str, said: str
) -> None:
    """Played in the loop itself over a real BM25 service; what is trained is what the policy says."""
    out = files / f"{preset}.parquet"
    words = ("--questions", files / "questions.jsonl", "--corpus", files / "corpus.jsonl", "--out", out)
    shown = run("demonstrations", *words, "--model", byte_model, *LIMITS, f"research.preset={preset}")
    assert "3 demonstrations of 5 questions" in shown
    assert shown.endswith("left out: 1 without a decomposition, 1 with a passage that no search finds\n")
    rows = {row["id"]: row for row in pq.read_table(out).to_pylist()}
    assert rows.keys() == {"2hop__1_2", "w1", "h1"}
    row, tokenizer = rows["2hop__1_2"], AutoTokenizer.from_pretrained(byte_model)
    assert said in row["text"]
    trained = [token for token in row["labels"] if token != UNTRAINED]
    pairs = zip(row["labels"], row["input_ids"], strict=True)
    assert all(label in (UNTRAINED, token) for label, token in pairs)
    spoken = tokenizer.decode(trained)
    assert "Ada Lund" in spoken and "is a river" not in spoken
    asked = ROWS[0]["question"]  # in the prompt, and once more in the last thought
    assert row["text"].count(asked) == 2 and spoken.count(asked) == 1
    assert f"Asked is: {asked} So the answer is Ada Lund." in spoken
    assert trained[-1] == tokenizer.eos_token_id


CALCULATE = "examples.your_tool.calculator:calculate"


@pytest.mark.parametrize(
    ("tools", "said"),
    [
        (f'{{"{CALCULATE}": {{}}, search: {{}}}}', "3 demonstrations of 5"),
        (CALCULATE, "research.tools: none searches"),
    ],
)
def test_demonstrations_search_with_the_tool_that_searches(
    files: Path, byte_model: str, tools: str, said: str
) -> None:
    words = ["--questions", files / "questions.jsonl", "--corpus", files / "corpus.jsonl"]
    words += ["--model", byte_model, "--out", files / "tools.parquet", *LIMITS, f"research.tools={tools}"]
    result = CliRunner().invoke(cold_start, ["demonstrations", *map(str, words), "research.controls=[]"])
    assert said in result.output


def demonstrated(files: Path, byte_model: str, *words: str) -> str:
    """What the command says that makes no demonstrations."""
    given = ["demonstrations", "--questions", files / "questions.jsonl", "--model", byte_model]
    result = CliRunner().invoke(cold_start, [*map(str, (*given, "--out", files / "none")), *words])
    assert result.exit_code == 1 and "Traceback" not in result.output and not (files / "none").exists()
    return result.output


def test_a_dead_retriever_is_told_at_once(files: Path, byte_model: str) -> None:
    said = demonstrated(files, byte_model, "--retriever", "http://127.0.0.1:9")
    assert "--retriever: no healthy retriever at http://127.0.0.1:9" in said


def test_the_first_search_that_fails_ends_it(files: Path, byte_model: str) -> None:
    app, asked = Flask("retriever"), []
    app.add_url_rule("/health", view_func=lambda: "{}")

    @app.post("/search")
    def search() -> tuple[str, int]:
        asked.append(request.get_json()["query"])
        return "no", 400

    with serving(app) as url:
        said = demonstrated(files, byte_model, "--retriever", url)
    assert re.search("the search for '.+' failed: .*400", said) and len(asked) <= len(ROWS)


@pytest.mark.parametrize(
    ("limit", "reason"),
    [
        ("research.limits.searches=0", "4 with more searches than research.limits.searches"),
        ("data.max_response_length=60", "4 too long for data.max_response_length"),
    ],
)
def test_a_limit_is_named_that_leaves_no_demonstration(
    files: Path, byte_model: str, limit: str, reason: str
) -> None:
    words = [each for each in LIMITS if each.partition("=")[0] != limit.partition("=")[0]]
    said = demonstrated(files, byte_model, "--corpus", str(files / "corpus.jsonl"), *words, limit)
    assert "no question could be demonstrated" in said and reason in said


def test_no_question_is_on_both_sides(files: Path) -> None:
    copies = [(row, str(copy)) for row in ROWS for copy in range(4)]
    asked = [row | {"id": f"{row['id']}_{copy}", "question": row["question"] + copy} for row, copy in copies]
    write(files / "many.jsonl", asked)
    given = ("--questions", files / "many.jsonl", "--out", files / "parts", "--validation", 10)
    said = run("split", *given)
    assert "8 for the cold start, 3 for validation, 9 for GRPO" in said
    parts = [
        [each.id for each in read_questions(files / "parts" / f"{name}.questions.jsonl")]
        for name in ("demonstrated", "validation", "rest")
    ]
    assert sorted(sum(parts, [])) == sorted(f"{row['id']}_{copy}" for row in ROWS for copy in range(4))
    assert not [each for each in parts[0] if each.startswith("x")], "it cannot be demonstrated"


def test_questions_without_decompositions_make_no_cold_start(files: Path) -> None:
    write(files / "plain.jsonl", ROWS[-1:])
    result = CliRunner().invoke(
        cold_start, ["split", "--questions", str(files / "plain.jsonl"), "--out", str(files / "parts")]
    )
    assert (
        result.exit_code == 1 and "question_decomposition" in result.output and not (files / "parts").exists()
    )


@pytest.mark.parametrize(
    "fields",
    [
        {"paragraphs": [{"title": "A", "paragraph_text": "one two", "is_supporting": True}]},
        {"context": [["A", ["one ", "two"]]]},
        {"context": json.dumps([["A", ["one ", "two"]]])},
        {"context": {"title": ["A"], "sentences": [["one ", "two"]]}},
        {"context": {"title": ["A"], "content": [["one ", "two"]]}},
        {"question_decomposition": [{"support_paragraph": {"title": "A", "paragraph_text": "one two"}}]},
    ],
)
@pytest.mark.parametrize("nested", [False, True])
def test_paragraphs_of_every_published_form(fields: dict[str, Any], nested: bool) -> None:
    row = {"id": "1", "question": "?", **({"metadata": fields} if nested else fields)}
    assert list(paragraphs_of(row)) == [("A", "one two")]


@pytest.mark.parametrize(
    "fields", [{}, {"context": "no JSON"}, {"context": 3}, {"paragraphs": [None, {"title": 1}]}]
)
def test_a_row_without_paragraphs_has_none(fields: dict[str, Any]) -> None:
    assert list(paragraphs_of({"id": "1", **fields})) == []


def tiny(vocabulary: int = 50) -> Qwen2ForCausalLM:
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "vocab_size": vocabulary}
    return Qwen2ForCausalLM(Qwen2Config(**sizes, num_attention_heads=4, num_key_value_heads=2)).float()


def test_the_loss_is_that_of_the_policys_tokens_alone() -> None:
    model = tiny()
    ids, labels = [3, 4, 5, 6, 7], [UNTRAINED, UNTRAINED, 5, UNTRAINED, 7]
    logits = model(torch.tensor([ids])).logits[0].log_softmax(-1)
    expected = -(logits[1, 5] + logits[3, 7]).item() / 2
    (_, loss), *_ = fit(model, [(ids, labels)], Schedule(1, 1e-3, 100, None, 0))
    assert loss == pytest.approx(expected, rel=0.02)  # bfloat16, where the processor has it


def test_it_learns_what_it_is_shown_and_keeps_the_time() -> None:
    examples = [
        ([1, 2, token, token + 1], [UNTRAINED, UNTRAINED, UNTRAINED, token + 1]) for token in range(5, 40)
    ]
    losses = [loss for _, loss in fit(tiny(), examples, Schedule(30, 1e-2, 60, None, 0))]
    assert losses[-1] < 0.2 < losses[0]
    assert not list(fit(tiny(), examples, Schedule(30, 1e-2, 60, 1e-9, 0)))[1:]


def test_an_equal_policy_is_not_trained_twice(files: Path, byte_model: str) -> None:
    words = ("--questions", files / "questions.jsonl", "--corpus", files / "corpus.jsonl")
    run("demonstrations", *words, "--model", byte_model, "--out", files / "shown.parquet", *LIMITS)
    train = ("train", "--demonstrations", files / "shown.parquet", "--model", byte_model, "--epochs", 1)
    first = run(*train, "--cache", files / "cache", "--out", files / "one")
    second = run(*train, "--cache", files / "cache", "--out", files / "two")
    assert "trained before" not in first and "trained before" in second
    weights = [(files / each / "model.safetensors").read_bytes() for each in ("one", "two")]
    assert (
        weights[0] == weights[1]
        and json.loads((files / "two/cold_start.json").read_text())["demonstrations"] == 3
    )
    with pytest.raises(DataError, match="exists already"):
        cold_start([*map(str, (*train, "--out", files / "two"))], standalone_mode=False)


def test_the_profile_of_a_small_model(tmp_path: Path, files: Path) -> None:
    """Its questions part from those of the cold start, its corpus is theirs, BM25 finds it."""
    small = options(tmp_path, policy="smollm2", questions=files / "questions.jsonl", corpus=Path("dataset"))
    plan = make_plan(small)
    tasks = [command.task for command in plan.prepare]
    assert tasks[-5:] == [
        "make a corpus of the questions' paragraphs",
        "part the questions of the cold start from the others",
        "build the index",
        "demonstrate searching",
        "cold-start the policy",
    ]
    parts = small.run_dir / "cold_start/parts"
    assert plan.inputs.questions == parts / "rest.questions.jsonl"
    assert plan.inputs.validation == parts / "validation.questions.jsonl"
    assert plan.inputs.index == "bm25" and plan.inputs.corpus == small.run_dir / "corpus.jsonl"
    config = compose(tmp_path, "cpu", policy="smollm2")
    assert config.research.skip_equal_groups and config.research.prompt == "question"
    half = config.actor_rollout_ref.rollout.dtype == "bfloat16"
    assert config.actor_rollout_ref.actor.fsdp_config.mixed_precision.param_dtype == (
        "bf16" if half else "fp32"
    )
