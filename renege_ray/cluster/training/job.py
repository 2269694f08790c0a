"""The job `train_global` on Ray Train V2: check, start the workers, keep the results."""

from contextlib import suppress
from dataclasses import asdict
from functools import partial
from typing import Any

from renege_ray.cluster.job import run_repeatable, workers_on
from renege_ray.cluster.plan import describe_plan
from renege_ray.cluster.session import ray_session as session  # first: it sets up Ray's environment
from renege_ray.cluster.session.mailbox import Mailbox
from renege_ray.cluster.session.resources import WorkerShape
from renege_ray.cluster.session.signals import Abandoned, StopRequest, run_until_stopped
from renege_ray.cluster.tracking.runs import RunLog
from renege_ray.cluster.training.checkpoints import CheckpointStore, check_goes_on, checkpoint_root
from renege_ray.cluster.training.worker import TrainJob, train_loop
from renege_ray.cluster.training.worker_group import first_cause
from renege_ray.config.gpus import Gpu
from renege_ray.config.run import RunConfig
from renege_ray.output.console import say
from renege_ray.output.folder import CONFIG_FILE, shown_path
from renege_ray.sampling.run_rewards import REWARD
from renege_ray.training.inputs import Inputs, check_inputs, find_problems, first_problem, read_inputs, record_inputs
from renege_ray.training.results import Artifacts, ModelFacts, answer, metadata_of, write_results
from renege_ray.training.state import TrainingState

JOB = "train_global"
ERROR_FILE = "error.txt"
_KEPT_CHECKPOINTS = 3


def run(config: RunConfig, *, resume: bool = False, dry_run: bool = False, gpu: Gpu | None = None) -> int:
    """Train, evaluate, and write the results; or go on from the newest whole checkpoint. See `run_repeatable`."""
    return run_repeatable(
        JOB,
        config,
        resume=resume,
        dry_run=dry_run,
        check=_check,
        read=partial(_read, resume),
        plan=partial(_plan, gpu),
        work=_train,
        shape_on=workers_on,
    )


def _check(config: RunConfig) -> None:
    if problems := find_problems(config):
        say(describe_plan(config, (), problems))
        raise first_problem(problems)


def _read(resume: bool, config: RunConfig) -> Inputs:
    inputs = read_inputs(config)
    if resume:
        check_inputs(inputs, config.output_dir)
        check_goes_on(config.output_dir, config.cluster.storage_path)
    return inputs


def _plan(gpu: Gpu | None, config: RunConfig, inputs: Inputs) -> str:
    return describe_plan(config, inputs.notes, gpu=gpu)


def _train(config: RunConfig, inputs: Inputs, shape: WorkerShape, log: RunLog) -> int:
    """Run Ray Train to its end, however that comes, and close the run accordingly."""
    record_inputs(inputs, config.output_dir)
    store = CheckpointStore(checkpoint_root(config.output_dir, config.cluster.storage_path))
    attempt = store.next_attempt()
    job = TrainJob(
        config=config, prompts=inputs.prompts, initial=inputs.initial, root=store.root, threads=shape.threads, log=log
    )
    mailbox = Mailbox()
    request = StopRequest()

    def stop() -> None:
        mailbox.request_stop()
        say("stopping, with a checkpoint (a second signal stops at once)")

    def show() -> None:
        for line in mailbox.take():
            say(line)

    try:
        outcome = run_until_stopped(
            lambda: _fit(job, attempt, mailbox, shape), stop, request, meanwhile=show, lost=session.LossWatch()
        )
        show()
        mailbox.close()
    except Abandoned as why:  # Ray is not to be asked any more
        outcome = {"status": "failed", "error": str(why)}
    if outcome["status"] == "failed" and request.signal is not None:  # the signal may have reached the workers, too
        newest = store.newest_intact()
        outcome = {"status": "interrupted", "step": newest[1].step if newest else 0}
    go_on = f"--resume {config.output_dir}"
    if outcome["status"] == "failed":
        log.finish("failed")
        say(f"training failed: {outcome['error']} (the last checkpoint is kept: {go_on})", error=True)
        say(log.review())
        return 1
    if outcome["status"] == "interrupted":
        log.finish("interrupted")
        say(f"interrupted at step {outcome['step']}; go on by {go_on}")
        say(log.review())
        return request.exit_code or 1
    _keep_results(config, store.load(f"{attempt}/{outcome['checkpoint']}"), outcome, log)
    return 0


def _fit(job: TrainJob, attempt: str, mailbox: Mailbox, shape: WorkerShape) -> dict[str, Any]:
    """Start the trainer and wait; returns what rank 0 returned, or why Ray Train gave up."""
    import ray.train
    from ray.train.torch import TorchConfig, TorchTrainer

    trainer = TorchTrainer(
        train_loop,
        train_loop_config={"job": job, "mailbox": mailbox},
        torch_config=TorchConfig(backend=shape.backend),
        scaling_config=ray.train.ScalingConfig(
            num_workers=(shape.min_workers, shape.max_workers) if shape.elastic else shape.max_workers,
            use_gpu=bool(shape.gpus),
            resources_per_worker=shape.resources(),
        ),
        run_config=ray.train.RunConfig(
            name=attempt,
            storage_path=job.root,
            failure_config=ray.train.FailureConfig(max_failures=job.config.cluster.max_failures),
            checkpoint_config=ray.train.CheckpointConfig(num_to_keep=_KEPT_CHECKPOINTS),
            logging_config=ray.train.LoggingConfig(log_level="ERROR"),
        ),
    )
    try:
        outcome: dict[str, Any] = trainer.fit().return_value
    except ray.train.TrainingFailedError as error:
        with suppress(OSError):  # of a full disk, perhaps
            (job.config.output_dir / ERROR_FILE).write_text(f"{error}\n", encoding="utf-8")
        return {"status": "failed", "error": first_cause(error)}
    return outcome


def _keep_results(config: RunConfig, state: TrainingState, outcome: dict[str, Any], log: RunLog) -> None:
    """Write embeddings, table and picture from the final checkpoint; tell MLflow; print the last lines."""
    facts = ModelFacts.from_plain(outcome["facts"])
    assert state.test is not None
    artifacts, figures = write_results(config, facts, state, state.test), state.test.metrics()
    log.metrics(state.step, {f"test/{name.removeprefix('eval/')}": value for name, value in figures.items()})
    if artifacts.picture:
        log.image("before_after", artifacts.picture, state.step)
    metadata = asdict(metadata_of(config, facts, state.best.step))
    log.metrics(
        state.step, {"test/gain over null": state.test.mean("global", REWARD) - state.test.mean("null", REWARD)}
    )
    log.describe(artifacts.table, answer(state.test), artifacts.picture)
    log.register_embedding(artifacts.embedding, facts.base_model, metadata, state.best.step)
    log.finish(
        "finished",
        artifacts=artifacts.named() | {"config": config.output_dir / CONFIG_FILE},
        metrics=figures | _performance(state, outcome),
    )
    _print_results(artifacts, log)


def _performance(state: TrainingState, outcome: dict[str, Any]) -> dict[str, float]:
    return {
        "perf/train_seconds": state.seconds,
        "perf/samples_per_second": outcome["samples_per_second"],
        "perf/workers": float(state.world_size),
        "train/steps": float(state.step),
        "train/best_step": float(state.best.step),
        "train/invalid_samples": float(state.invalid_samples),
    }


def _print_results(artifacts: Artifacts, log: RunLog) -> None:
    say(artifacts.table.read_text(encoding="utf-8"))
    say(f"embedding: {shown_path(artifacts.embedding)}")
    if artifacts.picture:
        say(f"before and after: {shown_path(artifacts.picture)}")
    say(log.review())
