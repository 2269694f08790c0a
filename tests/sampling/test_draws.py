import subprocess
import sys

import pytest
import torch

from renege_ray.sampling.draws import draw_index, generator, noise


def test_the_same_key_gives_the_same_numbers_whatever_was_drawn_before() -> None:
    first = noise((4, 8, 8), 0, "noise", 3, 7)
    torch.randn(100)
    noise((5,), 1)
    assert torch.equal(first, noise((4, 8, 8), 0, "noise", 3, 7))
    assert first.dtype == torch.float32 and first.device.type == "cpu"


def test_the_global_generator_is_left_alone() -> None:
    before = torch.random.get_rng_state()
    noise((3,), 0)
    draw_index(5, 0)
    assert torch.equal(before, torch.random.get_rng_state())


@pytest.mark.parametrize(
    ("a", "b"),
    [((1, 2), (12,)), ((1, 2), (2, 1)), ((1,), ("1",)), (("a", "b"), ("a,b",)), (("é",), ("e\u0301",)), ((), (0,))],
)
def test_different_keys_give_different_numbers(a: tuple[int | str, ...], b: tuple[int | str, ...]) -> None:
    assert not torch.equal(noise((4,), *a), noise((4,), *b))


def test_numbers_do_not_depend_on_the_process() -> None:
    code = "from renege_ray.sampling.draws import *; print(noise((3,), 5, 'x').tolist(), draw_index(1000, 5, 'x'))"
    other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert other.strip() == f"{noise((3,), 5, 'x').tolist()} {draw_index(1000, 5, 'x')}"


def test_noise_is_standard_normal() -> None:
    values = torch.cat([noise((64,), 0, i) for i in range(500)])
    assert abs(float(values.mean())) < 0.03
    assert abs(float(values.std()) - 1) < 0.03


def test_indices_are_uniform() -> None:
    counts = torch.bincount(torch.tensor([draw_index(7, "index", i) for i in range(7000)]), minlength=7)
    chi_squared = float(((counts - 1000.0) ** 2 / 1000).sum())
    assert chi_squared < 22.5  # 6 degrees of freedom: 0.1 % of fair draws are above


def test_an_index_needs_something_to_draw_from() -> None:
    with pytest.raises(ValueError, match="at least 1, got 0"):
        draw_index(0, 1)


def test_generator_is_seeded_by_the_key() -> None:
    assert generator(1, "a").initial_seed() == generator(1, "a").initial_seed() != generator(1, "b").initial_seed()
