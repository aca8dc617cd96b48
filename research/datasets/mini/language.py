"""The words of the mini world: kinds, relations, sentences, epithets and the words that names are made of.

Every world draws on these lists whatever its seed, so one tokenizer and one encoder serve them all. A
relation is asked for in one of two phrases and stated in one of two others that share no word with them: a
search in the question's words finds the right entity, but often the wrong one of its two pages.
"""

import random
from dataclasses import dataclass
from functools import cache

PAGES = 2  # passages about an entity; each states half of its relations


@dataclass(frozen=True)
class Relation:
    """A function from entities of one kind to entities of another, with the phrases for it.

    A question says "the `question_phrases[i]` of"; page `page` (0 or 1) of the subject says
    "It `passage_phrases[j]` OBJECT".
    """

    subject: str
    object: str
    page: int
    question_phrases: tuple[str, str]
    passage_phrases: tuple[str, str]

    @property
    def name(self) -> str:
        """The first way to ask, which names the relation in decompositions."""
        return self.question_phrases[0]


# One line a relation: subject kind, object kind, page, two ways to ask, two ways to state.
_RELATION_TABLE = """
person | person | 0 | mother / foster parent | grew up in the arms of / was a child of
person | city | 0 | birthplace / native town | was born in / first saw daylight in
person | person | 1 | mentor / teacher | learned the craft from / was an apprentice under
person | company | 1 | employer / workplace | draws a salary from / joined the staff at
city | country | 0 | country / homeland | lies within / belongs to
city | person | 0 | pioneer / first settler | was settled by / grew around the hut of
city | person | 1 | mayor / head | is governed by / elected
city | city | 1 | twin town / partner | exchanges pupils with / is paired with
country | city | 0 | capital / seat of power | is ruled from / holds its parliament in
country | country | 0 | neighbour / nearest land | shares a frontier with / ends at the hills of
country | person | 1 | president / leader | is led by / swore in
country | book | 1 | national epic / best loved work | makes its children read / prints on its coins
company | person | 0 | founder / entrepreneur | was started by / began in the garage of
company | city | 0 | headquarters / main office | is based in / keeps its desks in
company | person | 1 | owner / proprietor | was bought by / is in the hands of
company | company | 1 | supplier / provider | gets its parts from / depends on goods made by
book | person | 0 | author / writer | was written by / came from the pen of
book | city | 0 | setting / scene | takes place in / unfolds in
book | company | 1 | publisher / printer | was brought out by / was typeset at
book | book | 1 | sequel / continuation | goes on in / was followed by
ship | company | 0 | builder / shipyard | was built by / left the docks of
ship | city | 0 | home port / harbour | sails from / drops its anchor in
ship | person | 1 | captain / commander | is steered by / obeys
ship | country | 1 | flag state / register | flies the colours of / pays its dues to
"""


def _relation(line: str) -> Relation:
    subject, target, page, *phrases = (part.strip() for part in line.split("|"))
    (first, second), (plain, other) = (pair.split(" / ") for pair in phrases)
    return Relation(subject, target, int(page), (first, second), (plain, other))


RELATIONS = tuple(_relation(line) for line in _RELATION_TABLE.strip().splitlines())
KIND_SHARES = {"person": 0.3, "city": 0.18, "company": 0.16, "book": 0.14, "ship": 0.12, "country": 0.1}

# What tells namesakes apart: "Flora Jarrow the painter", in a title "Flora Jarrow (painter)".
EPITHETS = {
    "person": ("painter", "chemist", "singer", "sailor"),
    "city": ("spa", "fortress", "market", "resort"),
    "company": ("brewery", "bank", "mill", "foundry"),
    "book": ("novel", "play", "diary", "saga"),
    "ship": ("ferry", "trawler", "schooner", "tanker"),
    "country": ("kingdom", "republic", "duchy", "union"),
}
# How the two pages begin ({s} subject, {e} epithet), what else they tell, and whom they mention in passing.
OPENINGS = {
    "person": ("{s} is a {e}.", "In later years {s} kept bees."),
    "city": ("{s} is a {e} on a river.", "Visitors to {s} admire the old walls."),
    "company": ("{s} is a {e} with a long past.", "Profits at {s} rose for years."),
    "book": ("{s} is a {e} in three parts.", "Critics praised {s} at once."),
    "ship": ("{s} is a {e} with two decks.", "Repairs on {s} took a winter."),
    "country": ("{s} is a {e} of lakes.", "Winters in {s} are long."),
}
REMARKS = {
    "person": ("She won several prizes.", "She spoke little.", "She travelled widely."),
    "city": ("A fair is held each spring.", "Its bells are old.", "Trams run until midnight."),
    "company": ("It trains young workers.", "A fire once closed it.", "It makes lamps."),
    "book": ("A film was planned.", "It was translated often.", "Schools like it."),
    "ship": ("It carries mail.", "It survived a storm.", "Its horn is loud."),
    "country": ("It exports timber.", "Its flag shows a bird.", "Its roads are good."),
}
MENTIONS = ("{pronoun} is often confused with {o}.", "An exhibition began with {o}.", "A song tells of {o}.")
PRONOUNS = {kind: "She" if kind == "person" else "It" for kind in KIND_SHARES}

ONSETS, VOWELS = "b br d dr f fl g gr h j k l m n p pr r s st t tr v w z", "a e i o u"
FIRST_NAMES, LAST_NAMES = 192, 64
_FIRST_PARTS = (ONSETS, VOWELS, "l r n m v d rl ln nd s t k", "a o i en ia us ey on")
_LAST_ENDINGS = {
    "person": "er ow ett ell in ole",
    "city": "ford burg mere port ham wick",
    "company": "corp ex tech ium ware line",
    "book": "song tale dream quest lore rune",
    "ship": "wind star gull wave sail mist",
    "country": "ia land stan ora avia una",
}


def invented_words(seed: str, count: int, *parts: str) -> tuple[str, ...]:
    """Pronounceable words, one piece from each part; any two differ in at least two pieces."""
    rng = random.Random(seed)
    chosen: list[tuple[str, ...]] = []
    while len(chosen) < count:
        word = tuple(rng.choice(part.split()) for part in parts)
        if all(sum(a != b for a, b in zip(word, other, strict=True)) > 1 for other in chosen):
            chosen.append(word)
    return tuple("".join(word).capitalize() for word in chosen)


@cache
def first_names() -> tuple[str, ...]:
    """First words of all names."""
    return invented_words("first", FIRST_NAMES, *_FIRST_PARTS)


@cache
def last_names(kind: str) -> tuple[str, ...]:
    """Last words of the names of a kind; their endings tell the kind."""
    parts = (ONSETS, VOWELS, "nn rr mm lt rk nd sk v dd", _LAST_ENDINGS[kind])
    return invented_words(f"last {kind}", LAST_NAMES, *parts)


def name_words() -> tuple[str, ...]:
    """All words that names are made of, without repeats."""
    words = [*first_names(), *(word for kind in KIND_SHARES for word in last_names(kind))]
    return tuple(dict.fromkeys(words))
