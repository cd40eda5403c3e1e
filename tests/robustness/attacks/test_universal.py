import pytest
import torch

from tests.robustness.attacks.models import Linear, predict, random_clips, seeded, sharp
from vidcsl.errors import UserError
from vidcsl.robustness.attacks import GOALS, PGD
from vidcsl.robustness.attacks.universal import UniversalAttack, fit_universal, problem_of
from vidcsl.robustness.targets import Clips
from vidcsl.robustness.threats import L2, Flicker, Linf, Universal, to_levels


def some(first: int, last: int) -> Clips:
    clips = random_clips(40)[first:last]
    labels, seeds = predict(sharp(), clips), list(range(first, last))
    return Clips(clips, labels, seeds, seeds)


def attack_of(threat: Universal, **options) -> UniversalAttack:
    training = lambda: [some(0, 10), some(10, 20)]  # noqa: E731
    return UniversalAttack(training, threat, GOALS["cross_entropy"], PGD(steps=15), **options)


@pytest.mark.parametrize(
    "threat",
    [
        Universal(Linf(0.06)),
        Universal(L2(1.2)),
        Universal(Linf(0.06), cyclic=True),
        Universal(Flicker(0.15)),
    ],
    ids=str,
)
def test_a_delta_fitted_on_some_clips_fools_others_more_than_noise_does(threat):
    model, test = sharp(), some(20, 40)
    found = attack_of(threat)(model, test.clips, test.labels, test.seeds)
    zero = threat.zero(test.clips)
    mask = torch.ones_like(zero, dtype=torch.bool)
    noise = threat.start(test.clips, mask, [torch.Generator().manual_seed(0)])
    noisy = threat.perturb(test.clips, noise, test.seeds)
    right = [int((predict(model, clips) == test.labels).sum()) for clips in (noisy, found)]
    assert right[1] <= right[0] - 3


def test_it_is_fitted_once_for_a_model_and_the_same_for_every_batch():
    model, test, made = sharp(), some(20, 40), attack_of(Universal(Linf(0.03)))
    passes = []
    model.register_forward_hook(lambda *_: passes.append(1))
    whole = made(model, test.clips, test.labels, test.seeds)
    fitted = len(passes)
    part = made(model, test.clips[5:9], test.labels[5:9], test.seeds[5:9])
    assert fitted > 0
    assert len(passes) == fitted
    assert torch.equal(part, whole[5:9])


def test_each_model_has_a_delta_of_its_own():
    test, made = some(20, 24), attack_of(Universal(Linf(0.03)))
    other = sharp()
    other.head.weight.data *= -1
    one, two = (made(model, test.clips, test.labels, test.seeds) for model in (sharp(), other))
    options = {"goal": GOALS["cross_entropy"], "solver": PGD(steps=15)}
    delta = fit_universal(other, made.training(), threat=Universal(Linf(0.03)), **options)
    assert not torch.equal(one, two)
    assert torch.equal(two, (test.clips + delta).clamp(0, 1))


def test_steps_shrink_linearly_to_nothing():
    model = seeded(Linear, 3 * 4 * 6 * 6)
    clips = torch.full((1, 3, 4, 6, 6), 0.5, dtype=torch.float64)
    batch = Clips(clips, torch.zeros(1, dtype=torch.long), [0], [0])
    solver = PGD(steps=2, step_size=0.01, random_start=False)
    options = {"goal": GOALS["cross_entropy"], "solver": solver}
    delta = fit_universal(model, [batch] * 2, threat=Universal(Linf(0.4)), **options)
    assert float(delta.abs().median()) == pytest.approx(0.01 * (1 + 0.75 + 0.5 + 0.25))


def test_a_cyclic_delta_meets_a_clip_at_other_moments_in_other_passes():
    threat = Universal(Linf(0.1), cyclic=True)
    seeds = {
        tuple(problem_of(sharp(), some(0, 3), threat, GOALS["cross_entropy"], sweep=sweep).seeds)
        for sweep in range(4)
    }
    assert len(seeds) == 4


def test_a_quantised_perturbation_has_whole_levels():
    test, made = some(20, 30), attack_of(Universal(Linf(3.5 / 255)), quantise=True)
    found = made(sharp(), test.clips, test.labels, test.seeds)
    assert torch.equal(found, to_levels(found))
    assert ((found - to_levels(test.clips)).abs() <= 3 / 255 + 1e-9).all()


def test_a_shared_delta_is_evaluated_on_all_its_clips():
    batch, model = some(0, 4), sharp()
    batch.labels[1:] = (batch.labels[1:] + 1) % 4
    problem = problem_of(model, batch, Universal(Linf(0.1)), GOALS["cross_entropy"], sweep=0)
    found = problem.evaluate(problem.zero())
    logits = model(batch.clips).detach()
    losses = torch.nn.functional.cross_entropy(logits, batch.labels, reduction="none")
    torch.testing.assert_close(found.goal, losses.mean(0, keepdim=True))
    assert found.fooled.tolist() == [False]  # the first is still right
    batch.labels[0] = (batch.labels[0] + 1) % 4
    problem = problem_of(model, batch, Universal(Linf(0.1)), GOALS["cross_entropy"], sweep=0)
    assert problem.evaluate(problem.zero()).fooled.tolist() == [True]


def test_nothing_to_fit_on():
    options = {"goal": GOALS["cross_entropy"], "solver": PGD(steps=1)}
    with pytest.raises(UserError, match="there are none"):
        fit_universal(sharp(), [], threat=Universal(Linf(0.1)), **options)
