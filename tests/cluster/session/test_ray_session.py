"""What is said before Ray is started."""

from pathlib import Path

from renege_ray.cluster.session.ray_session import notes_on


def test_results_in_a_copy_that_ray_will_remove(tmp_path: Path) -> None:
    copied = tmp_path / "session" / "runtime_resources" / "working_dir_files" / "_ray_pkg_0" / "outputs"
    (note,) = notes_on(copied)
    assert str(copied) in note and "--output-dir" in note and "\n" not in note
    assert notes_on(tmp_path / "outputs") == ()
