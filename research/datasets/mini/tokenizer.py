"""The mini policy's tokenizer: byte-level BPE in Qwen2's form, trained on text of the generated world.

The protocol's tags are single tokens and deliberately not special, so that decoding keeps them. The world's
fixed phrases (" was founded by", " the founder of") are single tokens too, which makes passages a third
shorter; a name is two tokens, one a word. Inspect it with:

    python -m research.datasets.mini.tokenizer "Who is the founder of Nalnia Wuskcorp?"

It is a Qwen2Tokenizer because transformers 5 loads every Qwen2 folder with that class, whatever the folder
says: any other pre-tokenisation would be lost. Like all of that class it normalises text to Unicode's NFC.
"""

import re
from collections.abc import Iterable, Sequence
from itertools import chain, islice

import click
from tokenizers import AddedToken
from transformers import Qwen2Tokenizer

from research.datasets.mini import language
from research.datasets.mini.demonstrations import NO_IDEA, RESEARCH, demonstrations
from research.episode.protocol import Protocol, closing, opening

PAD, START, END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
TAGS = tuple(tag for name in RESEARCH.names for tag in (opening(name), closing(name)))
BOX = "\\boxed{"
VOCABULARY = 400  # before tags, phrases and names
LONGEST = 2048  # tokens: the policy's number of positions

_TEMPLATE = (
    "{% for message in messages %}"
    "<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def phrases() -> list[str]:
    """Fixed word groups of passages, questions and thoughts, with their leading blank, longest first."""
    groups = ["not there", NO_IDEA, "Who is", "What is"]
    for relation in language.RELATIONS:
        # One token per way to ask and to state a relation: following a plan then is copying, and putting it
        # into a passage's words is a look-up.
        groups += [f"the {phrase}" for phrase in relation.question_phrases] + list(relation.passage_phrases)
    texts = (*(text for two in language.OPENINGS.values() for text in two), *language.MENTIONS)
    groups += [part.strip() for text in texts for part in re.split(r"\{\w+\}|\.", text)]
    groups += [remark.rstrip(".") for remarks in language.REMARKS.values() for remark in remarks]
    tokens = {", then", *(f" {group}" for group in groups if " " in group)}
    # At the beginning of a text there is no blank.
    tokens |= {
        text.partition(" {s}")[0] for two in language.OPENINGS.values() for text in two if text[0] != "{"
    }
    for epithet in (epithet for epithets in language.EPITHETS.values() for epithet in epithets):
        tokens |= {f" the {epithet}", f" ({epithet})", f" {epithet}"}
    return sorted(tokens, key=lambda group: (-len(group), group))


def train_tokenizer(protocol: Protocol = RESEARCH) -> Qwen2Tokenizer:
    """The same tokenizer at every call: no seed is involved, so token ids are stable between runs."""
    # Words of names have a leading blank; those that begin a title are there without it too.
    names = [*(f" {word}" for word in language.name_words()), *language.first_names()]
    shown = islice(demonstrations(seed=0, hops=(1, 2, 3, 4), protocol=protocol), 1000)
    tags = [tag for name in protocol.names for tag in (opening(name), closing(name))]
    parts = (
        (f"user\n{each.question}", "assistant\n", *(text for text, _ in each.segments)) for each in shown
    )
    return tokenizer_of(chain.from_iterable(parts), [*tags, BOX, *phrases(), *names])


def tokenizer_of(texts: Iterable[str], added: Sequence[str]) -> Qwen2Tokenizer:
    """A tokenizer with each of `added` as one token and BPE learnt from the rest of `texts`."""
    settled = re.compile("|".join(map(re.escape, added)))
    rest = (part for text in texts for part in settled.split(text))
    blank = Qwen2Tokenizer(unk_token=PAD, pad_token=PAD, eos_token=END, additional_special_tokens=[START])
    tokenizer = blank.train_new_from_iterator(rest, VOCABULARY, show_progress=False)
    tokenizer.add_tokens([AddedToken(text, special=False, normalized=False) for text in added])
    tokenizer.chat_template = _TEMPLATE
    tokenizer.model_max_length = LONGEST
    tokenizer.padding_side = "left"
    return tokenizer


@click.command()
@click.argument("text")
def main(text: str) -> None:
    """Show the tokens of TEXT.

    Example: python -m research.datasets.mini.tokenizer "Who is the founder of Nalnia Wuskcorp?"
    """
    tokenizer = train_tokenizer()
    tokens = [tokenizer.decode([token]) for token in tokenizer.encode(text, add_special_tokens=False)]
    click.echo(f"{len(tokens)} tokens of {len(tokenizer)}: {tokens}")


if __name__ == "__main__":
    main()
