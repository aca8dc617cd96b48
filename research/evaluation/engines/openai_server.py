"""Any OpenAI-compatible server. One that takes token ids and gives them back, as `vllm serve` does, samples
just as vLLM in this process would; with another one, text is tokenized again between the turns, which is
said.
"""

import sys
from functools import cached_property
from typing import TYPE_CHECKING, Any

from research.evaluation.config import EngineConfig, EvaluationError, Sampling
from research.evaluation.engines import EngineError, Stops, room_for
from research.model_server import ModelServer, ServerError
from research.token_protocol import beginning, end_token_ids
from research.trajectory import well_formed

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

UNKNOWN_LENGTH = 8192


class OpenAIServer:
    """See `Engine`."""

    def __init__(
        self,
        server: ModelServer,
        model: str,
        tokenizer: "PreTrainedTokenizerBase",
        max_model_len: int,
        sampling: Sampling,
    ) -> None:
        self.tokenizer, self.max_model_len = tokenizer, max_model_len
        self._server, self._model, self._sampling = server, model, sampling
        self._by_ids = True

    @classmethod
    async def connect(cls, config: EngineConfig, sampling: Sampling) -> "OpenAIServer":
        """Ask the server what it serves, and whether it takes token ids. Raises EvaluationError."""
        server = ModelServer(config.model, config.api_key_variable, config.timeout, config.deadline)
        try:
            served = _choose((await server.call("/models"))["data"], config.served_name, server.url)
            tokenizer = _load_tokenizer(config.tokenizer or served.get("root") or served["id"])
            length = config.max_model_len or served.get("max_model_len") or UNKNOWN_LENGTH
            engine = cls(server, served["id"], tokenizer, length, sampling)
            await engine._find_out()
        except (ServerError, KeyError, TypeError) as error:
            await server.close()
            raise EvaluationError(f"no OpenAI-compatible server at {config.model}: {error}") from error
        except BaseException:
            await server.close()
            raise
        return engine

    async def generate(self, token_ids: list[int], max_tokens: int, stops: Stops, seed: int) -> list[int]:
        """See `Engine`."""
        room = room_for(self.max_model_len, len(token_ids), max_tokens)
        try:
            choice = await self._complete(token_ids, room, stops, seed)
        except ServerError as error:
            raise EngineError(str(error)) from error
        if self._by_ids:
            return list(choice["token_ids"])
        return self._sampled(choice, stops)

    def _sampled(self, choice: dict[str, Any], stops: Stops) -> list[int]:
        """The tokens of a text, with what it ended at: such servers keep that to themselves."""
        text = well_formed(str(choice["text"]))
        stopped = choice.get("finish_reason") == "stop"
        open_tags = [tag for tag in stops.strings if text.rfind(tag.replace("</", "<")) > text.rfind(tag)]
        token_ids: list[int] = self.tokenizer.encode(
            text + (open_tags[0] if stopped and open_tags else ""), add_special_tokens=False
        )
        at_eos = (stopped and not open_tags) or not token_ids
        return token_ids + (self._end if at_eos else [])

    @cached_property
    def _end(self) -> list[int]:
        return sorted(end_token_ids(self.tokenizer))[:1]

    async def close(self) -> None:
        """See `Engine`."""
        await self._server.close()

    async def _find_out(self) -> None:
        start = self.tokenizer.encode("The", add_special_tokens=False)
        try:
            self._by_ids = "token_ids" in await self._complete(start, 1, Stops(()), 0)
        except ServerError:
            self._by_ids = False
        if not self._by_ids:
            await self._complete(start, 1, Stops(()), 0)
            print(
                f"WARNING: {self._server.url} takes no token ids: what was sampled is tokenized again each "
                "turn, and tags must be text. Results differ a little from those of `vllm serve`.",
                file=sys.stderr,
            )

    async def _complete(self, token_ids: list[int], room: int, stops: Stops, seed: int) -> dict[str, Any]:
        body: dict[str, Any] = {
            "model": self._model,
            "prompt": token_ids,
            "max_tokens": room,
            "temperature": self._sampling.temperature,
            "top_p": self._sampling.top_p,
            "seed": seed,
            "stop": list(stops.strings) or None,
        }
        # Not of OpenAI's own protocol: sent only where they do something.
        if self._sampling.top_k:
            body["top_k"] = self._sampling.top_k
        if self._sampling.repetition_penalty != 1:
            body["repetition_penalty"] = self._sampling.repetition_penalty
        if self._by_ids:
            body |= {
                "stop_token_ids": list(stops.token_ids),
                "include_stop_str_in_output": True,
                "skip_special_tokens": False,
                "return_token_ids": True,
            }
        else:
            # The server tokenizes as the tokenizer does, and so begins with BOS itself.
            begun = beginning(self.tokenizer)
            bare = token_ids[len(begun) :] if token_ids[: len(begun)] == begun else token_ids
            body["prompt"] = self.tokenizer.decode(bare, skip_special_tokens=False)
        answer = await self._server.call("/completions", body)
        try:
            choice: dict[str, Any] = answer["choices"][0]
            return choice
        except (KeyError, IndexError, TypeError) as error:
            raise ServerError(f"{self._server.url}/completions: not a completion: {error!r}") from error


def _choose(models: list[dict[str, Any]], name: str | None, url: str) -> dict[str, Any]:
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
