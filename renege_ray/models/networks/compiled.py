"""Compiled networks: few graphs, each of one batch size, and rows that fill up what is short of it.

`torch.compile` with `dynamic=False` makes the fastest graphs, one for each shape, in a minute or two each. The batches
here are ragged: samples leave their rollouts on the way, so hardly two updates have the same sizes. So a compiled
network takes rows by pieces of one size, another one where a gradient is wanted (`BatchSizes`). The rows of a batch are
cut into pieces, and the last piece is filled up with copies of a row, whose outputs are dropped and whose gradient is
zero: rows do not touch each other, so no result changes. Two graphs a network serve training, validation, tuning and
evaluation alike.

Small pieces waste few rows, large ones fill the accelerator. Of the denoiser's work in updates of preset sd15, rows
that only fill up are none on one worker, 2 % on four and 7 % on eight with pieces of 8 (2 with a gradient); with pieces
of 4 it is 2 % on eight, with 16 it is 16 %, with 4 where a gradient is wanted it is 10 % at four gradients a rollout.
Where memory has room for fewer samples than a piece has, the piece becomes smaller (`room_for`), which is another
graph: with micro-batches of one there are three. What is filled up beyond an odd number of samples is one row of at
most 64 x 64 latents, 0.6 GiB of SD1.5's, for which the reserve of the memory plan has room.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor
from torch.utils._triton import has_triton_package

FILLING = 2**15  # latents' places (8 rows of 64 x 64) that fill an accelerator
FILLING_WITH_GRAPH = 2**13  # of gradients little is to be gained: a few at a time waste none
MOST_ROWS, MOST_ROWS_WITH_GRAPH = 8, 2
LAUNCH_BOUND = 4  # both branches of a micro-batch of 2: as few rows wait for the launches of their kernels

_TRITON = (7, 0)  # the least compute capability that Triton makes kernels for
BACKEND: str | Callable[..., Any] = "inductor"  # of torch.compile

_ROOM: ContextVar[int] = ContextVar("room", default=0)


@contextmanager
def room_for(rows: int) -> Iterator[None]:
    """Within, pieces have no more rows than this, or than the batch if that has more: what is known to fit."""
    token = _ROOM.set(rows)
    try:
        yield
    finally:
        _ROOM.reset(token)


# The break-even of compiling, in rows of the denoiser: an assumption, as no GPU has measured it yet.
SECONDS_TO_COMPILE = 360.0  # denoiser, decoder and reward, two graphs each
SECONDS_A_ROW = 0.002  # of SD1.5 at 512 x 512 on an H100 at 40 % of its peak; all else that is supported takes longer
SPEED_UP = 1.25


def break_even() -> int:
    """The rows of the denoiser from which on compiling pays for itself.

    rows * SECONDS_A_ROW * (1 - 1 / SPEED_UP) seconds are gained, SECONDS_TO_COMPILE are spent. With the least that a
    row may take, so that what is compiled pays off anywhere.
    """
    return round(SECONDS_TO_COMPILE / (SECONDS_A_ROW * (1 - 1 / SPEED_UP)))


def decide(wanted: Literal["auto"] | bool, rows: int, device: torch.device) -> tuple[bool, str]:
    """Whether to compile, and a line that says why.

    Args:
        wanted: as `model.compile`.
        rows: of the denoiser that this process has before it, one with a gradient counted as three.
        device: to compute on.
    """
    if wanted != "auto":
        return wanted, f"model.compile {str(wanted).lower()}: as configured"
    if device.type != "cuda":
        return False, f"model.compile auto: no, on {device.type}"
    capability = None if torch.version.hip else torch.cuda.get_device_capability(device)
    if (capability is not None and capability < _TRITON) or not has_triton_package():
        return False, "model.compile auto: no, Triton is not installed or does not know this GPU"
    pays, comparison = pays_off(rows)
    return pays, f"model.compile auto: {comparison}"


def pays_off(rows: int) -> tuple[bool, str]:
    """Whether compiling pays for itself on a GPU, and the comparison in words; see `break_even`."""
    pays = rows >= break_even()
    words = f"{rows:,} rows of the denoiser a worker, from {break_even():,} on it pays for itself"
    return pays, f"{'yes' if pays else 'no'}, {words}"


@dataclass(frozen=True)
class BatchSizes:
    """Rows of a piece: powers of two."""

    plain: int
    with_graph: int
    """Where a gradient is wanted."""

    @classmethod
    def of(cls, places: int) -> "BatchSizes":
        """For a network that sees so many places of latents a row."""
        return cls(
            _power_of_two(min(MOST_ROWS, FILLING // places)),
            _power_of_two(min(MOST_ROWS_WITH_GRAPH, FILLING_WITH_GRAPH // places)),
        )


TOWER_SIZES = BatchSizes(MOST_ROWS, MOST_ROWS_WITH_GRAPH)  # of images of 224 x 224 pixels


def size_within(size: int, room: int) -> int:
    """The rows of a piece: no more than there is room for."""
    return min(size, _power_of_two(room))


def pieces_of(rows: int, size: int) -> list[int]:
    """The rows of each piece of a batch; each is filled up to `size`."""
    return [min(size, rows - start) for start in range(0, rows, size)]


class Compiled:
    """A function of rows, compiled. Tensors of B rows, or dicts of them, are its arguments; one, or a tuple of them, is
    what it returns; other arguments are the same in every call. What would break its graph is an error.

    Where it `replays`, the few rows of a micro-batch of 1 or 2 become a CUDA graph on a GPU. What that returns, it
    overwrites the next time, so it is copied. Only without a gradient, which is where nearly all launches are: a
    forward pass that waits for its backward pass would have to keep its memory from all graphs between the two.
    (This has not run on a GPU yet: none was at hand.)
    """

    def __init__(self, function: Callable[..., Any], sizes: BatchSizes, *, replays: bool = False) -> None:
        self._function, self._sizes, self._replays = function, sizes, replays
        self._made: dict[tuple[int, bool, bool], Callable[..., Any]] = {}

    def __call__(self, *inputs: Any, **named: Any) -> Any:
        """What the function returns for all rows."""
        given: dict[Any, Any] = {**dict(enumerate(inputs)), **named}
        leaves = _tensors(given)
        rows, device = len(leaves[0]), leaves[0].device
        with_graph = torch.is_grad_enabled() and any(leaf.requires_grad for leaf in leaves)
        room = max(_ROOM.get(), rows)
        size = size_within(self._sizes.with_graph if with_graph else self._sizes.plain, room)
        replayed = self._replays and not with_graph and room <= LAUNCH_BOUND and device.type == "cuda"
        function = self._of(size, with_graph, replayed)
        made, start = [], 0
        if not with_graph:  # without one, a view of a leaf says all the same that it requires a gradient
            given = _map(given, Tensor.detach)
        with torch.set_grad_enabled(with_graph):  # one of the two modes, whatever the caller's
            for taken in pieces_of(rows, size):
                piece = _map(given, partial(_cut, start=start, rows=taken, filled=size))
                arguments = [piece.pop(place) for place in range(len(inputs))]
                output = function(*arguments, **piece)
                made.append(_map(output, partial(_kept, rows=taken, copied=replayed)))
                start += taken
            if isinstance(made[0], tuple):
                return tuple(torch.cat(parts) for parts in zip(*made, strict=True))
            return torch.cat(made)

    def _of(self, size: int, with_graph: bool, replayed: bool) -> Callable[..., Any]:
        """Each has a cache of its own: no other graph's guards are tried, and none counts against torch's limit."""
        key = size, with_graph, replayed
        if key not in self._made:
            self._made[key] = torch.compile(  # type: ignore[call-overload]  # its overloads lack isolate_recompiles
                self._function,
                dynamic=False,
                fullgraph=True,
                backend=BACKEND,
                mode="reduce-overhead" if replayed else None,
                isolate_recompiles=True,
            )
        return self._made[key]


def _cut(x: Tensor, start: int, rows: int, filled: int) -> Tensor:
    """Rows of a tensor, filled up with copies of the last one; of one layout always, by which graphs are told apart."""
    piece = x[start : start + rows]
    if filled > rows:
        piece = torch.cat([piece, piece[-1:].detach().expand(filled - rows, *piece.shape[1:])])
    return piece.contiguous()


def _kept(y: Tensor, rows: int, copied: bool) -> Tensor:
    return y[:rows].clone() if copied else y[:rows]


def _map(value: Any, function: Callable[[Tensor], Tensor]) -> Any:
    """A tensor, and what tensors there are in a dict or a tuple, changed."""
    if isinstance(value, tuple):
        return tuple(_map(item, function) for item in value)
    if isinstance(value, dict):
        return {name: _map(item, function) for name, item in value.items()}
    return function(value) if isinstance(value, Tensor) else value


def _tensors(value: Any) -> list[Tensor]:
    if isinstance(value, dict):
        return [leaf for item in value.values() for leaf in _tensors(item)]
    return [value] if isinstance(value, Tensor) else []


def _power_of_two(number: int) -> int:
    """The largest that is not above, at least 1."""
    return 1 << max(0, number.bit_length() - 1)
