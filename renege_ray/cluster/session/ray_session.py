"""Ray for the length of a job: the cluster that the job was given, or one of its own on this machine."""

import logging
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Any, TypeVar

# Ray reads these when it is imported or started. A user's own setting wins.
for _name, _value in {
    "RAY_USAGE_STATS_ENABLED": "0",
    # The controller looks after its workers (and takes their reports) this often; 2 s would hold up short
    # steps.
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",
    # A worker without a GPU keeps the visible devices as they are, without a warning about it.
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_TRAIN_METRICS_ENABLED": "0",
    # Ray Tune's own result files and snapshots are not what a sweep goes on from; a failed trial reports no metric.
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_GLOBAL_CHECKPOINT_S": "1000000",
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",
    "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",
    # The newer output of Ray Tune draws boxes even where it is told to be quiet.
    "RAY_AIR_NEW_OUTPUT": "0",
    # A trial's process stays in the folder where it was started.
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    # A worker's threads that wait give their core away: two workers that share cores and wait actively slow
    # each other down tenfold.
    "OMP_WAIT_POLICY": "PASSIVE",
}.items():
    os.environ.setdefault(_name, _value)

import ray  # noqa: E402 (reads the environment above)
import torch  # noqa: E402
from ray._private import worker  # noqa: E402 (there is no public way to ask for the processes of a node)

from renege_ray.cluster.session.console import MachineWatch  # noqa: E402
from renege_ray.cluster.session.reachable import check_address, check_temporary_folder, provide_token, why_silent  # noqa: E402
from renege_ray.cluster.session.resources import Node  # noqa: E402
from renege_ray.config.jobs import ClusterConfig  # noqa: E402
from renege_ray.config.program import leave_at_once  # noqa: E402
from renege_ray.errors import UserError, first_line  # noqa: E402

Shape = TypeVar("Shape")

_SHUTDOWN_SECONDS = 5.0
_SECONDS_BETWEEN_LOOKS = 5.0
_LONGEST_SILENCE = 40.0  # Ray ends the process after 60 s, without a word of ours
_VITAL = ("gcs_server", "raylet")
_OBJECT_STORE_BYTES = 256 * 2**20  # jobs pass prompts and a configuration around, no data


def uses_own_cluster() -> bool:
    """Whether a job would start Ray itself: no RAY_ADDRESS (`ray job submit` sets it), and Ray does not run
    here yet.
    """
    return not ray.is_initialized() and _address() is None


def check_ray() -> None:
    """Check that Ray can be started, or the given cluster be reached. Raises UserError that says what to set."""
    address = _address()
    if ray.is_initialized():
        return
    if address is None:
        check_temporary_folder()
    else:
        check_address(address)


def _address() -> str | None:
    address = os.environ.get("RAY_ADDRESS", "")
    return None if address in ("", "local") else address


def this_machine() -> Node:
    """What this machine has for a cluster of the job's own."""
    return Node(float(len(os.sched_getaffinity(0))), float(torch.cuda.device_count()))


def notes_on(output_dir: Path) -> tuple[str, ...]:
    """What there is to say of an output folder in the copy that Ray makes of the folder given by --working-dir."""
    if "working_dir_files" not in output_dir.absolute().parts:
        return ()
    return (
        f"the results will lie in Ray's copy of the working folder, {output_dir}, which Ray removes when it needs the "
        "room: give --output-dir an absolute path to keep them",
    )


@contextmanager
def shaped_session(config: ClusterConfig, shape_on: Callable[[Sequence[Node], bool], Shape]) -> Iterator[Shape]:
    """Connect to the given cluster, or start one here and stop it in the end.

    Args:
        config: of the cluster.
        shape_on: what is to run on the machines of the cluster, and whether it can grow; gives what the session yields.

    Raises:
        UserError: the workers do not fit (before anything is started, where this machine is to be the
            cluster), or checkpoints would go to a folder that only one of several machines has.
    """
    if not uses_own_cluster():
        connected = ray.is_initialized()
        if not connected:
            _init(address=_address())
        machines = MachineWatch()
        try:
            yield _shape_on_cluster(config, shape_on)
        finally:
            machines.close()
            if not connected:
                _shut_down()
        return
    here = this_machine()
    shape = shape_on([here], False)
    # Nobody takes this machine away, and each of Ray's processes costs a second or two of it at the start.
    os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")
    _let_workers_import_the_package()
    provide_token()
    _init(
        address="local",
        num_cpus=int(here.cpus),
        num_gpus=int(here.gpus),
        include_dashboard=False,
        object_store_memory=_OBJECT_STORE_BYTES,
    )
    try:
        yield shape
    finally:
        _shut_down()


def _init(**options: Any) -> None:
    """`ray.init`, with our own handlers of signals left in place, and one line where it fails.

    Raises:
        UserError: Ray could not be started, or reached.
    """
    main = threading.current_thread() is threading.main_thread()
    handler = signal.getsignal(signal.SIGTERM)
    try:
        ray.init(**options, logging_level=logging.ERROR, log_to_driver=False)
    except SystemExit:  # of Ray's own handler, whose exit code is not what a shell reports
        if callable(handler):
            handler(signal.SIGTERM, None)
        raise
    except Exception as error:  # of many kinds
        what = "be reached" if _address() else "start on this machine"
        hint = "check RAY_ADDRESS" if _address() else "check RAY_TMPDIR (default: /tmp) and what `ray stop` says"
        raise UserError(f"Ray cannot {what}: {first_line(error)}; {hint}") from None
    finally:
        if main and callable(handler):
            signal.signal(signal.SIGTERM, handler)


def _shut_down() -> None:
    """`ray.shutdown`, which would wait for a Ray that is gone on and on."""
    ending = threading.Thread(target=ray.shutdown, name="ray-shutdown", daemon=True)
    ending.start()
    ending.join(timeout=_SHUTDOWN_SECONDS)
    if ending.is_alive():
        if worker._global_node is not None:
            worker._global_node.kill_all_processes(check_alive=False)
        leave_at_once()


class LossWatch:
    """Looks whether Ray has lost what no work goes on without: a process of its own here, or its head elsewhere."""

    def __init__(self) -> None:
        self._next_look = 0.0
        self._silent_since = float("inf")

    def __call__(self) -> str:
        """What is lost; "" if nothing is. Cheap enough to be asked often."""
        node, now = worker._global_node, time.monotonic()
        if node is None:
            return ""
        if dead := [kind for kind, _ in node.dead_processes() if kind in _VITAL]:
            return f"Ray's {dead[0]} on this machine has ended"
        if not node.all_processes and now > self._next_look:  # somebody else's cluster
            self._next_look = now + _SECONDS_BETWEEN_LOOKS
            host, _, port = str(node.gcs_address).rpartition(":")
            silent = why_silent(host, int(port), seconds=1.0)
            self._silent_since = min(self._silent_since, now) if silent else float("inf")
        if now - self._silent_since > _LONGEST_SILENCE:  # a head may be started again
            return f"the head of the cluster, {node.gcs_address}, does not answer any more"
        return ""


def _shape_on_cluster(config: ClusterConfig, shape_on: Callable[[Sequence[Node], bool], Shape]) -> Shape:
    resources = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    nodes = [Node(found.get("CPU", 0.0), found.get("GPU", 0.0)) for found in resources if found.get("CPU")]
    shape = shape_on(nodes, _can_grow())
    if len(nodes) > 1 and config.storage_path is None:
        raise UserError(
            f"cluster.storage_path: the cluster has {len(nodes)} machines, which do not all see the output "
            "folder; give a folder or URI that they share for checkpoints, such as /mnt/shared/renege or s3://bucket/renege"
        )
    return shape


def _can_grow() -> bool:
    from ray._private import state  # what Ray Train asks, too; there is no public way

    return state.state.get_max_resources_from_cluster_config() is not None


def _let_workers_import_the_package() -> None:
    """Workers inherit the environment; from a checkout that is not installed they find the package by
    PYTHONPATH.
    """
    try:
        distribution("renege_ray")
    except PackageNotFoundError:
        root = str(Path(__file__).resolve().parents[3])
        paths = [root, *filter(None, [os.environ.get("PYTHONPATH")])]
        os.environ["PYTHONPATH"] = os.pathsep.join(paths)
