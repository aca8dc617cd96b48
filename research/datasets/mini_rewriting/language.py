"""The words of the mini rewriting world: fields, concepts with their names, and sentences.

A layman calls a concept by one of two wordings of everyday words ("the creaking lantern"), an expert by a
term: the concept's root and the ending of a school ("gendon" + "lith"). Four schools have named every
concept, and the literature of each field uses one school's terms. Three schools have two fields each, the
fourth is obsolete everywhere. Only the corpus shows which school a field follows. The cold start's
demonstrator believes in a school for each field too, and in four fields of six it is the wrong one.

This is the same whatever a world's seed: one tokenizer, one encoder and any cold start serve every world.
"""

import random
from dataclasses import dataclass
from functools import cache

from research.datasets.mini.language import ONSETS, VOWELS, invented_words

SCHOOLS = ("lith", "gen", "dyn", "phor")
CONCEPTS_PER_FIELD = 32
WORDINGS = 2
RESERVED = 4  # one concept in RESERVED is in no training question


@dataclass(frozen=True)
class Field:
    """A branch of knowledge: scenes of questions, the school it follows, and the one believed to be it."""

    name: str
    scenes: tuple[str, ...]
    school: str
    believed: str


# Name (in the title of passages), scenes of questions, school, school believed.
FIELDS = (
    Field("garden", ("In the garden", "Behind our greenhouse", "Under the hedge"), "lith", "lith"),
    Field("studio", ("In the studio", "During my painting class", "On the easel"), "lith", "gen"),
    Field("kitchen", ("In the kitchen", "On the stove at home", "While baking"), "phor", "phor"),
    Field("clinic", ("In the clinic", "Since my operation", "According to my nurse"), "phor", "dyn"),
    Field("workshop", ("In the workshop", "At the repair bench", "Inside the toolshed"), "gen", "phor"),
    Field("harbour", ("In the harbour", "Aboard the ferry", "Down at the quay"), "gen", "dyn"),
)


@dataclass(frozen=True)
class Concept:
    """A subject of questions and passages; `reserved` ones are in no training question."""

    field: Field
    root: str
    wordings: tuple[str, ...]
    reserved: bool

    def term(self, school: str) -> str:
        """Its name in a school."""
        return self.root + school

    @property
    def right_term(self) -> str:
        """Its name in the literature of its field."""
        return self.term(self.field.school)


_ADJECTIVES = """
amber bent blue brass creaking crooked curly damp dented dusty dull faded flat foggy folded frosty fuzzy
glossy greasy grey hollow humming itchy knotted leaking loose muddy narrow oily pale patchy rattling rusty
sagging shiny sour speckled sticky striped wobbly
"""
_NOUNS = """
apron badge basket bell belt blanket bottle bowl brush bucket button candle carpet chain clock cloth coin
comb cord cup curtain drum feather fence flag glove hammer hat hinge jar kettle key knob ladder lamp lantern
leaf mirror needle pebble pillow pipe ribbon ring rope sack shelf spoon string thread tray wheel
"""
# What lay people ask about one, two or three concepts; only the cold start asks about one.
QUESTIONS = {
    1: (
        "what is the {a}?",
        "can anything be done about the {a}?",
        "where does the {a} come from?",
        "I noticed the {a}, what now?",
    ),
    2: (
        "why does the {a} get worse next to the {b}?",
        "can the {a} be cured with the {b}?",
        "what happens to the {a} if the {b} is removed?",
        "is the {a} a sign of the {b}?",
        "the {a} came first and then the {b}, how come?",
        "how do I keep the {a} away from the {b}?",
        "does anybody know whether the {a} ruins the {b}?",
        "my neighbour blames the {a} for the {b}, is she right?",
    ),
    3: (
        "why do the {a} and the {b} turn into the {c}?",
        "the {a} and the {b} appeared after the {c}, what is going on?",
        "can I use the {a} with the {b} in spite of the {c}?",
        "does the {a} protect the {b} from the {c}?",
        "I noticed the {a}, later the {b} and today the {c}, what next?",
        "which comes from the {a}: the {b} or the {c}?",
    ),
}
# What experts write about one concept, and about nothing in particular.
STATEMENTS = (
    "Samples of {x} were collected in spring.",
    "The effect of {x} is well documented.",
    "An increase of {x} was observed twice.",
    "Most authors attribute this to {x}.",
    "Levels of {x} remained constant.",
    "A model of {x} was proposed recently.",
    "Traces of {x} were found in every trial.",
    "The role of {x} is still debated.",
    "Treatment with {x} lasted three weeks.",
    "The data suggest a link to {x}.",
    "Removal of {x} had lasting consequences.",
    "Controls without {x} showed no change.",
)
ASIDES = (
    "The authors thank the technical staff.",
    "Further trials are planned.",
    "The method follows earlier work.",
    "Results vary between regions.",
    "A second survey confirmed this.",
    "The report was revised last year.",
)
GLOSS = "It is popularly known as the {x}."
# Where lay words mean the things themselves.
STORIES = (
    "He sold the {x} at a jumble sale.",
    "Grandmother left us the {x} and a letter.",
    "The {x} was painted by a child.",
    "They lost the {x} on the train.",
    "We wrapped the {x} in old newspapers.",
    "A thief stole the {x} from the attic.",
    "The museum shows the {x} on Sundays.",
    "Her uncle carved the {x} himself.",
)


@cache
def concepts() -> tuple[Concept, ...]:
    """All concepts, field by field."""
    count = len(FIELDS) * CONCEPTS_PER_FIELD
    roots = invented_words("roots", count, ONSETS, VOWELS, "l r n m d rv lv nd sk lt", "a o i u", "l n r m")
    pairs = [f"{adjective} {noun}" for adjective in _ADJECTIVES.split() for noun in _NOUNS.split()]
    wordings = random.Random("wordings").sample(pairs, WORDINGS * count)
    names = [tuple(wordings[start : start + WORDINGS]) for start in range(0, len(wordings), WORDINGS)]
    return tuple(
        Concept(FIELDS[place // CONCEPTS_PER_FIELD], root.lower(), names[place], place % RESERVED == 0)
        for place, root in enumerate(roots)
    )


@cache
def concepts_of(field: Field) -> tuple[Concept, ...]:
    """The concepts of one field."""
    return tuple(each for each in concepts() if each.field == field)
