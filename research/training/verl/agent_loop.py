"""The agent loop that veRL runs for each trajectory: an adapter around the environment's episodes. Registered
in agent_loop.yaml.
"""

import asyncio
import uuid
import zlib
from dataclasses import dataclass
from typing import Any

from verl.experimental.agent_loop.agent_loop import AgentLoopBase, AgentLoopMetrics, AgentLoopOutput

from research.episode.loop import Generation
from research.episode.tokens import TokenProtocol
from research.episode.trajectory import Trajectory
from research.training.config import ResearchConfig, read_research_config
from research.training.run_files import trajectory_writer, write_trajectory


@dataclass
class _Shared:
    """What all episodes of a process share."""

    config: ResearchConfig
    tokens: TokenProtocol


_shared: _Shared | None = None
NAME = "search_agent"  # in agent_loop.yaml


def _get_shared(section: Any, tokenizer: Any) -> _Shared:
    global _shared
    if _shared is None:
        config = read_research_config(section)
        environment = config.environment
        _shared = _Shared(config, TokenProtocol(tokenizer, environment.protocol, environment.tools))
    return _shared


class SearchAgentLoop(AgentLoopBase):
    """Episodes for veRL: question row in, tokens with mask, log-probs and reward out. One object serves all
    episodes of a worker.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.shared = _get_shared(self.config.research, self.tokenizer)

    async def run(self, sampling_params: dict[str, Any], **row: Any) -> AgentLoopOutput:
        """Run the episode of one row of the training or validation parquet (research/training/rows.py).

        Raises:
            TimeoutError: the rollout server did not answer within ``research.generate_timeout``. This and
            whatever the server raises ends the run (research/training/verl/replay_buffer.py).
        """
        shared, info = self.shared, row["extra_info"]
        seed = _seed_of(row, self.config) if sampling_params["temperature"] > 0 else None
        engine = _Engine(self, sampling_params, seed)
        trajectory = await shared.config.environment.play(row, engine.generate, shared.tokens)
        trajectory.metadata = {
            "id": info["id"],
            "question": info["question"],
            "data_source": row["data_source"],
            "step": int(row["global_steps"]),
            "sample": int(row.get("session_id", 0)),
            "control": info["control"],
            **trajectory.metadata,
        }
        step, writer = int(row["global_steps"]), trajectory_writer(self.config.trainer.nnodes)
        write_trajectory(shared.config.run_dir, step, info["split"], trajectory, writer)
        return self._output(trajectory, engine.policy_versions)

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
                # veRL's trainer reads which policy versions made the trajectory.
                "min_global_steps": min(policy_versions, default=None),
                "max_global_steps": max(policy_versions, default=None),
            },
        )


class _Engine:
    """veRL's rollout servers as the ``generate`` of one episode."""

    def __init__(self, loop: SearchAgentLoop, sampling_params: dict[str, Any], seed: int | None) -> None:
        self.client, self.shared = loop.server_manager, loop.shared
        self.seed = seed
        # One id an episode keeps its turns on one server, where the prefix cache has the earlier turns.
        self.request_id = uuid.uuid4().hex
        tokens = self.shared.tokens
        stops: dict[str, Any] = {"stop_token_ids": tokens.stop_token_ids}
        stops |= {"stop": tokens.stop_strings} if tokens.stop_strings else {"detokenize": False}
        self.sampling_params = {**sampling_params, **stops, "output_kind": _final_only()}
        self.policy_versions: list[int] = []

    async def generate(self, token_ids: list[int], max_tokens: int) -> Generation:
        output = await asyncio.wait_for(
            self.client.generate(
                request_id=self.request_id,
                prompt_ids=token_ids,
                sampling_params={**self.sampling_params, **self._turn_seed(), "max_tokens": max_tokens},
            ),
            timeout=self.shared.config.generate_timeout,
        )
        fields = output.extra_fields
        self.policy_versions += [
            v for v in (fields.get("min_global_steps"), fields.get("max_global_steps")) if v is not None
        ]
        if output.log_probs is None:
            raise ValueError(
                "the rollout gave no log-probs: actor_rollout_ref.rollout.calculate_log_probs must be true"
            )
        return Generation(list(output.token_ids), [float(value) for value in output.log_probs])

    def _turn_seed(self) -> dict[str, int]:
        """A new seed for each turn: vLLM would draw the same numbers again."""
        if self.seed is None:
            return {}
        self.seed += 1
        return {"seed": self.seed}


def _seed_of(row: dict[str, Any], config: Any) -> int | None:
    """What fixes the sampling of an episode, whatever else is in the batch; None if it is left to vLLM."""
    if not config.research.repeatable_sampling:
        return None
    parts = (config.actor_rollout_ref.rollout.seed, row["global_steps"], row["extra_info"]["id"])
    return zlib.crc32(f"{parts} {row.get('session_id', 0)}".encode())


def _final_only() -> Any:
    """vLLM's word for one output at the end: by default it makes one a token, of all tokens so far."""
    from vllm.sampling_params import RequestOutputKind  # seconds, where it was not imported before

    return RequestOutputKind.FINAL_ONLY
