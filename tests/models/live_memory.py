"""Counts the bytes of all live tensors; on torch's fake tensors, at any size and on any machine."""

import weakref
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class LiveMemory(TorchDispatchMode):
    """Adds up storages from when an operation makes them until they are freed.

    Attributes:
        live: bytes of the storages that were made under this mode and live.
        peak: the most there were.
    """

    def __init__(self, network: torch.nn.Module) -> None:
        """`network`: whose weights do not count, though operations make views of them."""
        super().__init__()
        self.live = self.peak = 0
        self._seen = {weight.untyped_storage()._cdata for weight in [*network.parameters(), *network.buffers()]}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(made):
            if isinstance(tensor, torch.Tensor):
                self._note(tensor)
        return made

    def _note(self, tensor: torch.Tensor) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._seen:
            return
        size = storage.nbytes()
        self._seen.add(key)
        self.live += size
        self.peak = max(self.peak, self.live)
        weakref.finalize(storage, self._freed, key, size)

    def _freed(self, key: int, size: int) -> None:
        self._seen.discard(key)
        self.live -= size
