"""Frozen modules that are on the accelerator only while they are used, and what they make of texts, once a text.

Text encoders (T5: 9.5 GB) and the text towers of rewards read each prompt once; denoiser, decoder and image towers need
the room all the time.
"""

from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress

import torch
from torch import Tensor, nn


class OnDemand:
    """Modules whose weights rest on the host, and are copied to a device for the length of a block.

    They are frozen, so nothing is copied back: the device's copy is dropped. On a CPU nothing happens at all. A text is
    never read by a copy on the CPU instead: there its last bits would be others.
    """

    def __init__(self, modules: Iterable[nn.Module], device: torch.device) -> None:
        """Take the modules to the host. `device`: where they compute."""
        self.device = device
        self._modules = tuple(modules)
        self._users = 0
        for module in self._modules:
            if not any(weight.is_meta for weight in module.parameters()):  # there is nothing to move
                nn.Module.to(module, "cpu")

    @contextmanager
    def on_device(self) -> Iterator[None]:
        """Inside, the modules are on the device; a block within another one moves nothing."""
        self._users += 1
        resting = self._tensors() if self._users == 1 and self.device.type != "cpu" else []
        try:
            copies = {tensor: tensor.to(self.device) for *_, tensor in resting}  # one of what two modules share
            for module, name, tensor in resting:
                copy = copies[tensor]
                is_weight = isinstance(tensor, nn.Parameter)
                setattr(module, name, nn.Parameter(copy, requires_grad=False) if is_weight else copy)
            yield
        finally:
            self._users -= 1
            for module, name, tensor in resting:
                setattr(module, name, tensor)
            copies = {}
            if resting and self.device.type == "cuda":
                torch.cuda.empty_cache()  # whole segments become free, for tensors of other sizes

    def _tensors(self) -> list[tuple[nn.Module, str, Tensor]]:
        """Weights and buffers: whose they are, and by which name."""
        parts = [part for module in self._modules for part in module.modules()]
        return [
            (part, name, tensor)
            for part in parts
            for name, tensor in (*part.named_parameters(recurse=False), *part.named_buffers(recurse=False))
        ]


class OncePerText:
    """What a frozen module makes of texts, each alone: then it is a function of the text, bit for bit, whatever was
    asked for before. A resumed run depends on that. The latest `capacity` different ones are kept.
    """

    def __init__(
        self, compute: Callable[[str], Tensor], using: Callable[[], AbstractContextManager[None]], capacity: int
    ) -> None:
        """`compute`: of one text. `using`: a block in which the module is where it computes."""
        if capacity < 1:
            raise ValueError(f"OncePerText: capacity must be at least 1, got {capacity}")
        self._compute, self._using, self._capacity = compute, using, capacity
        self._kept: OrderedDict[str, Tensor] = OrderedDict()

    def __call__(self, texts: Sequence[str], made: Callable[[int], None] = lambda count: None) -> list[Tensor]:
        """One tensor a text. All that are missing are computed in one block; `made` is told of each of them."""
        found = {text: self._kept[text] for text in dict.fromkeys(texts) if text in self._kept}
        missing = [text for text in dict.fromkeys(texts) if text not in found]
        if missing:
            with self._using():
                for text in missing:
                    found[text] = self._kept[text] = self._compute(text)
                    made(1)
        for text in found:
            self._kept.move_to_end(text)
        while len(self._kept) > self._capacity:
            self._kept.popitem(last=False)
        return [found[text] for text in texts]

    def prepare(self, texts: Iterable[str], made: Callable[[int], None] = lambda count: None) -> None:
        """Compute these beforehand, so that the module is moved once for all; room is made to keep them.

        A text that raises ends this; it raises again where it is asked for, and there it is known what to do about it.
        """
        texts = list(dict.fromkeys(texts))
        self._capacity = max(self._capacity, len(texts))
        with suppress(Exception):
            self(texts, made)
