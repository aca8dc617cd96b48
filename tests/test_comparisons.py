"""Comparisons made of gold facts: right by these, and none gives its answer away by where it stands."""

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from test_cold_start_parts import passages
from test_cold_start_parts import questions as without_facts
from test_recipe_options import compose, options

from research.datasets.question_forms import Question
from research.datasets.questions import read_questions, write_questions
from research.errors import DataError
from research.training.cold_start.comparisons import SUBJECTS, comparisons_of
from research.training.cold_start.hops import hops_of
from research.training.cold_start.split import parts_of, split
from research.training.run.plan import make_plan
from research.training.run.preflight import file_problems, problems

CITIZENSHIP = "country of citizenship"
COUNTRIES = ("Austria", "Austrian", "Italy", "Italian", "U.S.", "United States", "American")


def films(count: int) -> list[Question]:
    """Each of a director of its own, born in a year of his own."""
    return [
        Question(
            f"film{number}",
            f"Where is the director of Film {number} from?",
            ("somewhere",),
            {
                "evidences": [
                    [f"Film {number}", "director", f"Director {number}"],
                    [f"Director {number}", "date of birth", f"{1 + number % 28} May {1880 + number}"],
                    [f"Director {number}", "country of citizenship", COUNTRIES[number % len(COUNTRIES)]],
                ]
            },
        )
        for number in range(count)
    ]


def number_of(name: str) -> int:
    return int(name.split()[-1])


def test_of_two_dates_the_answer_is_the_one_that_is_asked_for() -> None:
    made = [each for each in comparisons_of(films(30), 200) if " or " in each.question]
    assert len(made) > 50
    for each in made:
        first, second = each.question.rstrip("?").removeprefix("Was ").split(", ")[-1].split(" or ")
        second = second.removesuffix(" born first")
        wanted = max if "later" in each.question or "younger" in each.question else min
        assert each.golden_answers == (wanted(first, second, key=number_of),), each.question


def test_no_answer_is_given_away_by_its_place() -> None:
    made = comparisons_of(films(60), 400)
    dates = Counter(
        each.question.index(each.golden_answers[0]) < each.question.index(" or ")
        for each in made
        if " or " in each.question
    )
    countries = Counter(each.golden_answers[0] for each in made if " or " not in each.question)
    assert 0.4 < dates[True] / dates.total() < 0.6
    assert countries["yes"] == pytest.approx(countries["no"], abs=2)


def test_a_country_has_several_names() -> None:
    named = {f"Director {place}": name for place, name in enumerate(COUNTRIES)}
    alike = [set(COUNTRIES[:2]), set(COUNTRIES[2:4]), set(COUNTRIES[4:])]
    made = [each for each in comparisons_of(films(7), 100) if each.golden_answers[0] in ("yes", "no")]
    assert made
    for each in made:
        pair = {named[subject] for subject, relation, _ in each.metadata["evidences"] if subject in named}
        same = len(pair) == 1 or any(pair <= names for names in alike)
        assert each.golden_answers == ("yes" if same else "no",), each


def of_countries(*names: str) -> list[Question]:
    """People, each of one of the countries."""
    return [
        Question(f"q{place}", f"Q{place}?", ("a",), {"evidences": [[f"P{place}", CITIZENSHIP, name]]})
        for place, name in enumerate(names)
    ]


@pytest.mark.parametrize(
    "pair",
    [
        *[
            ("Austria", "Australian"),
            ("South Korea", "South Africa"),
            ("Slovak", "Slovene"),
            ("India", "Indonesia"),
        ],
        *[("Iran", "Iraq"), ("Dutch", "Danish"), ("China", "Chile")],
    ],
)
def test_countries_that_begin_alike_differ(pair: tuple[str, str]) -> None:
    """A question is made of them beside one of two that are the same."""
    made = comparisons_of(of_countries(*pair, "Mali", "Mali"), 10)
    answers = {tuple(sorted(value for *_, value in each.metadata["evidences"])): each for each in made}
    assert answers[("Mali", "Mali")].golden_answers == ("yes",)
    assert answers[tuple(sorted(pair))].golden_answers == ("no",)


@pytest.mark.parametrize("pair", [("Niger", "Nigeria"), ("English", "British"), ("Bohemia", "Austria")])
def test_what_is_not_known_to_be_another_country_is_not_asked_for(pair: tuple[str, str]) -> None:
    assert not comparisons_of(of_countries(*pair, "Mali", "Mali"), 10)


@pytest.mark.parametrize("pair", [("French", "France"), ("Dutch", "Netherlands"), ("British", "UK")])
def test_a_country_and_what_comes_from_it_are_the_same(pair: tuple[str, str]) -> None:
    made = comparisons_of(of_countries(*pair, "Chile"), 10)
    assert [each.golden_answers for each in made] == [("yes",), ("no",)]


@pytest.mark.parametrize("most", [1, 9, 10, 50, 99])
def test_as_many_of_either_answer_however_many_are_taken(most: int) -> None:
    made = comparisons_of(films(30), most)
    later = [each for each in made if " or " in each.question]
    asked = Counter("later" in each.question or "younger" in each.question for each in later)
    countries = Counter(each.golden_answers[0] for each in made if " or " not in each.question)
    assert abs(asked[True] - asked[False]) + abs(countries["yes"] - countries["no"]) <= 1
    assert len(made) == most


def test_no_question_and_no_id_of_the_users_is_made_again() -> None:
    """As where the file of what was left for GRPO is parted once more."""
    before = comparisons_of(films(12), 60)
    again = comparisons_of([*films(12), *before], 60)
    assert not {each.question for each in before} & {each.question for each in again}
    assert not {each.id for each in before} & {each.id for each in again}


def test_no_question_that_is_held_out_is_made(tmp_path: Path) -> None:
    """In whatever case, and whichever of the two is named first."""
    made = comparisons_of(films(40), 300)
    held_out = [replace(each, id=f"t{each.id}", question=each.question.upper()) for each in made[::2]]
    write_questions(tmp_path / "q.jsonl", films(40))
    write_questions(tmp_path / "test.jsonl", held_out)
    words = ["--questions", tmp_path / "q.jsonl", "--out", tmp_path / "parts", "--comparisons", "300"]
    words += ["--held-out", tmp_path / "test.jsonl"]
    assert CliRunner().invoke(split, list(map(str, words))).exit_code == 0
    rest = read_questions(tmp_path / "parts" / "rest.questions.jsonl")
    taken = {tuple(sorted(each.question.upper().rstrip("?").split())) for each in held_out}
    assert not [each for each in rest if tuple(sorted(each.question.upper().rstrip("?").split())) in taken]


@pytest.mark.parametrize("date", ["1500 BC", "1500 b.c.", "1904 or 1905"])
def test_a_date_of_no_certain_year_is_not_asked_for(date: str) -> None:
    dates = [
        [["P0", "date of birth", date]],
        [["P1", "date of birth", "1900"]],
        [["P2", "date of birth", "1950"]],
    ]
    asked = [Question(f"q{i}", f"Q{i}?", ("a",), {"evidences": each}) for i, each in enumerate(dates)]
    made = comparisons_of(
        [*asked, Question("q", "Q?", ("a",), {"evidences": [["P3", "date of birth", "1990"]]})], 10
    )
    assert made and not [each for each in made if "P0" in each.question]


def test_no_pair_is_asked_for_twice_by_one_relation() -> None:
    made = comparisons_of(films(12), 1000)
    pairs = [tuple(sorted(map(str, each.metadata["evidences"]))) for each in made]
    assert len(set(pairs)) == len(pairs)


def test_a_large_file_is_compared_in_part() -> None:
    """All pairs of its subjects would be two million."""
    made = [each for each in comparisons_of(films(2000), 100_000) if each.question.startswith("Who was born")]
    assert len({subject for each in made for subject, _, _ in each.metadata["evidences"]}) == SUBJECTS


def test_contradictory_facts_are_not_asked_for() -> None:
    twice = [*films(2), Question("q", "Q?", ("a",), {"evidences": [["Director 0", "date of birth", "1999"]]})]
    assert not [each for each in comparisons_of(twice, 100) if "born" in each.question]


def test_they_can_be_demonstrated_for_the_supervised_control() -> None:
    made = comparisons_of(films(12), 100)
    assert [len(hops_of(each)) for each in made] == [each.hops for each in made]


def test_only_facts_of_questions_for_grpo_are_used(tmp_path: Path) -> None:
    parts = parts_of(films(60), tmp_path / "q.jsonl", validation=10, test=10, comparisons=100)
    shown, validating, testing, rest = parts
    known = {
        row[0] for each in rest if not each.id.startswith("comparison") for row in each.metadata["evidences"]
    }
    made = [each for each in rest if each.id.startswith("comparison")]
    assert len(made) == 100
    assert {row[0] for each in made for row in each.metadata["evidences"]} <= known
    assert not [each for each in (*shown, *validating, *testing) if each.id.startswith("comparison")]


@pytest.mark.parametrize("asked", [without_facts(40), [*without_facts(40), *films(1)]])
def test_nothing_to_compare_is_said(asked: list[Question], tmp_path: Path) -> None:
    with pytest.raises(DataError, match="q.jsonl: nothing to compare"):
        parts_of(asked, tmp_path / "q.jsonl", comparisons=10)


def test_the_command_writes_them_with_their_facts(tmp_path: Path) -> None:
    write_questions(tmp_path / "q.jsonl", films(40))
    words = ["--questions", tmp_path / "q.jsonl", "--out", tmp_path / "parts", "--comparisons", "15"]
    result = CliRunner().invoke(split, list(map(str, words)), catch_exceptions=False)
    assert result.exit_code == 0, result.output
    rest = read_questions(tmp_path / "parts" / "rest.questions.jsonl")
    assert len(rest) == 20 + 15
    assert rest[-1].metadata["evidences"]


def plan_of(folder: Path, **words: Any) -> tuple[Any, Any]:
    words = {"policy": "smollm2", "corpus": Path("dataset")} | words
    return make_plan(options(folder, **words)), compose(folder, "cpu", **words)


def test_the_recipe_counts_them_as_questions_for_grpo(tmp_path: Path) -> None:
    """Of 24 questions 6 are left, fewer than a batch of 16."""
    words = {"questions": tmp_path / "q.jsonl", "corpus": passages(tmp_path / "corpus.jsonl")}
    write_questions(words["questions"], films(24))
    assert "6 questions left" in " ".join(file_problems(*plan_of(tmp_path, **words)))
    assert not file_problems(*plan_of(tmp_path, **words, comparisons=20))


def test_they_need_questions_with_facts(tmp_path: Path) -> None:
    plan, _ = plan_of(tmp_path, corpus=None, comparisons=20)
    assert "--comparisons: they are made of 2Wiki's evidences" in " ".join(problems(plan))


def test_the_tiny_policy_has_no_use_for_them(tmp_path: Path) -> None:
    plan, _ = plan_of(tmp_path, policy="tiny", corpus=None, comparisons=20)
    assert "--comparisons: without effect beside --policy tiny" in " ".join(problems(plan))


@pytest.mark.parametrize("evidences", [[["a", "b"]], ["abc"], [["a", "b", "c", "d"]], [1], {"fact": ["a"]}])
def test_facts_of_another_form_are_left_out(evidences: Any) -> None:
    odd = Question("odd", "Q?", ("a",), {"evidences": evidences})
    assert hops_of(odd) == ()
    assert comparisons_of([odd], 10) == []
