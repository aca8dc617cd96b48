"""The Ray actor that owns the trainer: veRL's V1 task runner with our trainer in it."""

import ray
from omegaconf import DictConfig, OmegaConf


@ray.remote
class TaskRunner:
    """``run(config)`` trains to the end; its error is the run's error."""

    def run(self, config: DictConfig) -> None:
        """Build the trainer, the rollout servers and the agent loop workers, and fit."""
        import transfer_queue as tq
        from verl.trainer.ppo.v1 import AgentLoopManagerTQ

        from research.training.trainer import SearchTrainer

        config.transfer_queue.enable = True
        OmegaConf.resolve(config)
        tq.init(config.transfer_queue)
        try:
            trainer = SearchTrainer(config=config)
            trainer.init()
            manager = AgentLoopManagerTQ.create(
                config=config,
                llm_client=trainer.get_llm_client(),
                teacher_client=trainer.get_teacher_client(),
                reward_loop_worker_handles=trainer.get_reward_handles(),
            )
            trainer.fit(manager)
            trainer.logger.finish(exit_code=0)
        finally:
            tq.close()
