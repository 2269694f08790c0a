"""Notes between processes: in their order, only to those that have the mailbox, and in nobody's way when they end."""

import time
from typing import Any

import pytest

pytestmark = [pytest.mark.ray, pytest.mark.timeout(120)]


def post_and_die(mailbox: Any, lines: list[str]) -> None:
    """A worker that is killed after its last line."""
    import os

    for line in lines:
        mailbox.post(line)
    os._exit(1)


def wait_for_the_request(mailbox: Any) -> int:
    """How often a worker has looked before it was asked to stop."""
    from renege_ray.cluster.session.mailbox import StopWatch

    asked_to_stop = StopWatch(mailbox)
    looks = 0
    while not asked_to_stop():
        looks += 1
        time.sleep(0.01)
    mailbox.post("stopped")
    return looks


def test_notes_go_both_ways(ray_cluster: str) -> None:
    import ray

    from renege_ray.cluster.session.mailbox import Mailbox

    mailbox, another = Mailbox(), Mailbox()
    assert mailbox.take() == []
    worker = ray.remote(num_cpus=4, max_retries=0)  # a group that fills all CPUs fits beside mailboxes
    for lines in (["first", "second"], ["of the one that replaces it"]):
        with pytest.raises(ray.exceptions.WorkerCrashedError):
            ray.get(worker(post_and_die).remote(mailbox, lines))
        assert mailbox.take() == lines and mailbox.take() == []

    waiting = worker(wait_for_the_request).remote(mailbox)
    assert not ray.wait([waiting], timeout=2.0)[0]
    mailbox.request_stop()
    assert ray.get(waiting, timeout=30.0) > 0 and mailbox.take() == ["stopped"]
    assert another.take() == [] and not another.stop_requested()
    mailbox.close()
    another.close()


def test_a_mailbox_that_is_gone_holds_nobody_up(ray_cluster: str) -> None:
    """Closed, or gone with its driver: notes are lost, and the work goes on at once."""
    import ray

    from renege_ray.cluster.session.mailbox import Mailbox, StopWatch

    class Driver:
        def make(self) -> Mailbox:
            self.mailbox = Mailbox()
            self.mailbox.post("a line")
            return self.mailbox

    driver = ray.remote(num_cpus=0)(Driver).remote()
    orphan = ray.get(driver.make.remote())
    assert orphan.take() == ["a line"]
    ray.kill(driver)
    closed = Mailbox()
    closed.post("a line")
    closed.close()
    closed.close()
    for mailbox in (closed, orphan):
        deadline = time.monotonic() + 30
        while mailbox._ask("lines", 0) is not None:  # Ray takes a moment to end it
            assert time.monotonic() < deadline
        started = time.monotonic()
        mailbox.post("another")
        mailbox.request_stop()
        watch = StopWatch(mailbox)
        assert mailbox.take() == [] and not watch() and not mailbox.stop_requested()
        assert time.monotonic() - started < 1.0
