"""When `model.compile: auto` compiles, and that old runs go on whatever it says."""

import pytest
import torch

from renege_ray.cluster.compilation import rows_of, settle
from renege_ray.cluster.cost import Cost
from renege_ray.config.fingerprint import fingerprint
from renege_ray.config.run import ModelConfig, parse_config
from renege_ray.models.networks import compiled
from renege_ray.models.networks.compiled import SECONDS_A_ROW, SECONDS_TO_COMPILE, SPEED_UP, break_even, decide

GPU, CPU = torch.device("cuda"), torch.device("cpu")


@pytest.fixture
def a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setattr(compiled, "has_triton_package", lambda: True)


def test_at_the_break_even_as_much_is_gained_as_spent() -> None:
    eager = break_even() * SECONDS_A_ROW
    assert eager - eager / SPEED_UP == pytest.approx(SECONDS_TO_COMPILE, rel=1e-3)


def test_auto_compiles_what_is_long_enough_on_a_gpu(a_gpu: None) -> None:
    for rows, expected in ((break_even() - 1, False), (break_even(), True)):
        found, why = decide("auto", rows, GPU)
        assert found is expected and f"{rows:,}" in why and f"{break_even():,}" in why
    found, why = decide("auto", 10**9, CPU)
    assert not found and "cpu" in why


@pytest.mark.parametrize("wanted", [True, False])
def test_what_is_configured_is_done(wanted: bool) -> None:
    assert decide(wanted, 0, GPU)[0] is decide(wanted, 10**9, CPU)[0] is wanted


def test_an_old_gpu_or_no_triton_is_no_error(a_gpu: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (6, 1))
    assert not decide("auto", 10**9, GPU)[0]
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setattr(compiled, "has_triton_package", lambda: False)
    found, why = decide("auto", 10**9, GPU)
    assert not found and "Triton" in why


def test_workers_share_the_rows(a_gpu: None) -> None:
    cost = Cost(2 * break_even(), break_even(), 0, 0, 0)
    assert rows_of(cost) == 4 * break_even()
    assert [settle(ModelConfig(), cost, n, GPU)[0].compile for n in (1, 4, 5)] == [True, True, False]


def test_runs_of_before_go_on() -> None:
    """Their configurations say false, which was the default; what auto comes to is a matter of the machine."""
    auto, off, on = (fingerprint(parse_config({"model": {"compile": value}})) for value in ("auto", False, True))
    assert parse_config({}).model.compile == "auto"
    assert auto == off != on
