from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.report.run_folder import write_projection
from vidcsl.errors import UserError
from vidcsl.report.charts import embedded
from vidcsl.report.maps import FeatureMaps, last_ring, read_maps


def read(path: Path) -> FeatureMaps:
    maps = read_maps(path)
    assert maps is not None
    return maps


def dots(panel: dict[str, Any]) -> list[np.ndarray]:
    """The points of the other videos and of the class's own."""
    layers = [layer["data"]["values"] for layer in panel["layer"][1:]]
    return [np.array([(row["x"], row["y"]) for row in values]) for values in layers]


def test_each_class_stands_out_among_all_others(tmp_path: Path) -> None:
    write_projection(tmp_path / "projection.npz", classes=["b", "a"], videos=10)
    maps = read(tmp_path / "projection.npz")
    assert [(name, count) for name, count, _ in maps.panels] == [("a", 10), ("b", 10)]
    (rest_a, lit_a), (rest_b, lit_b) = (dots(panel) for _, _, panel in maps.panels)
    assert np.array_equal(lit_a, rest_b)
    assert np.array_equal(lit_b, rest_a)
    assert np.abs(np.concatenate([lit_a, lit_b])).max() <= maps.horizon


def test_up_is_up_and_rings_stand_at_true_angles(tmp_path: Path) -> None:
    angles = np.array([[0, 30], [-15, 0], [0, 0]], np.float32)
    np.savez(tmp_path / "p.npz", angles=angles, labels=np.array(["x", "x", "x"]), shown=0.5)
    maps = read(tmp_path / "p.npz")
    assert (maps.horizon, maps.neighbours) == (30, None)
    panel = maps.panels[0][2]
    assert dots(panel)[1].tolist() == [[0, 30], [-15, 0], [0, 0]]
    assert [row["ring"] for row in panel["layer"][0]["data"]["values"]] == [15, 30]
    assert panel["encoding"]["y"]["scale"]["domain"] == [-30, 30]


def test_neighbours_are_linked_and_counted(tmp_path: Path) -> None:
    np.savez(
        tmp_path / "p.npz",
        angles=np.array([[0, 0], [3, 4], [0, 10]], np.float32),
        labels=np.array(["a", "b", "a"]),
        shown=0.5,
        neighbours=np.array([[1, 2], [0, 2], [1, 0]]),
        videos=np.array(["x.mp4", "y.mp4", "z.mp4"]),
    )
    neighbours = read(tmp_path / "p.npz").neighbours
    assert neighbours is not None
    _, lines, points, _ = neighbours["layer"]
    first = points["data"]["values"][0]
    assert (first["video"], first["found"], first["near"]) == ("x.mp4", "1 of 2", "b, a")
    links = [row for row in lines["data"]["values"] if row["id"] == 0]
    assert [(row["x2"], row["y2"], row["same"]) for row in links] == [(3, 4, False), (0, 10, True)]


@pytest.mark.parametrize(
    ("farthest", "last"), [(0, 15), (15, 15), (15.1, 30), (91, 105), (180, 180)]
)
def test_the_last_ring_holds_all(farthest: float, last: int) -> None:
    assert last_ring(np.array([[0, farthest], [0, 0]])) == last
    assert last_ring(np.array([[np.nan, farthest]])) == last


def test_many_classes_and_videos_are_thinned(tmp_path: Path) -> None:
    classes = [f"class {i:02d}" for i in range(30)]
    write_projection(tmp_path / "projection.npz", classes=classes, videos=60)
    maps = read(tmp_path / "projection.npz")
    assert len(maps.panels) == 12
    assert len(maps.classes) == 30
    assert maps.neighbours is not None
    assert len(maps.neighbours["layer"][2]["data"]["values"]) == 800
    assert all(len(dots(panel)[0]) == 200 for _, _, panel in maps.panels)


def test_names_never_become_markup(tmp_path: Path) -> None:
    write_projection(tmp_path / "projection.npz", classes=['"></script><script>'], videos=3)
    maps = read(tmp_path / "projection.npz")
    for chart in (maps.neighbours, maps.panels[0][2]):
        assert embedded(chart or {}).count("<script") == 1


def test_absent_and_damaged_files(tmp_path: Path) -> None:
    assert read_maps(tmp_path / "none.npz") is None
    (tmp_path / "bad.npz").write_bytes(b"PK nonsense")
    np.savez(tmp_path / "less.npz", angles=np.zeros((2, 2)))
    np.savez(tmp_path / "odd.npz", angles=np.zeros((2, 3)), labels=np.array(["a", "b"]), shown=0.5)
    for name in ("bad", "less", "odd"):
        with pytest.raises(UserError, match=name):
            read_maps(tmp_path / f"{name}.npz")
