"""How a job begins: check everything, then open Ray, the output folder, the run."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Protocol, TypeVar

from renege_ray.cluster.plan import not_ready
from renege_ray.cluster.session import ray_session as session  # first: it sets up Ray's environment
from renege_ray.cluster.session.console import LOG_FILE, ray_log
from renege_ray.cluster.session.downloads import download_on_others, downloads_of
from renege_ray.cluster.session.resources import Node, WorkerShape, worker_shape
from renege_ray.cluster.tracking import journal
from renege_ray.cluster.tracking.runs import RunLog, open_run, resolve_uri
from renege_ray.config.run import RunConfig, to_mapping, write_config
from renege_ray.output.console import say
from renege_ray.output.folder import CONFIG_FILE, check_output_dir, identify, make_output_dir
from renege_ray.output.hold import hold
from renege_ray.output.storage import check_storage
from renege_ray.training.inputs import find_model_problems, first_problem, reward_names


class HasNotes(Protocol):
    """What a job has read."""

    @property
    def notes(self) -> tuple[str, ...]:
        """What there is to say of it, a line each."""
        ...


class HasGpus(Protocol):
    """What runs on the machines of a cluster."""

    @property
    def gpus(self) -> float:
        """Of a worker."""
        ...


Inputs = TypeVar("Inputs", bound=HasNotes)
Shape = TypeVar("Shape", bound=HasGpus)


def check_for_models(config: RunConfig, *, gradients: bool = True) -> None:
    """Print all that is missing of models and rewards, and raise UserError for it."""
    if problems := find_model_problems(config, gradients=gradients):
        say(not_ready(problems))
        raise first_problem(problems)


def downloads_of_run(config: RunConfig, inputs: object) -> Callable[[], None] | None:
    """What downloads the model and the rewards that a configuration names; see `downloads_of`."""
    return downloads_of([config.model], reward_names(config.rewards), config.rewards)


def run_repeatable(
    name: str,
    config: RunConfig,
    *,
    resume: bool,
    dry_run: bool,
    read: Callable[[RunConfig], Inputs],
    plan: Callable[[RunConfig, Inputs], str],
    work: Callable[[RunConfig, Inputs, Shape, RunLog], int],
    shape_on: Callable[[RunConfig, Sequence[Node], bool], Shape],
    check: Callable[[RunConfig], None] = check_for_models,
    downloads: Callable[[RunConfig, Inputs], Callable[[], None] | None] = downloads_of_run,
) -> int:
    """Check everything; then print the plan, or open Ray, the output folder and the MLflow run, and do the work.

    Args:
        name: the job's.
        config: the whole configuration. Its output folder is made absolute: workers run elsewhere.
        resume: the output folder holds a run of these settings already.
        dry_run: start nothing.
        read: reads and checks what the configuration names.
        shape_on: what is to run on the machines of a cluster, which may be able to grow, such as `workers_on`.
        check: before a dry run reads anything; names all that is missing, where `read` would name the first.
        downloads: what every machine has to do before its workers start, or None.

    Returns:
        The exit code: 0 done, 1 the work failed or too many of its items did, 128 + the signal that stopped it.

    Raises:
        UserError: bad input, before a model is loaded or Ray is started.
    """
    config = config.model_copy(update={"output_dir": config.output_dir.absolute()})
    check_output_dir(config.output_dir, resume=resume)
    journal.check_job(config.output_dir, name)
    resolve_uri(config.tracking_uri, config.output_dir)
    if config.cluster.storage_path is not None:
        check_storage(config.cluster.storage_path, "cluster.storage_path")
    if dry_run:
        check(config)
    else:
        session.check_ray()
    inputs = read(config)
    if session.uses_own_cluster():
        shape_on(config, [session.this_machine()], False)
    if dry_run:
        say(plan(config, inputs))
        return 0
    for note in (*inputs.notes, *session.notes_on(config.output_dir)):
        say(note)
    with (
        hold(config.output_dir),
        ray_log(config.output_dir / LOG_FILE),
        session.shaped_session(config.cluster, partial(shape_on, config)) as shape,
    ):
        make_output_dir(config.output_dir, resume=resume)
        write_config(config, config.output_dir)
        identify(config.output_dir)
        if (wanted := downloads(config, inputs)) is not None:
            download_on_others(wanted, gpus=shape.gpus)
        with open_run(
            config.output_dir,
            job=name,
            experiment=config.experiment,
            params=to_mapping(config),
            tracking_uri=config.tracking_uri,
        ) as log:
            log.artifact(config.output_dir / CONFIG_FILE)
            return work(config, inputs, shape, log)


def workers_on(config: RunConfig, nodes: Sequence[Node], autoscaled: bool) -> WorkerShape:
    """The group of workers that a configuration asks for."""
    return worker_shape(config.cluster, nodes, autoscaled=autoscaled)
