"""The mini policy's tokenizer: byte-level BPE in Qwen2's form, trained on text of the generated world.

The protocol's tags are single tokens and deliberately not special, so that decoding keeps them. The world's
fixed phrases (" was founded by", " the founder of") are single tokens too, which makes passages a third
shorter; a name is two tokens, one a word. Inspect it with:

    python -m data.mini_tokenizer "Who is the founder of Flora Jarrow?"

It is a Qwen2Tokenizer because transformers 5 loads every Qwen2 folder with that class, whatever the folder
says: any other pre-tokenisation would be lost. Like all of its class it normalises text to Unicode's NFC.
"""

import re
from collections.abc import Iterator
from itertools import islice

import click
from tokenizers import AddedToken
from transformers import Qwen2Tokenizer

from data.mini_demonstrations import demonstrations
from data.mini_world import FIRST_WORDS, INTRODUCTIONS, LAST_WORDS, RELATIONS
from research.protocol import Protocol, closing, opening

PAD, START, END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
TAGS = tuple(tag for name in Protocol().names for tag in (opening(name), closing(name)))
BOX = "\\boxed{"
VOCABULARY = 2048  # before tags and phrases; an upper bound, since training stops when no pair comes twice
LONGEST = 2048  # tokens: the policy's number of positions

_TEMPLATE = (
    "{% for message in messages %}"
    "<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def phrases() -> list[str]:
    """Fixed word groups of passages, questions and thoughts, with their leading blank, longest first."""
    templates = [text for texts in INTRODUCTIONS.values() for text in texts]
    for relation in RELATIONS:
        # One token for a relation in question, plan, thought and query: then following it is mere copying.
        templates += [*relation.sentences, f" the {relation.paraphrase}", f" the {relation.name}"]
    parts = {part for template in templates for part in re.split(r"\{.\}|\.", " " + template.lstrip())}
    return sorted(
        (part.rstrip() for part in parts if " " in part.strip()), key=lambda part: (-len(part), part)
    )


def train_tokenizer() -> Qwen2Tokenizer:
    """The tokenizer, the same at every call: no user's seed enters, so token ids are stable between runs."""
    blank = Qwen2Tokenizer(unk_token=PAD, pad_token=PAD, eos_token=END, additional_special_tokens=[START])
    tokenizer = blank.train_new_from_iterator(_texts(), VOCABULARY, show_progress=False)
    added = [*TAGS, BOX, *phrases()]
    tokenizer.add_tokens([AddedToken(text, special=False, normalized=False) for text in added])
    tokenizer.chat_template = _TEMPLATE
    tokenizer.model_max_length = LONGEST
    tokenizer.padding_side = "left"
    return tokenizer


def _texts() -> Iterator[str]:
    """What BPE has to learn: the names, and whatever of the demonstrations is neither tag nor phrase."""
    for _ in range(
        20
    ):  # often enough that the rarest name word becomes one token, with and without its blank
        yield from (word + "\n" for word in FIRST_WORDS)
        yield from (f" {word}" for word in FIRST_WORDS + LAST_WORDS)
    settled = re.compile("|".join(re.escape(text) for text in (*TAGS, BOX, *phrases())))
    for demonstration in islice(demonstrations(seed=0, hops=(1, 2, 3, 4)), 1000):
        for text in (
            f"user\n{demonstration.question}",
            "assistant\n",
            *(s for s, _ in demonstration.segments),
        ):
            yield from settled.split(text)


@click.command()
@click.argument("text")
def main(text: str) -> None:
    """Show the tokens of TEXT.

    Example: python -m data.mini_tokenizer "Who is the founder of Flora Jarrow?"
    """
    tokenizer = train_tokenizer()
    tokens = [tokenizer.decode([token]) for token in tokenizer.encode(text, add_special_tokens=False)]
    click.echo(f"{len(tokens)} tokens of {len(tokenizer)}: {tokens}")


if __name__ == "__main__":
    main()
