"""Floating-point operations, counted by torch's own formulas.

torch's `FlopCounterMode` also follows modules, by hooks that `torch.autograd.grad` refuses where it goes back to a
module's own input, as the way from the reward to x_0 does.
"""

from typing import Any

from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry


class FlopCount(TorchDispatchMode):
    """Counts while it is entered.

    Attributes:
        total: of matrix products, convolutions and attention, forward and backward.
    """

    def __init__(self) -> None:
        super().__init__()
        self.total = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """The operation, counted."""
        made = func(*args, **(kwargs or {}))
        formula = flop_registry.get(func._overloadpacket)
        if formula is not None:
            self.total += formula(*args, **(kwargs or {}), out_val=made)
        return made
