"""veRL's synchronous PPO trainer with the run's own files, search metrics and guards."""

import gc
import logging
import shutil
import threading
from collections import Counter
from pathlib import Path
from typing import Any

import transfer_queue as tq
from torch.utils.data import Subset
from torchdata.stateful_dataloader import StatefulDataLoader
from verl.trainer.ppo.v1.trainer_sync import PPOTrainerSync
from verl.utils.dataset.rl_dataset import collate_fn
from verl.workers.rollout.llm_server import LLMServerClient
from verl.workers.rollout.replica import get_rollout_replica_class

from research.training import run_files
from research.training.config import LAST, read_research_config
from research.training.run_files import metrics_row, read_metrics
from research.training.verl import tracking
from research.training.verl.cpu import agreement
from research.training.verl.cpu.equal_groups import SKIP
from research.training.verl.rollout import OneServerClient
from research.training.watch import validations
from research.training.watch.guards import ROLLOUT_DIFFERENCE, GuardWatch, equal_group_share, failed_share

logger = logging.getLogger(__name__)


class RetrieverGone(RuntimeError):
    """Every search, or the scoring of every text, failed in several steps in a row."""


class SearchTrainer(PPOTrainerSync):
    """Adds to each step's metrics what the trajectories searched, and writes ``metrics.jsonl``."""

    global_steps: int  # veRL's, and so is the next
    total_training_steps: int
    trained: tuple[tq.KVBatchMeta, dict[str, Any]] | None = None  # the newest step of this process

    def fit(self, agent_loop_manager: Any) -> None:
        """Train to the last step, from the checkpoint that was loaded."""
        self.research = read_research_config(self.config.research)
        self.steps_without_retriever = 0
        run_files.forget_steps_after(self.research.run_dir, self.global_steps or -1)
        sampler: Any = self.replay_buffer  # by configuration research.training.verl.replay_buffer's
        sampler.watch(agent_loop_manager.agent_loop_workers, run_files.rollout_error(self.research.run_dir))
        gc.freeze()  # imported modules stay: each full collection would go through them
        tracking.prepare(self.config, self.research.run_dir, resumes=self.global_steps > 0)
        try:
            super().fit(agent_loop_manager)
        except BaseException:
            if hasattr(self, "logger"):
                self.logger.finish(exit_code=1)  # else the trackers would show a finished run
            raise

    def _init_dataloader(self) -> None:
        """Make veRL's loaders, and further ones for parts of the held-out questions."""
        super()._init_dataloader()
        # veRL ends after the epochs even if steps are left, but the steps count.
        self.config.trainer.total_epochs = -(-self.total_training_steps // self.steps_per_epoch)
        rows, infos = self.val_dataset.dataframe, list(self.val_dataset.dataframe["extra_info"])
        validation = [info["split"] == "validation" for info in infos]
        self.questions = Counter(
            source for source, chosen in zip(rows["data_source"], validation, strict=True) if chosen
        )
        self.whole_val_dataloader: Any = self.val_dataloader
        self.start_val_dataloader = self._loader([not info["control"] for info in infos])
        self.small_val_dataloader = self._loader(validation)
        self.test_val_dataloader = self._loader([not chosen for chosen in validation])

    def _loader(self, wanted: list[bool]) -> StatefulDataLoader:
        chosen = [index for index, value in enumerate(wanted) if value]
        size = self.config.data.val_batch_size or max(1, len(chosen))
        return StatefulDataLoader(Subset(self.val_dataset, chosen), size, collate_fn=collate_fn)

    def _init_resource_pool_mgr(self) -> None:
        """Import the rollout engine, which is needed next, while the model's process starts."""
        super()._init_resource_pool_mgr()
        name = self.config.actor_rollout_ref.rollout.name
        threading.Thread(target=get_rollout_replica_class, args=(name,), daemon=True).start()

    def get_llm_client(self) -> LLMServerClient:
        """The agent loop's client; without the load balancer if there is nothing to balance."""
        servers = self.llm_server_manager.server_handles
        if len(servers) > 1:
            return super().get_llm_client()
        return self.llm_server_manager.get_client(OneServerClient, server=servers[0])

    def step(self, metrics: dict[str, Any], timing_raw: dict[str, Any]) -> tq.KVBatchMeta:
        """veRL's."""
        batch: tq.KVBatchMeta = super().step(metrics, timing_raw)
        self.trained = batch, metrics
        return batch

    def on_validate_begin(self) -> None:
        """Keep what is known of the step: a run that is killed in its validation resumes behind it."""
        self._attach_loggers()
        if self.trained:
            batch, metrics = self.trained[0], dict(self.trained[1])
            epoch = (self.global_steps - 1) // self.steps_per_epoch
            super()._compute_metrics(batch, metrics, self.timing_raw, self.global_steps, epoch)
            metrics |= self._search_metrics(batch)
            guards = GuardWatch(self.research.guards, self.guards.rows)
            guards.observe(row := metrics_row(metrics, self.global_steps))
            run_files.note_trained(self.research.run_dir, {**row, **guards.metrics()})

    def _validate(self) -> dict[str, float]:
        """Validate this step, keep its checkpoint if it is the best, and test the final policy at the end.

        The validation questions draw the curve and choose the checkpoint. The test questions are asked
        before and after the training, their controls only after it: they show whether the policy cheats.
        """
        if self.config.trainer.val_only:
            return self._ask(self.whole_val_dataloader)
        at_start = self.global_steps == 0
        metrics = self._ask(self.start_val_dataloader if at_start else self.small_val_dataloader)
        measure = self.research.environment.headline.metric
        metrics |= validations.score_metrics(metrics, self.questions, measure)
        rows = [*read_metrics(self.research.run_dir), metrics_row(metrics, self.global_steps)]
        is_best = not at_start and validations.best_step(rows) == self.global_steps
        if is_best and self.research.keep != LAST and self._save_this_step():
            validations.keep_as_best(self.research.run_dir, self.global_steps)
        limit = self.research.early_stop
        if limit is not None and validations.validations_without_gain(rows) >= limit:
            metrics[validations.STOPPED_EARLY] = 1.0
            self.total_training_steps = self.global_steps
            self._save_this_step()  # veRL has decided already that this is not the last step
        if not at_start and self.global_steps >= self.total_training_steps:
            metrics |= self._judge()
        killed = {} if self.trained else run_files.read_trained(self.research.run_dir, self.global_steps)
        return {**killed, **metrics}

    def _ask(self, questions: StatefulDataLoader) -> dict[str, float]:
        self.val_dataloader = questions
        metrics: dict[str, float] = super()._validate() if len(questions) else {}
        return metrics

    def _save_this_step(self) -> bool:
        """Write its checkpoint if it is not there; False where no checkpoints are wanted."""
        if self.config.trainer.save_freq <= 0:
            return False
        if run_files.latest_checkpoint(self.research.run_dir) != self.global_steps:
            self._save_checkpoint()
        return True

    def _save_checkpoint(self) -> None:
        """Save as veRL does, but never through the hard links of an earlier save of this step."""
        folder = Path(self.config.trainer.default_local_dir) / f"global_step_{self.global_steps}"
        shutil.rmtree(folder, ignore_errors=True)
        super()._save_checkpoint()

    def _judge(self) -> dict[str, float]:
        """Ask the final policy, whichever step it is from, the test questions and controls."""
        last = self.global_steps
        chosen = validations.final_checkpoint(self.research.run_dir, self.research.keep)
        step, folder = chosen or (last, None)
        if step != last:
            self.checkpoint_manager.sleep_replicas()
            self.actor_rollout_wg.load_checkpoint(local_path=f"{folder}/actor", del_local_after_load=False)
            self.checkpoint_manager.update_weights(step)
        self.global_steps = step  # the step under which the trajectories are written
        try:
            return {**self._ask(self.test_val_dataloader), validations.EVALUATED_STEP: float(step)}
        finally:
            self.global_steps = last

    def on_train_begin(self) -> None:
        self._attach_loggers()
        self.guards = GuardWatch(self.research.guards, read_metrics(self.research.run_dir))

    def _attach_loggers(self) -> None:
        # veRL makes its loggers in fit(); its own file logger starts over on resume.
        loggers: dict[str, Any] = self.logger.logger
        tracking.require(self.config, loggers)
        research = self.research
        loggers.setdefault("run", run_files.MetricsFile(research.run_dir / "metrics.jsonl"))
        if trackers := [name for name in tracking.TRACKERS if name in loggers]:
            bounds = (research.table_steps, research.table_episodes)
            loggers.setdefault("table", tracking.TrajectoryTable(research.run_dir, trackers, *bounds))

    def _update_actor(self, batch: tq.KVBatchMeta, metrics: dict[str, Any]) -> tq.KVBatchMeta:
        """Update; add the agreement of actor and rollout if the old_log_prob pass did not measure it."""
        batch.extra_info[SKIP] = self.research.skip_equal_groups
        batch = super()._update_actor(batch, metrics)
        names = [name for name in metrics if name.startswith(f"actor/{agreement.PREFIX}")]
        sums = {name.removeprefix("actor/"): metrics.pop(name) for name in names}
        if sums and ROLLOUT_DIFFERENCE not in metrics:
            metrics.update(agreement.statistics(sums))
        if "actor/entropy_loss" in metrics:
            metrics.setdefault("actor/entropy", metrics["actor/entropy_loss"])
        return batch

    def _compute_metrics(
        self, batch: tq.KVBatchMeta, metrics: dict[str, Any], *args: Any, **kwargs: Any
    ) -> None:
        super()._compute_metrics(batch, metrics, *args, **kwargs)
        metrics.update(self._search_metrics(batch))
        for alarm in self.guards.observe(metrics_row(metrics, self.global_steps)):
            logger.warning("WARNING step %d: %s", self.global_steps, alarm.message)
        metrics.update(self.guards.metrics())
        self._check_retriever(metrics)

    def _search_metrics(self, batch: tq.KVBatchMeta) -> dict[str, float]:
        """``search/*``: means of the metrics of the step's trajectories, and the share of equal groups."""
        keys = [
            key for key, tag in zip(batch.keys, batch.tags, strict=True) if not tag.get("is_padding", False)
        ]
        names = ["extra_fields", "rm_scores"]
        fields = tq.kv_batch_get(keys=keys, partition_id=batch.partition_id, select_fields=names)
        rows = [extra["reward_extra_info"] for extra in fields.pop("extra_fields").tolist()]
        means = {f"search/{name}": sum(row[name] for row in rows) / len(rows) for name in rows[0]}
        # veRL's key of a trajectory is {uid}_{session}_{index}, and the uid is that of the GRPO group.
        groups = [key.rsplit("_", 2)[0] for key in keys]
        rewards = fields["rm_scores"].sum(dim=1).tolist()
        return {**means, "search/equal_groups": equal_group_share(groups, rewards)}

    def _check_retriever(self, metrics: dict[str, Any]) -> None:
        self.steps_without_retriever = self.steps_without_retriever + 1 if failed_share(metrics) >= 1 else 0
        if self.steps_without_retriever >= self.research.max_steps_without_retriever:
            raise RetrieverGone(
                f"{'every search' if 'search/searches' in metrics else 'the scoring of every text'} of "
                f"{self.steps_without_retriever} steps failed: is the retriever at "
                f"{self.config.research.retriever.url} alive? The reasons are in trajectories/; fix it and "
                "run again with --resume"
            )
