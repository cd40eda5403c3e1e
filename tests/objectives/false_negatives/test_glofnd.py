import pytest
import torch

from tests.objectives.made import cosines, foreign, samples
from vidcsl.objectives.false_negatives.detector import Observation
from vidcsl.objectives.false_negatives.glofnd import LearntThresholds


def observe(detector, scores, rows):
    negatives = foreign(rows, rows)
    detector.learn(
        Observation(
            rows.videos[::2],
            torch.zeros(len(rows) // 2, 2, 1),
            rows,
            lambda here: (scores[here], negatives[here]),
            0.0,
        )
    )


def test_a_threshold_follows_adam_of_each_video():
    rows, scores = samples(), cosines(16)
    detector = LearntThresholds(videos=10, share=0.25, learning_rate=0.3)
    weights = [torch.nn.Parameter(torch.ones(())) for _ in range(8)]
    adam = [torch.optim.Adam([w], lr=0.3, betas=(0.9, 0.98)) for w in weights]
    for _ in range(6):
        observe(detector, scores, rows)
        for video, (weight, optimiser) in enumerate(zip(weights, adam, strict=True)):
            shares = []
            for row in (2 * video, 2 * video + 1):
                others = [scores[row, j] for j in range(16) if j // 2 != video]
                shares.append(sum(float(s > weight) for s in others) / len(others))
            weight.grad = torch.tensor(0.25 - sum(shares) / 2)
            optimiser.step()
            weight.data.clamp_(-1, 1)
    wanted = torch.stack([w.detach() for w in weights])
    torch.testing.assert_close(detector.threshold[:8], wanted, atol=1e-5, rtol=1e-5)
    assert (detector.threshold[8:] == 1).all()  # never seen
    assert detector.updates.tolist() == [6] * 8 + [0] * 2


@pytest.mark.parametrize("share", [0.1, 0.3])
def test_thresholds_settle_at_the_quantile(share):
    rows = samples(videos=40)
    detector = LearntThresholds(videos=40, share=share, start=0.0)
    negatives = foreign(rows, rows)
    for step in range(400):
        observe(detector, cosines(80, seed=step), rows)
        detector.learning_rate = 0.05 * (1 - step / 400)
    scores = cosines(80, seed=999)
    flagged = detector(scores, negatives, rows, rows, 0.5)
    assert float(flagged.sum() / negatives.sum()) == pytest.approx(share, abs=0.03)


def test_flags_start_when_they_are_told_to():
    rows, scores = samples(), cosines(16)
    detector = LearntThresholds(videos=10, start=0.4)
    detector.threshold.fill_(0.1)
    negatives = foreign(rows, rows)
    assert not detector(scores, negatives, rows, rows, 0.3).any()
    assert torch.equal(detector(scores, negatives, rows, rows, 0.4), negatives & (scores > 0.1))
