"""Lines that say how far work is."""

from renege_ray.output.progress import Counter


def test_a_counter_is_silent_where_work_is_short_and_tells_when_it_will_end() -> None:
    said: list[str] = []
    now = iter([0.0, 4.0, 11.0, 12.0, 30.0, 40.0])
    counter = Counter(100, "baselines: image", said.append, every=10.0, clock=lambda: next(now))
    for count in (10, 15, 5, 30, 40):
        counter.add(count)
    assert said == ["baselines: image 25/100  ETA 0:33", "baselines: image 60/100  ETA 0:20"]
