"""Thresholds against plain loops, and what the automatic rule does without knowing the classes."""

import math

import numpy as np
import pytest
import torch

from vidcsl.teachers import neighbours
from vidcsl.teachers.neighbours import Teacher, flagged, smoothed, thresholds


def teacher_of(vectors: np.ndarray) -> Teacher:
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    units = np.divide(vectors, lengths, out=np.zeros_like(vectors), where=lengths > 0)
    return Teacher("made", units.astype(np.float16))


def classes_apart(*, classes: int, each: int, dim: int = 32, noise: float = 0.6) -> np.ndarray:
    generator = np.random.default_rng(3)
    centres = np.eye(classes, dim)
    return np.repeat(centres, each, axis=0) + noise / np.sqrt(dim) * generator.standard_normal(
        (classes * each, dim)
    )


def naive(teacher: Teacher, *, rule: str, share: float, rate: float) -> list[float]:
    vectors = teacher.vectors.astype(np.float64)
    known = [k for k, row in enumerate(vectors) if row.any()]
    found = []
    for i, row in enumerate(vectors):
        others = sorted((float(row @ vectors[j]) for j in known if j != i), reverse=True)
        if not row.any() or not others:
            found.append(math.inf)
        elif rule != "auto":
            found.append(others[max(1, round(share * len(others))) - 1])
        else:
            median = others[round(0.5 * (len(others) - 1))]
            low = others[round((1 - 0.158655) * (len(others) - 1))]
            least = math.inf
            for rank, similarity in enumerate(others, start=1):
                z = (median - similarity) / (median - low)
                expected = len(others) * 0.5 * (1 + math.erf(z / math.sqrt(2)))
                if expected <= rate * rank:
                    least = similarity
            found.append(least)
    return found


@pytest.mark.parametrize("rule", ["share", "mutual", "auto"])
def test_thresholds_equal_loops(rule: str) -> None:
    vectors = classes_apart(classes=4, each=9)
    vectors[5] = 0  # the teacher knows nothing of it
    teacher = teacher_of(vectors)
    found = thresholds(teacher, rule=rule, share=0.2, rate=0.3)
    expected = naive(teacher, rule=rule, share=0.2, rate=0.3)
    np.testing.assert_allclose(found.numpy(), expected, atol=2e-3)
    assert found[5] == torch.inf


def test_blocks_do_not_change_thresholds(monkeypatch: pytest.MonkeyPatch) -> None:
    teacher = teacher_of(classes_apart(classes=3, each=11))
    whole = thresholds(teacher, rule="auto")
    monkeypatch.setattr(neighbours, "_BLOCK", 7)
    torch.testing.assert_close(thresholds(teacher, rule="auto"), whole)


def test_a_long_list_is_estimated_on_some_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    teacher = teacher_of(np.random.default_rng(0).standard_normal((2000, 8)))
    exact = thresholds(teacher, rule="share", share=0.1)
    monkeypatch.setattr(neighbours, "REFERENCES", 500)
    estimated = thresholds(teacher, rule="share", share=0.1)
    assert (exact - estimated).abs().mean() < 0.05
    assert not torch.equal(exact, estimated)


def test_auto_finds_unequal_classes_and_abstains_without_any() -> None:
    generator = np.random.default_rng(1)
    small, large = np.zeros((12, 64)), np.zeros((60, 64))
    small[:, 0] = large[:, 1] = 1
    rest = generator.standard_normal((400, 64))
    vectors = np.concatenate([small, large]) + 0.05 * generator.standard_normal((72, 64))
    teacher = teacher_of(np.concatenate([vectors, rest]))
    least = thresholds(teacher, rule="auto", rate=0.2)
    labels = torch.tensor([0] * 12 + [1] * 60 + list(range(2, 402)))
    rows = teacher.rows(torch.arange(len(teacher)))
    pairs = flagged(rows @ rows.T, least, least, agreement="both")
    pairs &= ~torch.eye(len(teacher), dtype=torch.bool)
    same = labels[:, None] == labels[None]
    same &= ~torch.eye(len(teacher), dtype=torch.bool)
    assert (pairs & same)[:72].sum() > 0.95 * same[:72].sum()
    assert pairs[72:].sum() < 0.01 * pairs[72:].numel()


def test_agreement() -> None:
    similarities = torch.tensor([[0.5, 0.5], [0.1, 0.9]])
    rows, columns = torch.tensor([0.4, 0.8]), torch.tensor([0.6, 0.3])
    expected = {
        "anchor": [[True, True], [False, True]],
        "either": [[True, True], [False, True]],
        "both": [[False, True], [False, True]],
    }
    for agreement, answer in expected.items():
        found = flagged(similarities, rows, columns, agreement=agreement)
        assert found.tolist() == answer


def test_videos_of_a_queue_that_are_none_have_no_vector() -> None:
    teacher = teacher_of(np.ones((3, 2)))
    rows = teacher.rows(torch.tensor([2, -1, 0]))
    assert rows.any(dim=1).tolist() == [True, False, True]


def test_smoothing_equals_loops(tmp_path) -> None:
    vectors = teacher_of(classes_apart(classes=3, each=7)).vectors.copy()
    vectors[4] = 0
    found = smoothed(vectors, tmp_path / "smooth.npy", nearest=3)
    exact = vectors.astype(np.float64)
    for i, row in enumerate(exact):
        cosines = exact @ row
        others = sorted((j for j in range(21) if j != i), key=lambda j: -cosines[j])[:3]
        total = row + sum(max(cosines[j], 0) * exact[j] for j in others)
        length = np.linalg.norm(total)
        np.testing.assert_allclose(found[i], total / (length or 1), atol=2e-3)
    assert not found[4].any()
    unchanged = smoothed(vectors, tmp_path / "same.npy", nearest=0)
    np.testing.assert_allclose(unchanged.astype(float), exact, atol=2e-3)


def test_smoothing_in_a_long_list_takes_its_neighbours_from_a_sample(tmp_path, monkeypatch) -> None:
    vectors = teacher_of(classes_apart(classes=3, each=20)).vectors
    monkeypatch.setattr(neighbours, "REFERENCES", 30)
    found = smoothed(vectors, tmp_path / "smooth.npy", nearest=5).astype(np.float64)
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-2)
    same = np.arange(60)[:, None] // 20 == np.arange(60)[None] // 20
    before = (vectors.astype(np.float64) @ vectors.astype(np.float64).T)[same].mean()
    assert (found @ found.T)[same].mean() > before + 0.1
