import pytest
import torch

from tests.methods.made import cosines, foreign, samples
from vidcsl.methods.false_negatives import LearntThresholds, Observation


def step(detector, scores, rows, progress=0.0):
    """The flags of one step whose rows come in two blocks."""
    negatives, half = foreign(rows, rows), len(rows) // 2
    flagged = [
        detector(scores[here], negatives[here], rows[here], rows, progress)
        for here in (slice(0, half), slice(half, len(rows)))
    ]
    detector.learn(Observation(rows.videos[::2], torch.zeros(half, 2, 1), progress))
    return torch.cat(flagged)


@pytest.mark.parametrize("rate", [0.3, 2.5])  # the larger one leaves [-1, 1]
def test_a_threshold_follows_adam_of_each_video(rate):
    rows, scores = samples(), cosines(16)
    detector = LearntThresholds(videos=10, ceiling=0.25, threshold_lr=rate)
    weights = [torch.nn.Parameter(torch.ones(())) for _ in range(8)]
    adam = [torch.optim.Adam([w], lr=rate, betas=(0.9, 0.98)) for w in weights]
    for _ in range(6):
        step(detector, scores, rows)
        for video, (weight, optimiser) in enumerate(zip(weights, adam, strict=True)):
            fractions = []
            for row in (2 * video, 2 * video + 1):
                others = [scores[row, j] for j in range(16) if j // 2 != video]
                fractions.append(sum(float(s > weight) for s in others) / len(others))
            weight.grad = torch.tensor(0.25 - sum(fractions) / 2)
            optimiser.step()
            weight.data.clamp_(-1, 1)
    wanted = torch.stack([w.detach() for w in weights])
    torch.testing.assert_close(detector.threshold[:8], wanted, atol=1e-5, rtol=1e-5)
    states = [each.state[w] for each, w in zip(adam, weights, strict=True)]
    for name, moment in (("exp_avg", detector.mean), ("exp_avg_sq", detector.square)):
        torch.testing.assert_close(moment[:8], torch.stack([state[name] for state in states]))
    assert (detector.threshold[8:] == 1).all()  # never seen
    assert detector.updates.tolist() == [6] * 8 + [0] * 2


@pytest.mark.parametrize("fraction", [0.1, 0.3])
def test_thresholds_settle_at_the_quantile(fraction):
    rows = samples(videos=40)
    detector = LearntThresholds(videos=40, ceiling=fraction, start=0.0)
    for number in range(400):
        detector.threshold_lr = 0.05 * (1 - number / 400)
        flagged = step(detector, cosines(80, seed=number), rows)
    assert float(flagged.sum() / (80 * 78)) == pytest.approx(fraction, abs=0.03)


def test_a_step_flags_by_the_thresholds_after_its_own_update():
    rows, scores = samples(), cosines(16)
    detector = LearntThresholds(videos=10, ceiling=0.9, start=0.4, threshold_lr=0.7)
    assert not step(detector, scores, rows, progress=0.3).any()  # learns, but does not flag yet
    flagged = step(detector, scores, rows, progress=0.4)
    above = scores > detector.threshold[rows.videos, None]
    assert flagged.any()
    assert torch.equal(flagged, foreign(rows, rows) & above)
