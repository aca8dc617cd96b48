"""The tool ``wikipedia_search`` as ReCall's checkpoints know it (Agent-RL/ReCall, src/flashrag/pipeline)."""

from dataclasses import replace

from research.episode.tools import Tool, make_tool
from research.episode.trajectory import Passage
from research.tools.search import RetrieverClient, RetrieverConfig


def tool(retriever: RetrieverConfig) -> Tool:
    """The built-in tool ``wikipedia_search``."""
    client = RetrieverClient(retriever)

    async def wikipedia_search(query: str, top_n: int = 5) -> list[Passage] | str:
        """Search Wikipedia for a given query."""
        return await client(query, top_n) if query else "invalid query"

    return replace(make_tool(wikipedia_search), close=client.close)
