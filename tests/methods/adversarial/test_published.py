"""With `published` a method computes what its authors' code does, from the same clips.

The references are written from what that code computes: LijieFan/AdvCL 24cb7a6, Kim-Minseon/RoCL
b6d5185, PKU-ML/DYNACL 7d143db, pantheon5100/DeACL 3fb81e3, vibalcam/GloFND b7f1dd1,
facebookresearch/SlowFast 287ec00, yaodongyu/TRADES 0195ed4.
"""

import copy
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tests.methods.adversarial.test_contrastive import Darker
from tests.methods.made import TEMPERATURE, TinyEncoder, batch, make_method
from vidcsl.errors import UserError
from vidcsl.methods.adversarial.advcl import high_frequencies
from vidcsl.methods.false_negatives.treatments import rescale
from vidcsl.methods.losses import Pairs, debiased, nt_xent
from vidcsl.models.batchnorm import batchnorm_in_use
from vidcsl.robustness.attacks import PGD
from vidcsl.robustness.attacks.training import TrainingAttack
from vidcsl.robustness.threats import Flicker, Linf
from vidcsl.seeding import torch_generator


class Normed(TinyEncoder):
    """With a BatchNorm, so that it matters which clips share a pass."""

    def __init__(self, pixels=3 * 2 * 4 * 4):
        super().__init__(pixels)
        self.net = nn.Sequential(*self.net[:2], nn.BatchNorm1d(16), nn.ReLU())


def made(name, **options):
    options = {"temperature": TEMPERATURE} | options
    return make_method(name, attack=Darker(), encoder=Normed, published=True, **options).train()


def outputs(method, clips, *, norms="clean"):
    with batchnorm_in_use(method, norms):
        return method.projector(method.encoder(clips))


def one_sided_xent(vectors, copies):
    """RoCL: the sum over an anchor's positives, averaged over anchors."""
    unit = F.normalize(vectors, dim=1)
    similarities = (unit @ unit.detach().T / TEMPERATURE).exp()
    similarities = similarities * (1 - torch.eye(len(unit)))
    logs = -(similarities / similarities.sum(dim=1, keepdim=True) + 1e-8).log()
    count, total = len(unit) // copies, 0.0
    for one in range(copies):
        for other in range(copies):
            if one != other:
                block = logs[one * count :, other * count :][:count, :count]
                total = total + block.diagonal().sum()
    return total / len(unit)


def gradients(method, loss):
    return torch.autograd.grad(loss, list(method.encoder.parameters()))


def test_rocl_sums_over_positives_passes_gradients_one_way_and_has_a_pass_of_its_own():
    data = batch()
    method = made("rocl")
    twin = copy.deepcopy(method)
    one, two = data.clips.unbind(dim=1)
    joint = outputs(twin, torch.cat([one, two, one * 0.9]))
    own = outputs(twin, torch.cat([one * 0.9, two]))
    wanted = one_sided_xent(joint, 3) + one_sided_xent(own, 2) / 256
    loss = method(data)["loss"]
    torch.testing.assert_close(loss, wanted)
    for ours, theirs in zip(gradients(method, loss), gradients(twin, wanted), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


def released_supcon(features, temperature):
    """`[B, V, P]`, mean of the log-probabilities of positives, times temperature / 0.07."""
    rows = torch.cat(features.unbind(dim=1))
    video = torch.arange(features.shape[0]).repeat(features.shape[1])
    logits, itself = rows @ rows.T / temperature, torch.eye(len(rows), dtype=torch.bool)
    logs = logits - logits.masked_fill(itself, -torch.inf).logsumexp(dim=1, keepdim=True)
    positive = (video[:, None] == video) & ~itself
    means = (logs * positive).sum(dim=1) / positive.sum(dim=1)
    return -(temperature / 0.07) * means.mean()


def shifted_high(images, radius):
    side = images.shape[-1]
    places = torch.arange(side) - side / 2
    low = (places[:, None].square() + places.square()).sqrt() < radius
    spectrum = torch.fft.fftshift(torch.fft.fftn(images, dim=(-2, -1)), dim=(-2, -1))
    spectrum = torch.fft.ifftshift(spectrum * ~low, dim=(-2, -1))
    return torch.fft.ifftn(spectrum, dim=(-2, -1)).real


def test_advcl_weighs_filters_and_embeds_as_released():
    data = batch(views=3)
    method = made("advcl")
    twin = copy.deepcopy(method)
    one, two, original = data.clips.unbind(dim=1)
    passes = [one, two, shifted_high(original, 1)]  # a quarter of four pixels
    features = [F.normalize(outputs(twin, clips), dim=1) for clips in passes]
    features += [F.normalize(outputs(twin, original * 0.9, norms="adversarial"), dim=1)]
    wanted = released_supcon(torch.stack(features, dim=1), TEMPERATURE)
    loss = method(data)["loss"]
    torch.testing.assert_close(loss, wanted)
    for ours, theirs in zip(gradients(method, loss), gradients(twin, wanted), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
    # Ours weighs the contrastive loss by 1, theirs by 7.14 at their temperature.
    assert made("advcl", temperature=0.5).weight == pytest.approx(7.14, abs=0.01)
    with pytest.raises(UserError, match=r"DATA\.CLIPS to at least 3"):
        method(batch(views=2))


def test_the_high_frequencies_as_released_are_not_clamped():
    images = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    theirs = high_frequencies(images, published=True)
    torch.testing.assert_close(theirs, shifted_high(images, 8), atol=1e-5, rtol=0)
    assert 0.4 < float((theirs < 0).float().mean()) < 0.6  # what the clamp takes away
    assert float(high_frequencies(images).min()) == 0


def dynacl_xent(vectors):
    """Rows 2 i and 2 i + 1 are positives; sums go over columns."""
    unit = F.normalize(vectors, dim=1)
    similarities = (unit @ unit.T / TEMPERATURE).exp()
    order = torch.arange(len(unit)) ^ 1
    sums = similarities.sum(dim=0) - similarities.diagonal()
    return -(similarities[order].diagonal() / sums[order]).log().mean()


def test_dynacl_embeds_every_second_view_by_the_momentum_copy():
    data = batch(progress=0.9)
    method = made("dynacl")
    with torch.no_grad():
        for weight in method.teacher.parameters():
            weight += 0.1 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(1))
    twin = copy.deepcopy(method)

    def features(clips, norms):
        online = outputs(twin, clips[:, 0], norms=norms)
        copied = outputs(twin.teacher, clips[:, 1], norms=norms)
        return torch.stack([online, copied], dim=1).flatten(0, 1)

    weight = 1 + 2 / 3 * 0.75
    clean, moved = features(data.clips, "clean"), features(data.clips * 0.9, "adversarial")
    wanted = ((2 - weight) * dynacl_xent(clean) + weight * dynacl_xent(moved)) / 2
    loss = method(data)["loss"]
    torch.testing.assert_close(loss, wanted)
    for ours, theirs in zip(gradients(method, loss), gradients(twin, wanted), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
    with pytest.raises(UserError, match=r"DATA\.CLIPS to 2"):
        method(batch(views=3))


def test_deacl_embeds_clean_and_perturbed_clips_in_one_pass():
    data = batch()
    method = made("deacl")
    twin, clips = copy.deepcopy(method), data.clips.flatten(0, 1)
    taught = twin.teacher(clips)
    clean, moved = twin.encoder(torch.cat([clips, clips * 0.9])).chunk(2)
    wanted = -F.cosine_similarity(clean, taught).mean()
    wanted = wanted - 2 * F.cosine_similarity(moved, clean).mean()
    torch.testing.assert_close(method(data)["loss"], wanted)
    ours = make_method("deacl", attack=Darker(), encoder=Normed).train()
    assert abs(float(ours(data)["loss"].detach() - wanted.detach())) > 1e-4


def test_glofnd_scales_up_what_it_keeps():
    generator = torch.Generator().manual_seed(0)
    similarities = torch.rand(5, 9, generator=generator) * 2 - 1
    positives = torch.zeros(5, 9, dtype=torch.bool)
    positives[:, 0] = True
    flagged = (torch.rand(5, 9, generator=generator) < 0.4) & ~positives
    pairs = rescale(Pairs(positives, torch.zeros_like(positives)), flagged, flagged)
    loss, _ = nt_xent(similarities, pairs, temperature=TEMPERATURE)
    terms, kept = (similarities / TEMPERATURE).exp(), (~flagged & ~positives).float()
    negative = (terms * kept).sum(dim=1) / kept.sum(dim=1) * 8
    wanted = -(similarities[:, 0] / TEMPERATURE - (negative + terms[:, 0]).log())
    torch.testing.assert_close(loss, wanted)


def test_moco_with_several_clips_as_released_has_one_positive_a_softmax():
    # LOSS.NAME debiased, LOSS.PRIOR 0: the loss of one query, one key and the queue, averaged.
    generator = torch.Generator().manual_seed(0)
    similarities = torch.rand(4, 10, generator=generator) * 2 - 1
    positives = torch.zeros(4, 10, dtype=torch.bool)
    positives[:, :2] = True
    pairs = Pairs(positives, torch.zeros_like(positives))
    loss, _ = debiased(similarities, pairs, temperature=TEMPERATURE, prior=0.0)
    logits = [
        torch.cat([similarities[:, key : key + 1], similarities[:, 2:]], dim=1) / TEMPERATURE
        for key in range(2)
    ]
    first = torch.zeros(4, dtype=torch.long)
    wanted = torch.stack([F.cross_entropy(each, first, reduction="none") for each in logits])
    torch.testing.assert_close(loss, wanted.mean(dim=0))
    together, _ = nt_xent(similarities, pairs, temperature=TEMPERATURE)
    assert (together - wanted.mean(dim=0)).abs().min() > 0.01


def trades_loss(method, clips, labels, noise, *, eps, step_size, steps, beta):
    """`trades_loss` for l_inf, of a network in eval mode while it is attacked."""

    def network(x):
        return method.head(method.encoder(x))

    method.eval()
    moved = clips + 0.001 * noise
    for _ in range(steps):
        moved = moved.detach().requires_grad_()
        wanted = F.softmax(network(clips), dim=1)
        rise = F.kl_div(F.log_softmax(network(moved), dim=1), wanted, reduction="sum")
        (gradient,) = torch.autograd.grad(rise, [moved])
        moved = moved.detach() + step_size * gradient.sign()
        moved = torch.min(torch.max(moved, clips - eps), clips + eps).clamp(0, 1)
    method.train()
    natural = F.cross_entropy(network(clips), labels)
    robust = F.kl_div(
        F.log_softmax(network(moved), dim=1), F.softmax(network(clips), dim=1), reduction="sum"
    )
    return natural + beta * robust / len(clips)


def test_trades_starts_beside_the_clean_clip_and_passes_it_twice():
    data = batch()
    clips = 0.1 + 0.8 * data.clips.flatten(0, 1)  # the start is cut to [0, 1], theirs is not
    data = replace(data, clips=clips.unflatten(0, data.clips.shape[:2]))
    labels = data.labels.repeat_interleave(2)
    drawn = []

    class Watched(Darker):
        """Keeps the noise that each clip's seed stands for."""

        def __call__(self, network, clips, loss, *, seeds, **options):
            makers = [torch_generator(seed, "near start") for seed in seeds]
            drawn.append(torch.stack([torch.randn(clips.shape[1:], generator=g) for g in makers]))
            return attack(network, clips, loss, seeds=seeds, **options)

    steps = {"eps": 8 / 255, "step_size": 0.007, "steps": 10}
    solver = PGD(steps=10, step_size=0.007, stop_when_fooled=False, keep_worst=False)
    attack = TrainingAttack(Linf(8 / 255), solver, near=0.001)
    method = make_method("trades", attack=Watched(), encoder=Normed, published=True, beta=6.0)
    twin = copy.deepcopy(method)
    loss = method.train()(data)["loss"]
    wanted = trades_loss(twin, clips, labels, *drawn, **steps, beta=6.0)
    torch.testing.assert_close(loss, wanted)
    for ours, theirs in zip(gradients(method, loss), gradients(twin, wanted), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
    for name, seen in method.named_buffers():
        torch.testing.assert_close(seen, twin.get_buffer(name), msg=name)
    with pytest.raises(UserError, match="another threat than flicker"):
        TrainingAttack(Flicker(0.1), solver, near=0.001)
