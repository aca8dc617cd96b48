"""vLLM in this process, on GPUs or by its CPU build: token ids in, token ids out."""

import itertools
import os
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from research.evaluation.config import EngineConfig, EvaluationError, Sampling
from research.evaluation.engines import EngineError, Stops, room_for

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase
    from vllm.v1.engine.async_llm import AsyncLLM

# On a CPU, as in training (research/config/hardware/cpu.yaml): one process, small cache blocks, and one core
# left for what feeds the engine; docs/cpu.md has the measurements. Chunked prefill kills a sampling engine.
CPU_ARGUMENTS = {
    "enforce_eager": True,
    "distributed_executor_backend": "uni",
    "block_size": 32,
    "enable_chunked_prefill": False,
}
CPU_VARIABLES = {
    "VLLM_CPU_KVCACHE_SPACE": "2",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "TOKENIZERS_PARALLELISM": "false",
    "OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) - 1)),
    "OMP_WAIT_POLICY": "PASSIVE",
    "GOMP_SPINCOUNT": "20000",
}


class VllmEngine:
    """See `Engine`."""

    def __init__(self, engine: "AsyncLLM", tokenizer: "PreTrainedTokenizerBase", sampling: Sampling) -> None:
        self.tokenizer = tokenizer
        self.max_model_len: int = engine.model_config.max_model_len
        self._engine, self._sampling = engine, sampling
        self._numbers = itertools.count()

    @classmethod
    async def start(cls, config: EngineConfig, sampling: Sampling) -> "VllmEngine":
        """Load the model. Raises EvaluationError if vLLM cannot."""
        import torch
        from transformers import AutoTokenizer

        os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")  # its progress bars of loading stay
        on_cpu = not torch.cuda.is_available()
        if on_cpu:
            for name, value in CPU_VARIABLES.items():
                os.environ.setdefault(name, value)  # vLLM reads them when it is imported
        from vllm.engine.arg_utils import AsyncEngineArgs
        from vllm.v1.engine.async_llm import AsyncLLM

        arguments: dict[str, Any] = CPU_ARGUMENTS if on_cpu else {}
        try:
            keep = on_cpu and config.dtype == "auto" and _is_float32(config.model)
            engine = AsyncLLM.from_engine_args(
                AsyncEngineArgs(
                    model=config.model,
                    tokenizer=config.tokenizer,
                    dtype="float32" if keep else config.dtype,
                    max_model_len=config.max_model_len,
                    tensor_parallel_size=config.tensor_parallel_size,
                    gpu_memory_utilization=config.gpu_memory_utilization,
                    seed=sampling.seed,
                    disable_log_stats=True,
                    enable_log_requests=False,
                    **arguments,
                )
            )
            tokenizer = AutoTokenizer.from_pretrained(config.tokenizer or config.model)
            tokenizer.name_or_path = config.model  # whose files name its end tokens
        except (ValueError, OSError, RuntimeError) as error:
            raise EvaluationError(f"vLLM cannot load {config.model}: {_first_line(error)}") from error
        return cls(engine, tokenizer, sampling)

    async def generate(self, token_ids: list[int], max_tokens: int, stops: Stops, seed: int) -> list[int]:
        """See `Engine`. A cancelled call leaves the engine's batch."""
        from vllm.sampling_params import RequestOutputKind, SamplingParams
        from vllm.v1.engine.exceptions import EngineDeadError, EngineGenerateError

        seeded = {"seed": None if self._sampling.temperature == 0 else seed}
        parameters = SamplingParams(
            **(asdict(self._sampling) | seeded),
            max_tokens=room_for(self.max_model_len, len(token_ids), max_tokens),
            stop_token_ids=list(stops.token_ids),
            stop=list(stops.strings),
            include_stop_str_in_output=True,
            skip_special_tokens=False,
            detokenize=bool(stops.strings),
            output_kind=RequestOutputKind.FINAL_ONLY,
        )
        name, sampled = f"question-{next(self._numbers)}", []
        try:
            async for output in self._engine.generate({"prompt_token_ids": token_ids}, parameters, name):
                sampled = list(output.outputs[0].token_ids)
        except EngineDeadError as error:
            raise EvaluationError(f"vLLM has died: {_first_line(error)}") from error
        except EngineGenerateError as error:
            raise EngineError(f"vLLM: {_first_line(error)}") from error
        return sampled

    async def close(self) -> None:
        """See `Engine`."""
        self._engine.shutdown()
        # Its __del__ would do so again when the interpreter ends, and print a traceback.
        self._engine.shutdown = lambda *_, **__: None


def _is_float32(model: str) -> bool:
    """Whether to keep float32: vLLM would take bfloat16, which moves log-probs and is slow on many CPUs."""
    import torch
    from transformers import AutoConfig

    return bool(AutoConfig.from_pretrained(model).dtype == torch.float32)


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)
