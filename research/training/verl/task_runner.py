"""The Ray actor that owns the trainer: veRL's V1 task runner with our trainer in it."""

import ray
from omegaconf import DictConfig, OmegaConf


@ray.remote
class TaskRunner:
    """``run(config)`` trains to the end; its error is the run's error."""

    def run(self, config: DictConfig) -> None:
        """Build the trainer, the rollout servers and the agent loop workers, and fit."""
        import transfer_queue as tq

        from research.training.verl import patches
        from research.training.verl.rollout import SearchManager
        from research.training.verl.trainer import SearchTrainer

        patches.silence_equal_rewards()
        config.transfer_queue.enable = True
        OmegaConf.resolve(config)
        tq.init(config.transfer_queue)
        try:
            manager = SearchManager.create(config=config)
            trainer = SearchTrainer(config=config)
            trainer.init()
            manager.connect(trainer.get_llm_client())
            trainer.fit(manager)
            trainer.logger.finish(exit_code=0)
        finally:
            tq.close()
