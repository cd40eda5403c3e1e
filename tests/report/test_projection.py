import re
from pathlib import Path

import numpy as np
import pytest

from tests.report.run_folder import write_projection
from vidcsl.errors import UserError
from vidcsl.report.maps import horizon, read_projection


def _dots(panel: str) -> list[np.ndarray]:
    """The points of the other videos and of the lit ones."""
    paths = re.findall(r'class="dots(?: lit)?" d="([^"]*)"', panel)
    return [np.array(re.findall(r"M([\d.]+) ([\d.]+)h0", path), float) for path in paths]


def test_each_class_is_lit_among_all_others(tmp_path: Path) -> None:
    write_projection(tmp_path / "projection.npz", classes=["b", "a"], videos=10)
    projection = read_projection(tmp_path / "projection.npz")
    assert projection is not None
    assert [(name, count) for name, count, _ in projection.panels] == [("a", 10), ("b", 10)]
    (rest_a, lit_a), (rest_b, lit_b) = (_dots(panel) for _, _, panel in projection.panels)
    assert np.array_equal(lit_a, rest_b)
    assert np.array_equal(lit_b, rest_a)
    every = np.concatenate([lit_a, lit_b])
    assert every.min() >= 0
    assert every.max() <= 160


def test_up_is_up_and_rings_stand_at_true_angles(tmp_path: Path) -> None:
    angles = np.array([[0, 30], [-15, 0], [0, 0]], np.float32)
    np.savez(tmp_path / "p.npz", angles=angles, labels=np.array(["x", "x", "x"]), shown=0.5)
    projection = read_projection(tmp_path / "p.npz")
    assert projection is not None
    assert projection.horizon == 30
    panel = projection.panels[0][2]
    (_, lit) = _dots(panel)
    assert lit.tolist() == [[80, 8], [44, 80], [80, 80]]
    assert re.findall(r'rx="([\d.]+)"', panel) == ["36.0", "72.0"]


@pytest.mark.parametrize(
    ("farthest", "last"), [(0, 15), (15, 15), (15.1, 30), (91, 105), (180, 180)]
)
def test_the_last_ring_holds_all(farthest: float, last: int) -> None:
    assert horizon(np.array([[0, farthest], [0, 0]])) == last
    assert horizon(np.array([[np.nan, farthest]])) == last


def test_many_classes_and_videos_are_thinned(tmp_path: Path) -> None:
    classes = [f"class {i:02d}" for i in range(30)]
    write_projection(tmp_path / "projection.npz", classes=classes, videos=60)
    projection = read_projection(tmp_path / "projection.npz")
    assert projection is not None
    assert len(projection.panels) == 12
    assert len(projection.classes) == 30
    assert str(projection.map).count("<circle") == 800
    assert all(len(_dots(panel)[0]) == 600 for _, _, panel in projection.panels)


def test_names_never_become_markup(tmp_path: Path) -> None:
    write_projection(tmp_path / "projection.npz", classes=['"><script>'], videos=3)
    projection = read_projection(tmp_path / "projection.npz")
    assert projection is not None
    assert "<script" not in projection.panels[0][2]


def test_absent_and_damaged_files(tmp_path: Path) -> None:
    assert read_projection(tmp_path / "none.npz") is None
    (tmp_path / "bad.npz").write_bytes(b"PK nonsense")
    np.savez(tmp_path / "less.npz", angles=np.zeros((2, 2)))
    np.savez(tmp_path / "odd.npz", angles=np.zeros((2, 3)), labels=np.array(["a", "b"]), shown=0.5)
    for name in ("bad", "less", "odd"):
        with pytest.raises(UserError, match=name):
            read_projection(tmp_path / f"{name}.npz")
