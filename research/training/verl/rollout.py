"""veRL's agent loop workers and server client, with less work per trajectory and an earlier start."""

import gc
from typing import Any

import ray
from verl.experimental.agent_loop.agent_loop import DictConfigWrap
from verl.trainer.ppo.v1.agent_loop_tq import AgentLoopManagerTQ, AgentLoopWorkerTQ
from verl.workers.rollout.llm_server import LLMServerClient

from research.training.verl.agent_loop import SearchAgentLoop


class OneServerClient(LLMServerClient):
    """For a single rollout server, called directly; veRL calls a load balancer twice per turn."""

    def __init__(self, server: Any, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.server = server

    async def _acquire_server(self, request_id: str, **extra: Any) -> tuple[str, Any]:
        return "", self.server

    def _release_server(self, server_id: str, request_id: str | None = None) -> None:
        return None


class SearchWorker(AgentLoopWorkerTQ.__ray_metadata__.modified_class):
    """Keeps one agent loop for all episodes.

    veRL makes one for each trajectory, through hydra, which merges the whole configuration each time.
    """

    search_loop: SearchAgentLoop

    def connect(self, llm_client: LLMServerClient) -> None:
        """Take the client of the rollout servers, which start later than this worker."""
        self.llm_client = llm_client
        self.search_loop = SearchAgentLoop(
            trainer_config=DictConfigWrap(self.config),
            server_manager=llm_client,
            tokenizer=self.tokenizer,
            processor=self.processor,
            dataset_cls=self.dataset_cls,
            data_config=DictConfigWrap(self.config.data),
            hf_model_type=self.hf_model_type,
        )
        gc.freeze()  # imported modules stay: each full collection would go through them, 0.3 s

    async def _run_agent_loop(
        self, sampling_params: dict[str, Any], trajectory: dict[str, Any], *, agent_name: str, **row: Any
    ) -> Any:
        row.pop("trace", None)
        output = await self.search_loop.run(sampling_params, **row)
        return await self._agent_loop_postprocess(output, trajectory["validate"], **row)


class SearchManager(AgentLoopManagerTQ):
    """Starts its workers before the rollout servers, so that they import while the trainer does (10 s)."""

    def __init__(self, config: Any) -> None:
        super().__init__(config=config, llm_client=None)
        self.agent_loop_workers_class = ray.remote(SearchWorker)

    def connect(self, llm_client: LLMServerClient) -> None:
        """Hand the client of the rollout servers to all workers, and wait for them.

        Raises:
            RayActorError: a worker could not start.
        """
        ray.get([worker.connect.remote(llm_client) for worker in self.agent_loop_workers])
