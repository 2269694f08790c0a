"""Batches in pieces that fit: halved, balanced, measured; and items that raise."""

from collections.abc import Sequence

import pytest
import torch

from renege_ray.errors import UserError
from renege_ray.sampling.batches import MicroBatches, is_out_of_memory, together_or_alone
from renege_ray.sampling.memory import GradientMemory


def sizes(batches: MicroBatches, count: int) -> list[int]:
    return [len(piece) for piece, _ in batches.over(range(count), list)]


@pytest.mark.parametrize(
    ("given", "count", "expected"), [(13, 16, [8, 8]), (5, 16, [4, 4, 4, 4]), (16, 16, [16]), (3, 7, [3, 2, 2])]
)
def test_pieces_are_of_nearly_the_same_size(given: int, count: int, expected: list[int]) -> None:
    assert sizes(MicroBatches(given, 16, "size"), count) == expected
    assert sizes(MicroBatches(given, 16, "size"), 0) == []


def test_the_size_is_halved_until_it_fits_and_kept() -> None:
    tried: list[int] = []

    def compute(piece: Sequence[int]) -> list[int]:
        tried.append(len(piece))
        if len(piece) > 3:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return list(piece)

    batches = MicroBatches("auto", 16, "size")
    made = [item for _, piece in batches.over(range(16), compute) for item in piece]
    assert made == list(range(16)), "each is computed once, in order"
    assert tried[:4] == [16, 8, 4, 2] and max(tried[3:]) == batches.size == 2
    for given in (16, 1):
        with pytest.raises(UserError, match=f"size: {given} does not fit"):
            list(MicroBatches(given, 16, "size").over(range(16), lambda piece: compute([0] * 9)))
    with pytest.raises(torch.OutOfMemoryError):  # for whoever computes a larger piece around it
        list(MicroBatches("auto", 1, "size").over([1], lambda piece: compute([0] * 9), nested=True))


@pytest.mark.parametrize(
    ("error", "is_one"),
    [
        (torch.OutOfMemoryError("Tried to allocate 2 GiB"), True),
        (RuntimeError("CUDA error: out of memory"), True),
        (RuntimeError("MPS backend out of memory (MPS allocated: 8 GB)"), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), True),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"), True),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False),
    ],
)
def test_who_has_run_out_of_memory(error: Exception, is_one: bool) -> None:
    assert is_out_of_memory(error) == is_one


class Used:
    """A meter of an accelerator on which a piece takes `fixed` + `slope` GiB a sample."""

    def __init__(self, fixed: float, slope: float) -> None:
        self._fixed, self._slope, self.samples = fixed, slope, 0

    def start(self) -> None:
        self.samples = 0

    def peak(self) -> float:
        return self._fixed + self._slope * self.samples


@pytest.mark.parametrize(
    ("fixed", "slope", "largest"),
    [(4, 2, 8), (2, 1, 18), (8, 4, 3), (0.1, 0.01, 64)],  # of 20 GiB, planned as 4 + 2 b: 8 at once
)
def test_the_size_follows_what_pieces_really_use(fixed: float, slope: float, largest: int) -> None:
    used = Used(fixed, slope)

    def compute(piece: Sequence[int]) -> list[int]:
        used.samples = len(piece)
        return list(piece)

    plan = GradientMemory(20.0, 4.0, 2.0, 1, saving=False)
    batches = MicroBatches("auto", 64, "size", memory=plan, meter=used)
    found = [len(piece) for _ in range(3) for piece, _ in batches.over(range(64), compute)]
    assert sum(found) == 3 * 64 and found[0] == 8
    assert all(fixed + slope * count <= 20 for count in found[1:])
    assert batches.size == largest
    known = MicroBatches("auto", 64, "size", known=5, memory=plan, meter=used)
    assert {len(piece) for piece, _ in known.over(range(10), compute)} == {5}, "a resumed run goes on as it was"


def test_an_item_that_raises_spoils_no_other() -> None:
    seen: list[int] = []

    def inverse(items: Sequence[int]) -> list[float]:
        seen.append(len(items))
        if 5 in items:
            raise UserError("five")
        if 4 in items:
            raise KeyError("four")
        return [1 / item for item in items]

    def compute(*items: int, fatal: tuple[type[Exception], ...] = ()) -> list[float | tuple[int, str]]:
        seen.clear()
        return together_or_alone(items, inverse, lambda item, reason: (item, reason), fatal)

    assert compute(1, 2) == [1, 0.5] and seen == [2]
    assert compute(2, 0, 1) == [0.5, (0, "ZeroDivisionError: division by zero"), 1] and seen == [3, 1, 1, 1]
    assert compute(4) == [(4, "KeyError: 'four'")] and seen == [1]
    assert compute() == [] and seen == []
    for items, fatal, error in (((5, 1), (), UserError), ((1, 4), (LookupError,), KeyError)):
        with pytest.raises(error):
            compute(*items, fatal=fatal)
        assert seen == [2]
