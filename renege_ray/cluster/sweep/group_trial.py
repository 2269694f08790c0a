"""Trials of several workers: a process that starts a Ray Train group, hands on its reports, and sees it end.

Ray Tune ends a trial by ending its process. A group would be cut off by that, and the room that it has reserved would
stay reserved (Ray Train's own cleaner asks the dashboard whether the group is alive, and there may be none): the next
trial would wait for ever. So before its process ends, a trial asks its workers to stop and waits until they have.
"""

import threading
import uuid
from typing import Any

import ray.train
import ray.tune
from ray.train import UserCallback
from ray.train.torch import TorchConfig, TorchTrainer
from ray.util.queue import Empty, Queue

from renege_ray.cluster.session.device import worker_device
from renege_ray.cluster.session.mailbox import Mailbox, StopWatch
from renege_ray.cluster.sweep.trial import (
    REPORT,
    TASK,
    SweepJob,
    TrialTask,
    as_result,
    failure,
    loaded_models,
    run_trial,
    trial_root,
)
from renege_ray.cluster.training.checkpoints import CheckpointStore
from renege_ray.cluster.training.worker_group import (
    checkpoint_of_rank_zero,
    final_reason,
    first_cause,
    load_together,
    this_worker,
)
from renege_ray.output.storage import join
from renege_ray.sweeps.trial import TrialError, TrialReport
from renege_ray.training.train import TrainingError

_SECONDS_BETWEEN_LOOKS = 1.0


class GroupTrial(ray.tune.Trainable):
    """A trial for Ray Tune; a step of it is a report of rank 0."""

    def setup(self, config: dict[str, Any], job: SweepJob) -> None:
        """Start the group."""
        task: TrialTask = config[TASK]
        self._mailbox = Mailbox()
        self._reports = Queue(actor_options={"num_cpus": 0})
        self._failure: TrialReport | None = None
        self._thread = threading.Thread(target=self._fit, args=(task, job), daemon=True)
        self._thread.start()

    def step(self) -> dict[str, Any]:
        """Wait for the next report; the last one has a status."""
        while True:
            over = not self._thread.is_alive()  # before the look, so that nothing comes behind it
            try:
                result: dict[str, Any] = self._reports.get(timeout=_SECONDS_BETWEEN_LOOKS)
            except Empty:
                if not over:
                    continue
                result = as_result(self._failure or failure("its workers ended without a result"))
            return result | {"done": bool(result[REPORT].status)}

    def cleanup(self) -> None:
        """See the group end: after its last report, or early, for which its workers are asked."""
        self._mailbox.request_stop()
        self._thread.join()
        self._mailbox.close()
        self._reports.shutdown()

    def _fit(self, task: TrialTask, job: SweepJob) -> None:
        trainer = TorchTrainer(
            train_in_group,
            train_loop_config={"task": task, "job": job, "mailbox": self._mailbox},
            torch_config=TorchConfig(backend=job.shape.backend),
            scaling_config=ray.train.ScalingConfig(
                num_workers=job.shape.workers,
                use_gpu=bool(job.shape.gpus),
                resources_per_worker=job.shape.worker_resources(),
            ),
            run_config=ray.train.RunConfig(
                name=f"group-{uuid.uuid4().hex[:8]}",
                storage_path=join(job.root, task.folder, "ray"),
                callbacks=[_HandOn(self._reports)],
                failure_config=ray.train.FailureConfig(max_failures=job.base.cluster.max_failures),
                logging_config=ray.train.LoggingConfig(log_level="ERROR"),
            ),
        )
        try:
            trainer.fit()
        except ray.train.TrainingFailedError as error:
            self._failure = failure(first_cause(error))
        except Exception as error:
            self._failure = failure(error)


class _HandOn(UserCallback):
    """Runs in Ray Train's controller: what rank 0 reports goes to the trial's process."""

    def __init__(self, reports: Queue) -> None:
        self._reports = reports

    def after_report(self, run_context: Any, metrics: list[dict[str, Any]], checkpoint: Any) -> None:
        """Hand it on; the queue has no end, so the workers never wait for the driver."""
        self._reports.put(metrics[0])


def train_in_group(parameters: dict[str, Any]) -> None:
    """The training function of Ray Train in each worker of a trial."""
    job: SweepJob = parameters["job"]
    task: TrialTask = parameters["task"]
    mailbox: Mailbox = parameters["mailbox"]
    workers, device = this_worker(), worker_device(job.base.cluster)

    def tell(report: TrialReport) -> None:
        ray.train.report(as_result(report) if workers.rank == 0 else {})

    if reason := mailbox.reason_to_give_up():
        tell(failure(reason))
        return
    try:
        problem = load_together(lambda: loaded_models.get(task.config, device), workers)
        if isinstance(problem, str):
            tell(failure(problem))
            return
        resume = checkpoint_of_rank_zero(CheckpointStore(trial_root(job.root, task.folder)), workers)
        run_trial(job, task, workers, device, tell, resume, StopWatch(mailbox))
    except (TrialError, TrainingError) as error:  # the same on every rank, and no restart would help
        tell(failure(error))
    except Exception as error:
        if reason := final_reason(error):
            mailbox.give_up(reason)  # all find it when Ray Train starts them anew
        raise
