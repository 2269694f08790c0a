"""What runs in each Ray Train worker: load the frozen models, join the group, run the use case, keep its
checkpoints.
"""

import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray.train
import torch

from renege_ray.cluster.compilation import settle
from renege_ray.cluster.cost import training_cost
from renege_ray.cluster.session.device import worker_device
from renege_ray.cluster.session.mailbox import Mailbox, StopWatch
from renege_ray.cluster.tracking.run_log import RunLog
from renege_ray.cluster.training.checkpoints import CheckpointStore, checkpoint_name
from renege_ray.cluster.training.worker_group import checkpoint_of_rank_zero, final_reason, load_together, this_worker
from renege_ray.config.run import ModelConfig, RunConfig
from renege_ray.models.base import TextToImage
from renege_ray.models.load import load_model
from renege_ray.output.pictures import image_grid
from renege_ray.output.progress import ProgressLine, duration
from renege_ray.sampling.negative import Negative
from renege_ray.sampling.run_rewards import Rewards
from renege_ray.sampling.workers import Workers
from renege_ray.training.results import ModelFacts
from renege_ray.training.state import TrainingState
from renege_ray.training.train import Progress, Prompts, TrainingError, train_global


@dataclass(frozen=True)
class TrainJob:
    """All that a worker needs; it travels to machines that may not see the driver's files."""

    config: RunConfig
    prompts: Prompts
    initial: Negative
    """What `optim.init` stands for."""
    root: str
    """Of the checkpoints, see `cluster.training.checkpoints`."""
    threads: int
    """Of torch on the CPU."""
    log: RunLog
    """Where rank 0 logs to."""


def train_loop(parameters: dict[str, Any]) -> dict[str, Any]:
    """The training function of Ray Train, with a `TrainJob` and its `Mailbox`. Returns what the driver cannot know
    without the models: plain values, since Ray refuses to return tensors.
    """
    job: TrainJob = parameters["job"]
    mailbox: Mailbox = parameters["mailbox"]
    if reason := mailbox.reason_to_give_up():
        return {"status": "failed", "error": reason}
    workers = this_worker()
    try:
        return _train(job, mailbox, workers)
    except Exception as error:
        reason = final_reason(error)
        if not reason:
            raise
        mailbox.give_up(reason)
        if workers.world_size > 1:
            raise  # the others may be waiting for this one: Ray Train starts all anew, and then all find the reason
        return {"status": "failed", "error": reason}


def _train(job: TrainJob, mailbox: Mailbox, workers: Workers) -> dict[str, Any]:
    resume = checkpoint_of_rank_zero(CheckpointStore(job.root), workers)
    torch.set_num_threads(resume.threads if resume else job.threads)

    def say(line: str) -> None:
        if workers.rank == 0:
            mailbox.post(line)

    names = ", ".join((*job.config.rewards.train, *job.config.rewards.held_out))
    say(f"loading {job.config.model.id} and the rewards {names}")
    started = time.monotonic()
    device = worker_device(job.config.cluster)
    model_config, why = settle(job.config.model, training_cost(job.config), workers.world_size, device)
    say(why)
    models = load_together(lambda: _load(job.config, model_config, device), workers)
    say(f"loaded in {duration(time.monotonic() - started)}")
    if isinstance(models, str):
        return {"status": "failed", "error": models}
    model, rewards = models
    reporter = _Reporter(job, mailbox, model, workers, resume)
    try:
        result = train_global(
            job.config,
            model,
            rewards,
            job.prompts,
            workers,
            initial=job.initial,
            resume=resume,
            report=reporter.report,
            asked_to_stop=StopWatch(mailbox),
            say=say,
        )
    except TrainingError as error:  # the same on every rank, and no restart would help
        reporter.close()
        return {"status": "failed", "error": str(error)}
    if result.test is not None:
        _report_checkpoint(result.state, workers.rank)
    reporter.close()
    return {
        "status": result.status,
        "step": result.state.step,
        "checkpoint": checkpoint_name(result.state),
        "facts": ModelFacts.of(model, rewards).plain() if workers.rank == 0 else {},
        "samples_per_second": reporter.samples_per_second,
    }


def _load(config: RunConfig, model: ModelConfig, device: torch.device) -> tuple[TextToImage, Rewards]:
    return load_model(model, device), Rewards.load(config.rewards, device, compile=model.compile is True)


class _Reporter:
    """Turns progress into log lines, tracked metrics and pictures (rank 0) and checkpoints (all ranks
    together).
    """

    def __init__(
        self, job: TrainJob, mailbox: Mailbox, model: TextToImage, workers: Workers, resume: TrainingState | None
    ) -> None:
        self._job, self._mailbox, self._rank = job, mailbox, workers.rank
        self._log = job.log if self._rank == 0 else None
        self._samples, self._seconds, self._warm = 0, 0.0, False
        if self._rank != 0:
            return
        self._line = ProgressLine(job.config.optim.steps, resume.step if resume else 0)
        group = (
            f"{workers.world_size} worker(s) with {torch.get_num_threads()} thread(s) on {model.device.type} "
            f"({str(model.dtype).removeprefix('torch.')})"
        )
        self._mailbox.post(
            f"going on with {group} from the checkpoint at step {resume.step}"
            if resume
            else f"{group}; training from the start"
        )
        remark = f"; {model.remark}" if model.remark else ""
        described = f"{model.name} ({type(model).__name__}); negative of {model.embedding_layout.describe()}"
        self._mailbox.post(described + remark)
        cut = model.count_truncated(list(job.prompts.train))
        if cut:
            self._mailbox.post(f"{cut} training prompts are too long for the text encoder and are cut")

    @property
    def samples_per_second(self) -> float:
        """Of all updates of this process, without the first (which warms up) and without validations."""
        return self._samples / self._seconds if self._seconds else 0.0

    def report(self, progress: Progress) -> None:
        """What `train_global` is given to tell its progress to."""
        if self._warm and "perf/step_seconds" in progress.metrics:
            self._samples += self._job.config.optim.batch_size
            self._seconds += progress.metrics["perf/step_seconds"]
        self._warm = self._warm or "perf/step_seconds" in progress.metrics
        if self._log is not None:
            self._log.metrics(progress.step, progress.metrics)
            if progress.evaluation is not None and progress.evaluation.images:
                shown = progress.evaluation.pairs[: self._job.config.validation.num_images]
                grid = image_grid(progress.evaluation.images, [pair.prompt for pair in shown], f"step {progress.step}")
                self._log.image("validation", grid, progress.step)
            for line in [*progress.message.splitlines(), *self._line.update(progress.step, progress.metrics)]:
                self._mailbox.post(line)
        if progress.state is not None:
            _report_checkpoint(progress.state, self._rank)

    def close(self) -> None:
        """Nothing is left to be sent when this returns."""
        if self._log is not None:
            self._log.flush()


def _report_checkpoint(state: TrainingState, rank: int) -> None:
    """Hand a checkpoint to Ray Train. All ranks come here together; rank 0 has the files."""
    name = checkpoint_name(state)
    if rank != 0:
        ray.train.report({"step": state.step}, checkpoint_dir_name=name)
        return
    with tempfile.TemporaryDirectory() as scratch:
        state.write_files(Path(scratch))
        checkpoint = ray.train.Checkpoint.from_directory(scratch)
        ray.train.report({"step": state.step}, checkpoint=checkpoint, checkpoint_dir_name=name)
