"""The engine of a configuration: a server, or vLLM in this process."""

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

from research.evaluation.config import EngineConfig, Sampling
from research.evaluation.engines import Engine


@asynccontextmanager
async def opened(
    config: EngineConfig, sampling: Sampling, template_options: Mapping[str, Any] | None = None
) -> AsyncIterator[Engine]:
    """The engine of the configuration, closed at the end."""
    engine: Engine
    if config.is_url:
        from research.evaluation.engines.openai_server import OpenAIServer

        engine = await OpenAIServer.connect(config, sampling, template_options)
    else:
        from research.evaluation.engines.vllm_engine import VllmEngine  # takes seconds to import

        engine = await VllmEngine.start(config, sampling)
    try:
        yield engine
    finally:
        await engine.close()
