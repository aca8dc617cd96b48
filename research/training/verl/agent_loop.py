"""The agent loop that veRL runs for each trajectory: an adapter around the environment's episodes.

Registered in agent_loop.yaml.
"""

import asyncio
import uuid
import zlib
from typing import Any

from verl.experimental.agent_loop.agent_loop import AgentLoopBase, AgentLoopMetrics, AgentLoopOutput

from research.episode.loop import Generation
from research.episode.tokens import TokenProtocol
from research.episode.trajectory import Trajectory
from research.errors import reason_of
from research.files import write_atomically
from research.training.config import read_research_config
from research.training.run_files import rollout_error, trajectory_writer, write_trajectory


class SearchAgentLoop(AgentLoopBase):
    """Episodes for veRL: a question row in, tokens with mask, log-probs and reward out.

    It has no state between episodes, so one object serves all those of a worker.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.research = read_research_config(self.config.research)
        environment = self.research.environment
        self.tokens = TokenProtocol(self.tokenizer, environment.protocol, environment.tools)

    async def run(self, sampling_params: dict[str, Any], **row: Any) -> AgentLoopOutput:
        """Run the episode of one row of the training or validation parquet (research/training/rows.py).

        Raises:
            TimeoutError: the rollout server did not answer within ``research.generate_timeout``. This, and
                whatever the server raises, ends the run (research/training/verl/replay_buffer.py).
        """
        info, step = row["extra_info"], int(row["global_steps"])
        seed = self._seed(row) if sampling_params["temperature"] > 0 else None
        engine = _Engine(self, sampling_params, seed)
        try:
            trajectory = await self.research.environment.play(row, engine.generate, self.tokens)
        except Exception as error:  # veRL only writes it to the log
            self._write_error(info["id"], error)
            raise
        trajectory.metadata = {
            "id": info["id"],
            "question": info["question"],
            "data_source": row["data_source"],
            "step": step,
            "sample": int(row.get("session_id", 0)),
            "control": info["control"],
            **trajectory.metadata,
        }
        writer = trajectory_writer(self.config.trainer.nnodes)
        write_trajectory(self.research.run_dir, step, info["split"], trajectory, writer)
        return self._output(trajectory, engine.policy_versions)

    def _write_error(self, question: str, error: Exception) -> None:
        path = rollout_error(self.research.run_dir)
        if not path.exists():
            reason = reason_of(error)
            write_atomically(path, f"{reason} (question {question})\n")

    def _seed(self, row: dict[str, Any]) -> int | None:
        """The seed that fixes an episode's sampling in any batch; None leaves it to vLLM."""
        if not self.research.repeatable_sampling:
            return None
        seed = self.config.actor_rollout_ref.rollout.seed
        parts = (seed, row["global_steps"], row["extra_info"]["id"])
        return zlib.crc32(f"{parts} {row.get('session_id', 0)}".encode())

    def _output(self, trajectory: Trajectory, policy_versions: list[int]) -> AgentLoopOutput:
        return AgentLoopOutput(
            prompt_ids=trajectory.prompt_ids,
            response_ids=trajectory.response_ids,
            response_mask=trajectory.response_mask,
            response_logprobs=trajectory.response_log_probs,
            reward_score=trajectory.reward,
            num_turns=len(trajectory.segments),
            metrics=AgentLoopMetrics(
                generate_sequences=trajectory.generate_seconds, tool_calls=trajectory.call_seconds
            ),
            extra_fields={
                "reward_extra_info": trajectory.metrics,
                # veRL's trainer reads which policy versions the trajectory comes from.
                "min_global_steps": min(policy_versions, default=None),
                "max_global_steps": max(policy_versions, default=None),
            },
        )


class _Engine:
    """veRL's rollout servers as the ``generate`` of one episode."""

    def __init__(self, loop: SearchAgentLoop, sampling_params: dict[str, Any], seed: int | None) -> None:
        self.client, self.timeout, self.seed = loop.server_manager, loop.research.generate_timeout, seed
        # One id per episode keeps its turns on one server, whose prefix cache has the earlier turns.
        self.request_id = uuid.uuid4().hex
        from vllm.sampling_params import RequestOutputKind  # takes seconds where it was not imported before

        strings = loop.tokens.stop_strings
        stops: dict[str, Any] = {"stop_token_ids": loop.tokens.stop_token_ids}
        stops |= {"stop": strings} if strings else {"detokenize": False}
        # One output at the end: by default vLLM makes one per token, of all tokens so far.
        stops["output_kind"] = RequestOutputKind.FINAL_ONLY
        self.sampling_params = {**sampling_params, **stops}
        self.policy_versions: list[int] = []

    async def generate(self, token_ids: list[int], max_tokens: int) -> Generation:
        if self.seed is not None:
            self.seed += 1  # a new one for each turn: vLLM would draw the same numbers again
        seed = {} if self.seed is None else {"seed": self.seed}
        output = await asyncio.wait_for(
            self.client.generate(
                request_id=self.request_id,
                prompt_ids=token_ids,
                sampling_params={**self.sampling_params, **seed, "max_tokens": max_tokens},
            ),
            timeout=self.timeout,
        )
        versions = map(output.extra_fields.get, ("min_global_steps", "max_global_steps"))
        self.policy_versions += [version for version in versions if version is not None]
        return Generation(list(output.token_ids), [float(value) for value in output.log_probs])
