"""The engine of a configuration: a server, or vLLM in this process."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from research.evaluation.config import EngineConfig, Sampling
from research.evaluation.engines import Engine


@asynccontextmanager
async def opened(config: EngineConfig, sampling: Sampling) -> AsyncIterator[Engine]:
    """The engine of the configuration, closed at the end."""
    engine: Engine
    if config.is_url:
        from research.evaluation.engines.openai_server import OpenAIServer

        engine = await OpenAIServer.connect(config, sampling)
    else:
        from research.evaluation.engines.vllm_engine import VllmEngine  # takes seconds to import

        engine = await VllmEngine.start(config, sampling)
    try:
        yield engine
    finally:
        await engine.close()
