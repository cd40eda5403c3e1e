"""A teacher's array: in the list's order, computed once, and mistakes in a user's file."""

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from tests.data.made_videos import write_numbered
from vidcsl.data.lists import VideoList, read_list, write_list
from vidcsl.errors import UserError
from vidcsl.teachers import vectors
from vidcsl.teachers.motion import describe_motion
from vidcsl.teachers.vectors import COMPONENTS, half_whitened, join, motion_vectors, read_features


def made_list(folder: Path, names: list[str]) -> VideoList:
    write_list(folder / "train.csv", [(name, "", "") for name in names])
    return read_list(folder / "train.csv", root=folder)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("videos")
    for number, frames in enumerate((20, 12, 25)):
        write_numbered(folder / f"v{number}.mp4", frames=frames)
    (folder / "damaged.mp4").write_bytes(b"no video")
    return folder


def test_rows_follow_the_list_and_are_computed_once(folder: Path, tmp_path: Path) -> None:
    names = ["v2.mp4", "damaged.mp4", "v0.mp4"]
    videos = made_list(folder, names)
    found, failures = motion_vectors(videos, tmp_path, workers=1)
    assert list(failures) == [str(folder / "damaged.mp4")]
    assert not found[1].any()
    for row in (0, 2):
        np.testing.assert_array_equal(found[row], describe_motion(videos.videos[row].source()))
    record = next(tmp_path.glob("*.jsonl"))
    before = record.read_text()
    again, _ = motion_vectors(videos, tmp_path, workers=1)
    np.testing.assert_array_equal(again, found)
    assert record.read_text() == before


def test_other_bytes_of_the_same_name_are_noticed(tmp_path: Path) -> None:
    for name in ("a.mp4", "b.mp4"):
        write_numbered(tmp_path / name, frames=20)
    videos = made_list(tmp_path, ["a.mp4", "b.mp4"])
    first = np.array(motion_vectors(videos, tmp_path / "kept", workers=1)[0])
    write_numbered(tmp_path / "b.mp4", frames=9)
    second, _ = motion_vectors(videos, tmp_path / "kept", workers=1)
    np.testing.assert_array_equal(second[0], first[0])
    assert not np.array_equal(second[1], first[1])


def test_joined_cosines_are_the_sum_of_standardised_ones(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    one = generator.standard_normal((50, 6)) + 5  # all alike before the mean is taken away
    other = generator.standard_normal((50, 40))
    found = join({"one": one, "other": other}, tmp_path / "joined.npy").astype(np.float64)
    expected = np.zeros((50, 50))
    off = ~np.eye(50, dtype=bool)
    for array in (one, other):
        units = array - array.mean(axis=0)
        units /= np.linalg.norm(units, axis=1, keepdims=True)
        cosines = units @ units.T
        expected += cosines / cosines[off].std()
    expected /= expected[0, 0]
    np.testing.assert_allclose(found @ found.T, expected, atol=5e-3)


def test_weights_count_in_the_sum_of_cosines(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    arrays = {name: generator.standard_normal((30, 8)) for name in ("one", "other")}
    alone = {
        name: join({name: array}, tmp_path / f"{name}.npy").astype(np.float64)
        for name, array in arrays.items()
    }
    spread = {name: (a @ a.T)[~np.eye(30, dtype=bool)].std() for name, a in alone.items()}
    found = join(arrays, tmp_path / "joined.npy", weights={"other": 3}).astype(np.float64)
    expected = sum(
        weight * alone[name] @ alone[name].T / spread[name]
        for name, weight in {"one": 1, "other": 3}.items()
    )
    np.testing.assert_allclose(found @ found.T, expected / expected[0, 0], atol=5e-3)


def test_half_whitening_takes_the_root_of_each_deviation() -> None:
    generator = np.random.default_rng(0)
    array = generator.standard_normal((200, 90)) * np.geomspace(100, 0.01, 90) + 7
    found = half_whitened(array).astype(np.float64)
    assert found.shape == (200, COMPONENTS)
    # The scatter of half-whitened rows is the root of the scatter that the rows had.
    centred = array - array.mean(axis=0)
    before = np.linalg.svd(centred, compute_uv=False)[:COMPONENTS]
    np.testing.assert_allclose(np.linalg.svd(found, compute_uv=False), before**0.5, rtol=1e-4)
    full = half_whitened(array[:, :5]).astype(np.float64)  # all components: a rotation and a root
    left, deviations, _ = np.linalg.svd(
        array[:, :5] - array[:, :5].mean(axis=0), full_matrices=False
    )
    expected = left * deviations**0.5
    np.testing.assert_allclose(full @ full.T, expected @ expected.T, atol=1e-3)


def test_half_whitening_of_few_alike_or_unknown_videos() -> None:
    array = np.random.default_rng(0).standard_normal((6, 40))
    array[2] = 0
    found = half_whitened(array)
    assert found.shape == (6, 4)  # five known rows span four directions
    assert not found[2].any()
    assert np.isfinite(found).all()
    assert half_whitened(np.ones((5, 3))).shape == (5, 0)
    assert half_whitened(np.zeros((5, 3))).shape == (5, 0)


def test_nothing_is_said_of_a_video_without_a_vector(tmp_path: Path) -> None:
    array = np.random.default_rng(0).standard_normal((9, 4))
    array[3] = 0
    found = join({"one": array}, tmp_path / "joined.npy")
    assert not found[3].any()
    assert found.any(axis=1).sum() == 8


@pytest.mark.parametrize("suffix", [".npz", ".npy", ".safetensors"])
def test_features_are_put_into_the_order_of_the_list(
    folder: Path, tmp_path: Path, suffix: str
) -> None:
    videos = made_list(folder, ["v2.mp4", "v0.mp4", "v1.mp4"])
    named = {f"v{k}.mp4": np.full(3, k + 1, np.float32) for k in range(3)}
    path = tmp_path / f"features{suffix}"
    if suffix == ".npz":
        np.savez(path, **named)
    elif suffix == ".safetensors":
        save_file(named, path)
    else:
        np.save(path, np.stack([named["v2.mp4"], named["v0.mp4"], named["v1.mp4"]]))
    assert read_features(path, videos)[:, 0].tolist() == [3, 1, 2]


BAD = {
    "of another video": ({"v9.mp4": np.ones(3)}, "v9.mp4, which is not in"),
    "not finite": ({"v0.mp4": np.ones(3), "v1.mp4": np.array([1, np.nan, 0])}, "v1.mp4 has a"),
    "of another length": ({"v0.mp4": np.ones(3), "v1.mp4": np.ones(2)}, "v1.mp4 has the shape"),
    "no vectors": ({"v0.mp4": np.ones((2, 2))}, "no vector for any video of"),
}


@pytest.mark.parametrize("case", BAD)
def test_features_that_do_not_fit(folder: Path, tmp_path: Path, case: str) -> None:
    named, message = BAD[case]
    np.savez(tmp_path / "features.npz", **named)
    with pytest.raises(UserError, match=message):
        read_features(tmp_path / "features.npz", made_list(folder, ["v0.mp4", "v1.mp4"]))


def test_rows_that_do_not_fit(folder: Path, tmp_path: Path) -> None:
    videos = made_list(folder, ["v0.mp4", "v1.mp4"])
    np.save(tmp_path / "rows.npy", np.ones((3, 4)))
    with pytest.raises(UserError, match="one row for each"):
        read_features(tmp_path / "rows.npy", videos)
    np.save(tmp_path / "rows.npy", np.array([[1.0, 2.0], [np.inf, 0.0]]))
    with pytest.raises(UserError, match=r"v1\.mp4 has a number that is not finite"):
        read_features(tmp_path / "rows.npy", videos)
    (tmp_path / "damaged.npz").write_bytes(b"nothing")
    with pytest.raises(UserError, match="cannot read the features"):
        read_features(tmp_path / "damaged.npz", videos)
    with pytest.raises(UserError, match="no features at"):
        read_features(tmp_path / "missing.npz", videos)


def test_a_features_file_is_known_by_its_suffix() -> None:
    assert vectors.is_features("audio.safetensors")
    assert not vectors.is_features("motion")
