from pathlib import Path

import numpy as np
import pytest

from tests.report.run_folder import write_corrupted, write_pairs
from vidcsl.errors import UserError
from vidcsl.report.pictures import read_corrupted, read_pairs


def test_pairs_keep_their_order_and_say_what_they_are(tmp_path: Path) -> None:
    assert read_pairs(tmp_path / "pairs.npz") == []
    write_pairs(tmp_path / "pairs.npz", right=2, wrong=1)
    pairs = read_pairs(tmp_path / "pairs.npz")
    assert [pair.right for pair in pairs] == [True, True, False]
    assert pairs[0].anchor.class_name == pairs[0].candidate.class_name
    assert pairs[2].anchor.class_name != pairs[2].candidate.class_name
    assert pairs[0].anchor.uri != pairs[0].candidate.uri
    assert pairs[0].similarity == pytest.approx(0.9)


def test_corrupted_clips_by_suite(tmp_path: Path) -> None:
    write_corrupted(tmp_path / "corruption_P.gaussian_noise.npz")
    write_corrupted(tmp_path / "corruption_C.fog.npz")
    found = read_corrupted(tmp_path)
    assert {suite: [clip.name for clip in clips] for suite, clips in found.items()} == {
        "C": ["fog"],
        "P": ["gaussian_noise"],
    }
    (fog,) = found["C"]
    assert fog.severities == (0, 3, 5)
    assert 'aria-label="fog: clean, severity 3, severity 5"' in fog.film
    assert fog.predictions[0] == fog.label


def test_a_damaged_file_is_one_clear_line(tmp_path: Path) -> None:
    path = tmp_path / "pairs.npz"
    np.savez(path, anchors=np.zeros(3))
    with pytest.raises(UserError, match=r"pairs.npz has no array 'candidates"):
        read_pairs(path)
