"""Ray Data's console is silenced, and nobody else's."""

import logging

import ray.data  # noqa: F401 (puts its handlers on its logger)

from renege_ray.cluster.pipelines.pipeline import quiet_console


def test_only_rays_own_console_is_silenced() -> None:
    """A handler that somebody else has put on Ray's logger goes on hearing everything."""
    logger = logging.getLogger("ray.data")
    foreign = logging.StreamHandler()
    before = {handler: handler.level for handler in logger.handlers}
    logger.addHandler(foreign)
    try:
        quiet_console()
        silenced = {type(handler).__name__ for handler in logger.handlers if handler.level == logging.CRITICAL}
    finally:
        logger.removeHandler(foreign)
        for handler, level in before.items():
            handler.setLevel(level)
    assert silenced == {"PlainRayHandler"}
    assert foreign.level == logging.NOTSET
