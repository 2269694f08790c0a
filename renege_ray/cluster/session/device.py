"""Which device Ray has given to this process, whichever of its libraries has started it."""

import os

import ray
import torch


def worker_device() -> torch.device:
    """The first GPU of this process, from now on its current one; the CPU if it has none.

    Ray Train shows its workers the GPUs of all workers of the machine, Ray Data and Ray Tune a process its own alone.
    (`ray.train.torch.get_device` finds the same, but refuses to outside of Ray Train.)
    """
    own = [str(gpu) for gpu in ray.get_gpu_ids()]
    if not own:
        return torch.device("cpu")
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    # Where Ray has been told to leave that variable alone, its numbers are those of the machine.
    device = torch.device("cuda", min(visible.split(",").index(gpu) if visible else int(gpu) for gpu in own))
    torch.cuda.set_device(device)
    return device
