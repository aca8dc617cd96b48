"""Compiled encoders: on a CPU, OpenVINO computes the same as torch, two to four times as fast.

sentence-transformers has a backend of this name, which is as fast; but the package it needs, optimum-intel,
refuses the releases of transformers that vLLM requires. So torch's own model is converted here, and replaced
only if the converted one gives the same vectors.
"""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any

import numpy as np

from retriever_server.errors import RetrieverError, first_line

if TYPE_CHECKING:
    import torch
    from sentence_transformers import SentenceTransformer

MOST_STREAMS = 4
LENGTHS = 4  # tokens of a padded text are a multiple of this
CROWD = 8  # texts from which a pass is one of several at once; fewer get all threads
MOST_DISTANT = 1e-3  # between torch's vector and OpenVINO's: 1 - cosine
PRECISIONS = {"float32": "f32", "bfloat16": "bf16", "float16": "f16"}
# Of other counts and lengths than the conversion saw: shapes must not be built in.
EXAMPLES = ["who wrote it", "where does the river that flows through the old town end"]
CHECKS = [*EXAMPLES, "a", "The city lies on the river. " * 12, "Ünïcode, 北京; and some (odd) signs!"]


def compile_model(model: "SentenceTransformer", dtype: str) -> None:
    """Let OpenVINO compute the transformer of `model`, which is on the CPU and in float32, in `dtype`.

    Raises RetrieverError when the model has no such transformer, cannot be converted, or would give other
    vectors: more than MOST_DISTANT from torch's.
    """
    transformer = getattr(model[0], "auto_model", None)
    if transformer is None or model.device.type != "cpu":
        raise RetrieverError("OpenVINO computes transformers on the CPU, and this encoder is not one")
    expected = model.encode(CHECKS, normalize_embeddings=True)
    forward_of_torch = transformer.forward
    try:
        transformer.forward = _compiled_forward(model, transformer, dtype)
        vectors = model.encode(CHECKS, normalize_embeddings=True)
    except (RuntimeError, ValueError, TypeError, KeyError, AttributeError) as error:
        transformer.forward = forward_of_torch
        raise RetrieverError(f"OpenVINO cannot compute the encoder: {first_line(error)}") from error
    distance = 1 - float((expected * vectors).sum(axis=1).min())
    if not distance <= MOST_DISTANT:
        transformer.forward = forward_of_torch
        raise RetrieverError(f"OpenVINO's vectors are {distance:.4f} from torch's, more than {MOST_DISTANT}")


def can_compile(model: "SentenceTransformer") -> bool:
    """Whether OpenVINO is installed and the model is a transformer on the CPU."""
    from importlib.util import find_spec

    on_cpu = model.device.type == "cpu"
    return on_cpu and find_spec("openvino") is not None and hasattr(model[0], "auto_model")


def passes_at_once() -> int:
    """The number of passes to compute in parallel.

    Threads that share a pass wait for each other at each layer, longer if other processes use the cores too.
    """
    import torch

    return min(torch.get_num_threads(), MOST_STREAMS)


def _compiled_forward(model: "SentenceTransformer", transformer: Any, dtype: str) -> Any:
    """The replacement of `transformer.forward`."""
    import torch
    from transformers.modeling_outputs import BaseModelOutput

    example = model.preprocess(EXAMPLES)
    names = [name for name in example if isinstance(example[name], torch.Tensor)]
    converted = _convert(transformer, {name: example[name] for name in names})
    # Compiled twice: a crowd is computed by several passes at once (see passes_at_once), a few texts by one.
    crowd = _Passes(converted, dtype, names, passes_at_once())
    alone = _Passes(converted, dtype, names, 1)

    def forward(**features: Any) -> BaseModelOutput:
        texts, length = features[names[0]].shape
        # Padded so that shapes repeat: OpenVINO prepares each one when it first sees it.
        padding = (0, -length % LENGTHS)
        padded = {name: torch.nn.functional.pad(features[name], padding) for name in names}
        states: Any = torch.from_numpy((alone if texts < CROWD else crowd).compute(padded))
        return BaseModelOutput(last_hidden_state=states[:, :length])

    return forward


class _Passes:
    """The model compiled for `streams` passes at once, which share all threads."""

    def __init__(self, converted: Any, dtype: str, names: list[str], streams: int) -> None:
        import openvino
        import torch

        settings = {
            "INFERENCE_PRECISION_HINT": PRECISIONS[dtype],
            "INFERENCE_NUM_THREADS": torch.get_num_threads(),
            "NUM_STREAMS": streams,
            "ENABLE_CPU_PINNING": False,  # other processes use the cores too
            "SNIPPETS_MODE": "DISABLE",  # attention by its own kernels takes a fifth less time
        }
        compiled = openvino.Core().compile_model(converted, "CPU", settings)
        self._names = names
        self._free: SimpleQueue[Any] = SimpleQueue()
        for _ in range(streams):
            self._free.put(compiled.create_infer_request())

    def compute(self, features: "dict[str, torch.Tensor]") -> np.ndarray:
        """The last hidden states, float32 [texts, tokens, dimension]."""
        request = self._free.get()
        try:
            outputs = request.infer([features[name].numpy() for name in self._names])
            return outputs[0].copy()  # the next pass writes into the same memory
        finally:
            self._free.put(request)


def _convert(transformer: Any, example: "dict[str, torch.Tensor]") -> Any:
    import openvino
    import torch

    class Traced(torch.nn.Module):
        """The transformer with positional inputs, and the last hidden states as its only output."""

        def __init__(self) -> None:
            super().__init__()
            self.transformer = transformer

        def forward(self, *tensors: torch.Tensor) -> torch.Tensor:
            named = dict(zip(example, tensors, strict=True))
            return self.transformer(**named, return_dict=True).last_hidden_state

    with torch.no_grad(), _silence():
        return openvino.convert_model(Traced().eval(), example_input=tuple(example.values()))


@contextmanager
def _silence() -> Iterator[None]:
    """Suppress the warnings of tracing: checks with other shapes cover what they warn about."""
    from transformers.utils import logging

    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.set_verbosity(verbosity)
