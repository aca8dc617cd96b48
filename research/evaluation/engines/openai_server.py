"""Any OpenAI-compatible server.

One that takes and returns token ids, as `vllm serve` does, samples just as vLLM in this process would. With
one that offers only texts or chats, text is tokenized again between the turns, and a warning says so.
"""

import reprlib
import sys
from collections.abc import Mapping
from dataclasses import asdict
from functools import cached_property
from typing import TYPE_CHECKING, Any

from research.episode.tokens import beginning, end_token_ids
from research.episode.trajectory import well_formed
from research.evaluation.config import EngineConfig, EvaluationError, Sampling
from research.evaluation.engines import EngineError, Stops, room_for
from research.evaluation.engines.chat import WAYS, chat_body, chat_choice, mark_messages, unmarked
from research.model_server import ModelServer, ServerError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

UNKNOWN_LENGTH = 8192
UNKNOWN_NAME = "default"
PROBE_S = 20.0  # for retries of a call that probes what the server offers
IDS, TEXT = "ids", "text"
NOT_THERE = {400, 404, 405, 501}  # /models, of servers of one model
# Failures that have nothing to do with the kind of call.
OF_ANY_KIND = {None, 401, 403, 429, 503}


class OpenAIServer:
    """See `Engine`."""

    def __init__(
        self,
        server: ModelServer,
        model: str,
        tokenizer: "PreTrainedTokenizerBase",
        max_model_len: int,
        sampling: Sampling,
        template_options: Mapping[str, Any] | None = None,
    ) -> None:
        self.tokenizer, self.max_model_len = tokenizer, max_model_len
        self._server, self._model, self._sampling = server, model, sampling
        self._way, self._options = IDS, dict(template_options or {})

    @classmethod
    async def connect(
        cls, config: EngineConfig, sampling: Sampling, template_options: Mapping[str, Any] | None = None
    ) -> "OpenAIServer":
        """Ask the server what it serves, and what kind of calls it takes. Raises EvaluationError.

        `template_options` go to a server that applies the chat template itself.
        """
        server = ModelServer(config.model, config.api_key_variable, config.timeout, config.deadline)
        try:
            served = _choose(await _models(server), config.served_name, server.url)
            tokenizer = _load_tokenizer(config.tokenizer or served.get("root") or served["id"])
            length = served.get("max_model_len")
            known = length if isinstance(length, int) and length > 0 else UNKNOWN_LENGTH
            engine = cls(
                server, served["id"], tokenizer, config.max_model_len or known, sampling, template_options
            )
            await engine._probe()
        except BaseException as error:
            await server.close()
            if isinstance(error, ServerError):
                raise EvaluationError(f"no OpenAI-compatible server at {config.model}: {error}") from error
            raise
        return engine

    async def generate(self, token_ids: list[int], max_tokens: int, stops: Stops, seed: int) -> list[int]:
        """See `Engine`. Raises EvaluationError if nobody listens any more."""
        room = room_for(self.max_model_len, len(token_ids), max_tokens)
        try:
            choice = await self._complete(token_ids, room, stops, seed)
        except ServerError as error:
            if error.lasting:
                raise EvaluationError(f"the model's server has gone: {error}") from error
            raise EngineError(str(error)) from error
        return choice["token_ids"] if self._way == IDS else self._sampled(choice, stops)

    def _sampled(self, choice: dict[str, Any], stops: Stops) -> list[int]:
        """The tokens of a text, including the stop at which it ended, which such servers leave out."""
        text = well_formed(unmarked(choice["text"]))
        stopped = choice.get("finish_reason") == "stop"
        tags = self._stop_strings(stops)
        open_tags = [tag for tag in tags if text.rfind(tag.replace("</", "<")) > text.rfind(tag)]
        token_ids: list[int] = self.tokenizer.encode(
            text + (open_tags[0] if stopped and open_tags else ""), add_special_tokens=False
        )
        at_eos = (stopped and not open_tags) or not token_ids
        return token_ids + (self._end if at_eos else [])

    @cached_property
    def _end(self) -> list[int]:
        return sorted(end_token_ids(self.tokenizer))[:1]

    def _stop_strings(self, stops: Stops) -> list[str]:
        """Where a server of texts must stop: also at closing tags that are single tokens here."""
        texts = [self.tokenizer.decode([token_id]) for token_id in stops.token_ids]
        return [*stops.strings, *(text for text in texts if text.startswith("</"))]

    async def close(self) -> None:
        """See `Engine`."""
        await self._server.close()

    async def _probe(self) -> None:
        """Set the kind of calls by trying them, the best first. Raises ServerError if none is accepted."""
        refusals = dict[str, None]()
        for way in (IDS, TEXT, *WAYS):
            self._way = way
            if way == next(iter(WAYS)):
                mark_messages(self.tokenizer, self._options)
            try:
                await self._complete(self._greeting(), 1, Stops(()), 0, PROBE_S)
                break
            except ServerError as error:
                if error.status in OF_ANY_KIND:
                    raise
                refusals[str(error)] = None
        else:
            raise ServerError("; ".join(refusals))
        if self._way != IDS:
            offers = "chat completions alone" if self._way in WAYS else "no token ids"
            how = f"; {WAYS[self._way]}" if self._way in WAYS else ""
            print(
                f"WARNING: {self._server.url} offers {offers}: what was sampled is tokenized again each "
                f"turn, and tags must be text{how}. Results differ a little from those of `vllm serve`.",
                file=sys.stderr,
            )

    def _greeting(self) -> list[int]:
        text = "<|message:user|>Hello<|message:assistant|>The" if self._way in WAYS else "The"
        return list(self.tokenizer.encode(text, add_special_tokens=False))

    async def _complete(
        self, token_ids: list[int], room: int, stops: Stops, seed: int, deadline: float | None = None
    ) -> dict[str, Any]:
        """A choice with the `token_ids` or the `text` that was sampled."""
        path = "/chat/completions" if self._way in WAYS else "/completions"
        body = self._sampling_keys(room, seed) | self._prompt_keys(token_ids, stops)
        answer = await self._server.call(path, body, deadline)
        try:
            choice: dict[str, Any] = answer["choices"][0]
            choice = chat_choice(choice) if self._way in WAYS else choice
            sampled = choice["token_ids" if self._way == IDS else "text"]
            if not isinstance(sampled, list if self._way == IDS else str):
                raise TypeError(f"{sampled!r:.80} was sampled")
            return choice
        except (KeyError, IndexError, TypeError, AttributeError) as error:
            raise ServerError(f"{self._server.url}{path}: not a completion: {error!r}", 200) from error

    def _sampling_keys(self, room: int, seed: int) -> dict[str, Any]:
        # What is not in OpenAI's own protocol is sent only if it has an effect.
        idle = {("top_k", 0), ("repetition_penalty", 1)}
        sampling = {
            name: value for name, value in asdict(self._sampling).items() if (name, value) not in idle
        }
        return {"model": self._model, "max_tokens": room, **sampling, "seed": seed}

    def _prompt_keys(self, token_ids: list[int], stops: Stops) -> dict[str, Any]:
        if self._way == IDS:
            return {
                "prompt": token_ids,
                "stop": list(stops.strings) or None,
                "stop_token_ids": list(stops.token_ids),
                "include_stop_str_in_output": True,
                "skip_special_tokens": False,
                "return_token_ids": True,
            }
        # A server of texts tokenizes as the tokenizer does, and so begins with BOS itself.
        begun = beginning(self.tokenizer)
        bare = token_ids[len(begun) :] if token_ids[: len(begun)] == begun else token_ids
        text = self.tokenizer.decode(bare, skip_special_tokens=False, clean_up_tokenization_spaces=False)
        strings = {"stop": self._stop_strings(stops) or None}
        if self._way not in WAYS:
            return strings | {"prompt": text}
        options = {"chat_template_kwargs": self._options} if self._options else {}
        return strings | options | chat_body(text, self._way)


async def _models(server: ModelServer) -> list[dict[str, Any]]:
    """The models that the server lists, empty if it has no list. Raises ServerError."""
    try:
        answer = await server.call("/models")
    except ServerError as error:
        if error.status not in NOT_THERE:
            raise
        return []
    listed = answer.get("data") if isinstance(answer, dict) else None
    if not isinstance(listed, list) or not all(isinstance(each, dict) and "id" in each for each in listed):
        raise ServerError(f"{server.url}/models: not a list of models: {reprlib.repr(answer)}", 200)
    return listed


def _choose(models: list[dict[str, Any]], name: str | None, url: str) -> dict[str, Any]:
    if not models:
        if name is None:
            print(
                f"WARNING: {url} lists no models, so {UNKNOWN_NAME!r} is asked for: name another one with "
                "engine.served_name=NAME",
                file=sys.stderr,
            )
        return {"id": name or UNKNOWN_NAME}
    names = [str(model["id"]) for model in models]
    if name is None and len(models) == 1:
        return models[0]
    if name not in names:
        raise EvaluationError(f"{url} serves {', '.join(names)}: choose one with engine.served_name=NAME")
    return models[names.index(name)]


def _load_tokenizer(name: str) -> "PreTrainedTokenizerBase":
    from transformers import AutoTokenizer

    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(name)
        return tokenizer
    except (OSError, ValueError) as error:
        raise EvaluationError(
            f"no tokenizer at {name}: name the model's with engine.tokenizer=NAME_OR_DIR"
        ) from error
