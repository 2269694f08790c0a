"""Which device this process computes on, whichever of Ray's libraries has started it."""

import os

import ray
import torch

from renege_ray.config.jobs import ClusterConfig
from renege_ray.models.hardware import without_cuda


def worker_device(cluster: ClusterConfig) -> torch.device:
    """The first GPU that Ray has given to this process, from now on its current one. If there is none: the CPU, or
    Apple's GPU, of which Ray knows nothing, unless the configuration wants no GPUs. Of a GPU that several share, the
    process is held to its part of the memory: what it took beyond that, another one would miss.

    Ray Train shows its workers the GPUs of all workers of the machine, Ray Data and Ray Tune a process its own alone.
    (`ray.train.torch.get_device` finds the same, but refuses to outside of Ray Train.)
    """
    own = [str(gpu) for gpu in ray.get_gpu_ids()]
    if not own:
        return torch.device("cpu") if cluster.use_gpu is False else without_cuda()
    # Batches of changing sizes leave gaps in the memory; segments that grow leave few. Read when CUDA is first used.
    os.environ.setdefault("PYTORCH_ALLOC_CONF", "expandable_segments:True")
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    # Where Ray has been told to leave that variable alone, its numbers are those of the machine.
    device = torch.device("cuda", min(visible.split(",").index(gpu) if visible else int(gpu) for gpu in own))
    torch.cuda.set_device(device)
    if cluster.gpus_per_worker < 1:
        torch.cuda.set_per_process_memory_fraction(cluster.gpus_per_worker, device)
    return device
