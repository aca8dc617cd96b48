"""The tool ``wikipedia_search`` as ReCall's checkpoints know it (Agent-RL/ReCall, src/flashrag/pipeline)."""

from dataclasses import replace

from research.episode.tools import SearchFunction, Tool, make_tool
from research.episode.trajectory import Passage
from research.tools.search import RetrieverClient, RetrieverConfig


def tool(retriever: RetrieverConfig) -> Tool:
    """The built-in tool ``wikipedia_search``."""
    return wikipedia_tool(RetrieverClient(retriever))


def wikipedia_tool(search: SearchFunction) -> Tool:
    """The same around a search function, which is given a query and how many passages are wanted."""

    async def wikipedia_search(query: str, top_n: int = 5) -> list[Passage] | str:
        """Search Wikipedia for a given query."""
        return await search(query, top_n) if query else "invalid query"

    tool = make_tool(wikipedia_search)
    return replace(tool, guarded=False, close=getattr(search, "close", None), searches=True)
