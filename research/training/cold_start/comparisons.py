"""More questions for GRPO, made of gold facts: which of two came first, and whether two share a country.

Few of 2Wiki's comparisons ask for the later of two, or are answered by yes, so a policy that never says so is
mostly rewarded. Here both answers are equally frequent. 2Wiki makes its own comparisons from its facts by
templates (Ho et al. 2020, section 3); so do we, in its wording.
"""

import random
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, count, islice, zip_longest

from research.datasets.question_forms import Question
from research.metrics.answers import normalize_answer
from research.training.cold_start.hops import YEAR, Triple, triples_of

# A line for each country: its name, what comes from it, its other names. One that is not here is known to be
# the same as itself, but not to differ from another: a Scot is British, and Bohemia was Austrian.
COUNTRIES = """
Albania, Albanian
Algeria, Algerian
Argentina, Argentine, Argentinian
Armenia, Armenian
Australia, Australian
Austria, Austrian
Belarus, Belarusian
Belgium, Belgian
Bolivia, Bolivian
Brazil, Brazilian
Bulgaria, Bulgarian
Canada, Canadian
Chile, Chilean
China, Chinese, People's Republic of China
Colombia, Colombian
Croatia, Croatian
Cuba, Cuban
Czech Republic, Czech, Czechia
Denmark, Danish
Egypt, Egyptian
Estonia, Estonian
Finland, Finnish
France, French
Germany, German
Greece, Greek
Hungary, Hungarian
Iceland, Icelandic
India, Indian
Indonesia, Indonesian
Iran, Iranian
Iraq, Iraqi
Ireland, Irish, Republic of Ireland
Israel, Israeli
Italy, Italian
Jamaica, Jamaican
Japan, Japanese
Latvia, Latvian
Lebanon, Lebanese
Lithuania, Lithuanian
Malaysia, Malaysian
Mexico, Mexican
Netherlands, Dutch
New Zealand, New Zealander
Nigeria, Nigerian
Norway, Norwegian
Pakistan, Pakistani
Peru, Peruvian
Philippines, Filipino
Poland, Polish
Portugal, Portuguese
Romania, Romanian
Russia, Russian
Serbia, Serbian
Slovakia, Slovak
Slovenia, Slovene, Slovenian
South Africa, South African
South Korea, South Korean
Spain, Spanish
Sweden, Swedish
Switzerland, Swiss
Thailand, Thai
Turkey, Turkish
Ukraine, Ukrainian
United Kingdom, British, UK, Great Britain
United States, American, America, US, USA, United States of America
Venezuela, Venezuelan
Vietnam, Vietnamese
"""
NAMED = {
    normalize_answer(name): line.partition(",")[0]
    for line in COUNTRIES.strip().splitlines()
    for name in line.split(", ")
}
# Of a kind; all pairs of them are listed. A whole train set has tens of thousands.
SUBJECTS = 300

Pair = tuple[str, str]
Facts = dict[str, dict[str, str]]  # relation -> subject -> its only value
Comparison = tuple[str, str, list[Triple]]  # question, answer, evidences
Couple = tuple[Comparison, Comparison]  # of either answer
Answered = Iterator[tuple[tuple[str, ...], Pair, str]]  # forms of the question, what it is about, answer


@dataclass(frozen=True)
class Kind:
    """Questions about two subjects by one relation: of the subjects themselves, or of two films' directors.

    Attributes:
        forms: of a date, those that ask for the earlier; of a country, those that ask for the same.
        later: of a date, those that ask for the later; none of a country.
    """

    relation: str
    forms: tuple[str, ...]
    later: tuple[str, ...] = ()
    of_directors: bool = False


KINDS = (
    Kind(
        "date of birth",
        ("Who was born first, {} or {}?", "Who is older, {} or {}?", "Was {} or {} born first?"),
        ("Who was born later, {} or {}?", "Who is younger, {} or {}?"),
    ),
    Kind(
        "date of death",
        ("Who died first, {} or {}?", "Who died earlier, {} or {}?"),
        ("Who died later, {} or {}?",),
    ),
    Kind(
        "publication date",
        ("Which film was released earlier, {} or {}?", "Which film came out first, {} or {}?"),
        ("Which film was released more recently, {} or {}?",),
    ),
    Kind(
        "date of birth",
        (
            "Which film has the director who was born earlier, {} or {}?",
            "Which film whose director is older, {} or {}?",
        ),
        (
            "Which film has the director who was born later, {} or {}?",
            "Which film whose director is younger, {} or {}?",
        ),
        of_directors=True,
    ),
    Kind(
        "date of death",
        (
            "Which film has the director who died first, {} or {}?",
            "Which film has the director who died earlier, {} or {}?",
        ),
        ("Which film has the director who died later, {} or {}?",),
        of_directors=True,
    ),
    Kind(
        "country",
        ("Are {} and {} located in the same country?", "Are {} and {} both located in the same country?"),
    ),
    Kind(
        "country of citizenship",
        ("Were {} and {} of the same nationality?", "Are {} and {} from the same country?"),
    ),
    Kind("country of origin", ("Are both {} and {} from the same country?",)),
    Kind(
        "country of citizenship",
        (
            "Do both films {} and {} have the directors from the same country?",
            "Do director of film {} and director of film {} share the same nationality?",
        ),
        of_directors=True,
    ),
)


def comparisons_of(
    questions: Sequence[Question], most: int, seed: int = 42, others: Sequence[Question] = ()
) -> list[Question]:
    """Up to `most` comparisons of the facts of `questions`, of all kinds alike; none without facts.

    None has the words or the id of one of `questions` or of the `others`.
    """
    draw, facts = random.Random(seed), _facts(questions)
    asked = {_words(each.question) for each in (*questions, *others)}
    taken = {each.id for each in (*questions, *others)}
    ids = (name for number in count() if (name := f"comparison_{number}") not in taken)
    in_turn = chain.from_iterable(zip_longest(*(_couples(kind, facts, draw, asked) for kind in KINDS)))
    made = islice(chain.from_iterable(filter(None, in_turn)), most)
    return [
        Question(
            next(ids),
            question,
            (answer,),
            {"hops": len(evidences), "type": "comparison", "evidences": list(map(list, evidences))},
        )
        for question, answer, evidences in made
    ]


def _couples(kind: Kind, facts: Facts, draw: random.Random, asked: set[tuple[str, ...]]) -> Iterator[Couple]:
    """Equally many of each answer, none that is asked already."""
    each = _compared(kind, facts, draw)
    for couple in zip(each, each, strict=False):
        if asked.isdisjoint(_words(question) for question, _, _ in couple):
            yield couple


def _words(question: str) -> tuple[str, ...]:
    """The same words for the same pair, whichever is named first."""
    return tuple(sorted(normalize_answer(question).split()))


def _facts(questions: Sequence[Question]) -> Facts:
    """The facts, without subjects that have several values for a relation."""
    values: dict[str, dict[str, set[str]]] = {}
    for subject, relation, value in chain.from_iterable(map(triples_of, questions)):
        values.setdefault(relation, {}).setdefault(subject, set()).add(value)
    return {
        relation: {subject: min(each) for subject, each in of.items() if len(each) == 1}
        for relation, of in values.items()
    }


def _compared(kind: Kind, facts: Facts, draw: random.Random) -> Iterator[Comparison]:
    """All comparisons of a kind, no pair twice, alternating between the two answers."""
    known = facts.get(kind.relation, {})
    about = facts.get("director", {}) if kind.of_directors else {each: each for each in known}
    values = {each: known[subject] for each, subject in about.items() if subject in known}
    named = sorted(values if len(values) <= SUBJECTS else draw.sample(sorted(values), SUBJECTS))
    pairs = [(a, b) for place, a in enumerate(named) for b in named[:place] if about[a] != about[b]]
    draw.shuffle(pairs)
    pairs = [pair if draw.random() < 0.5 else pair[::-1] for pair in pairs]
    for forms, pair, answer in (_by_date if kind.later else _by_country)(kind, pairs, values):
        evidences = [(each, "director", about[each]) for each in pair if kind.of_directors]
        evidences += [(about[each], kind.relation, values[each]) for each in pair]
        yield draw.choice(forms).format(*pair), answer, evidences


def _by_date(kind: Kind, pairs: Sequence[Pair], dates: dict[str, str]) -> Answered:
    later = False
    for pair in pairs:
        years = [year for each in pair if (year := _year(dates[each]))]
        if len(set(years)) == 2:
            yield (kind.later if later else kind.forms), pair, pair[(years[0] < years[1]) == later]
            later = not later


def _by_country(kind: Kind, pairs: Sequence[Pair], names: dict[str, str]) -> Answered:
    plain = {each: normalize_answer(name) for each, name in names.items()}
    countries = {each: NAMED.get(name, name) for each, name in plain.items()}
    same = [(a, b) for a, b in pairs if countries[a] == countries[b]]
    other = [
        (a, b) for a, b in pairs if countries[a] != countries[b] and {plain[a], plain[b]} <= NAMED.keys()
    ]
    for first, second in zip(same, other, strict=False):
        yield kind.forms, first, "yes"
        yield kind.forms, second, "no"


def _year(date: str) -> int | None:
    """The year of a date that names one; None for "1904 or 1905", and for those before Christ."""
    years = YEAR.findall(date)
    return int(years[0]) if len(years) == 1 and not re.search(r"\bB\.?C", date, re.I) else None
