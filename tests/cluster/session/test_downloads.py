"""What is from the Hub is downloaded on every machine that a worker may come to, once."""

import subprocess
import sys
from pathlib import Path

import pytest

from renege_ray.cluster.session.downloads import downloads_of
from renege_ray.config.run import ModelConfig, RewardsConfig

SCRIPT = """
import sys
from functools import partial
from pathlib import Path
from renege_ray.cluster.session import ray_session  # first: it sets up Ray's environment
import ray
from ray.cluster_utils import Cluster
from renege_ray.cluster.session.downloads import download_on_others
from renege_ray.errors import UserError

cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
for gpus in (0, 1, 1):
    cluster.add_node(num_cpus=1, num_gpus=gpus)
cluster.wait_for_nodes()
ray.init(address=cluster.address, log_to_driver=False)

def work(folder, problem=""):
    import ray
    from renege_ray.errors import UserError
    with (Path(folder) / ray.get_runtime_context().get_node_id()).open("a") as file:
        file.write("x")
    if problem:
        raise UserError(problem)

def here():
    return ray.get_runtime_context().get_node_id()

for gpus, count in ((0.0, 3), (1.0, 2)):
    folder = Path(sys.argv[1], str(gpus))
    folder.mkdir()
    download_on_others(partial(work, folder), gpus=gpus)
    found = {file.name: file.read_text() for file in folder.iterdir()}
    assert len(found) == count and set(found.values()) == {"x"} and here() not in found, (found, here())
try:
    download_on_others(partial(work, folder, "model 'a/b' is gated"), gpus=1.0)
except UserError as error:
    print(error)
"""


@pytest.mark.ray
def test_each_other_machine_does_it_once(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", SCRIPT, str(tmp_path)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0] == "3 other machine(s) download what they miss of models and rewards"
    assert lines[3].startswith("3/3 have all (") and lines[-1].startswith("on the machine ")
    assert "model 'a/b' is gated" in lines[-1]


def test_only_what_is_from_the_hub(tmp_path: Path) -> None:
    def wanted(
        model: str, *rewards: str, checkpoints: dict[str, str] | None = None
    ) -> tuple[list[str], list[str]] | None:
        config = RewardsConfig(train=dict.fromkeys(rewards, 1.0), checkpoints=checkpoints or {})
        work = downloads_of([ModelConfig(id=model)], [*rewards, "judge"], config)
        return work and ([found.id for found in work.args[0]], work.args[1])  # type: ignore[attr-defined]

    assert wanted("toy", "toy") is None and wanted(str(tmp_path), "toy") is None
    assert wanted("a/b", "toy") == (["a/b"], [])
    assert wanted(str(tmp_path), "hpsv2") == ([], ["hpsv2"])
    mine = {"hpsv2": str(tmp_path)}
    assert wanted("toy", "hpsv2", checkpoints=mine) == ([], ["hpsv2"]), "CLIP's vocabulary is still from the Hub"
    assert wanted("toy", "hpsv2", checkpoints=mine | {"clip_vocabulary": str(tmp_path)}) is None
