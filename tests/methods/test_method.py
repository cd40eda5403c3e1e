"""What every method promises; each step against naive code is in the method's own test file."""

import copy
import math
from dataclasses import replace
from functools import partial
from itertools import product

import pytest
import torch
from torch import nn

from tests.methods.made import (
    ATTACKING,
    CONTRASTIVE,
    DIM,
    TEMPERATURE,
    TinyEncoder,
    batch,
    make_method,
    rendered,
)
from vidcsl.errors import Diverged, UserError
from vidcsl.methods import METHODS
from vidcsl.methods.false_negatives import DETECTORS, TREATMENTS
from vidcsl.methods.metrics import Ratio

LEARNING_RATES = {"byol": 3e-3}
WITHOUT_NEGATIVES = ("byol", "swav", "vicreg", "barlow_twins", "lejepa")
PLAIN = [name for name in CONTRASTIVE if name not in ATTACKING]
ATTACKED_FIRST = ("deacl", "at", "trades")  # there it is the attack that complains
LINEAR = ("supervised", "advcl", "at", "trades")  # with heads that autocast rounds


def train(method, data, *, steps, lr=1e-2):
    optimiser = torch.optim.Adam(
        [p for p in method.parameters() if p.requires_grad], lr=lr, betas=(0.9, 0.99)
    )
    losses = []
    for step in range(steps):
        now = replace(data, progress=step / steps)
        loss = method.train()(now)["loss"]
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        method.after_step(now.progress)
        losses.append(loss.item())
    return losses


def rank_of(vectors):
    energy = torch.linalg.svdvals(vectors - vectors.mean(0)).square()
    share = energy / energy.sum()
    return float(torch.exp(-(share * share.clamp(min=1e-12).log()).sum()))


@pytest.mark.parametrize("name", [*PLAIN, *WITHOUT_NEGATIVES, "rocl", "acl"])
def test_loss_falls_and_the_representation_does_not_collapse(name):
    # In double precision, where the last bits, which differ between processors, do not add up.
    data = rendered()
    data = replace(data, clips=data.clips.double())
    encoder = partial(TinyEncoder, data.clips[0, 0].numel())
    method = make_method(name, queue=48, encoder=encoder).double()
    losses = train(method, data, steps=60, lr=LEARNING_RATES.get(name, 1e-2))
    # The queue of MoCo v2 first fills with keys that are harder than its random ones.
    start = max(losses[:10]) if name == "moco_v2" else losses[0]
    assert losses[-1] < 0.85 * start
    network = nn.Sequential(method.encoder, getattr(method, "projector", nn.Identity()))
    with torch.no_grad():
        outputs = network(data.clips[:, 0])
    units = nn.functional.normalize(outputs, dim=1)
    assert rank_of(outputs) > 1.5  # more than one line; three classes span two directions
    assert (1 - units @ units.T).mean() > 0.2  # not all in one place


class Flags:
    """Records what a method compared and what its detector flagged."""

    def __init__(self, method):
        self.blocks, self.contrast = [], None
        contrast = method.contrast
        method.contrast = lambda data: self.keep(contrast(data))
        detect = method.detector.flagged_and_sure
        method.detector.flagged_and_sure = lambda *inputs: self.record(detect(*inputs))

    def record(self, found):
        self.blocks.append(found[0])
        return found

    def keep(self, contrast):
        self.contrast, self.blocks = contrast, []
        return contrast

    @property
    def flagged(self):
        return torch.cat(self.blocks)


def naive_role(name, mine, theirs):
    """positive, negative or neither, from (video, label, view) of anchor and candidate."""
    (video, label, view), (other, other_label, other_view) = mine, theirs
    own = video == other
    if name == "supcon":
        positive = own or (label == other_label >= 0)
        return None if own and view == other_view else ("positive" if positive else "negative")
    if name == "simclr":
        return ("positive" if view != other_view else None) if own else "negative"
    if name == "moco_v3":
        return None if view == other_view else ("positive" if own else "negative")
    if other_view < 0:  # from the queue
        return None if own else "negative"
    return "positive" if own and view != other_view else None


def naive_loss(name, treatment, seen):
    """The mean over the rows of -mean_p log(e_p / sum w e), by loops."""
    contrast, total, rows = seen.contrast, 0.0, 0
    known = [
        list(zip(ids.videos.tolist(), ids.labels.tolist(), ids.views.tolist(), strict=True))
        for ids in (contrast.rows, contrast.columns)
    ]
    for i, mine in enumerate(known[0]):
        positives, terms, gone = [], [], 0
        for j, theirs in enumerate(known[1]):
            role = naive_role(name, mine, theirs)
            flagged = bool(seen.flagged[i, j])
            assert not flagged or (role == "negative" and mine[0] != theirs[0])
            logit = contrast.anchors[i] @ contrast.candidates[j] / TEMPERATURE
            # No detector here is surer of some pairs than of others.
            attracted = flagged and treatment in ("attract", "attract_sure")
            if attracted:
                role = "positive"
            weight = 1.0
            if flagged and not attracted:
                weight = {"eliminate": 0.0, "rescale": 0.0, "weight": 0.3}[treatment]
            gone += not weight
            if role and weight:
                terms.append((logit, weight, role))
            if role == "positive":
                positives.append(logit)
        if positives and any(role == "negative" for _, _, role in terms):
            kept = sum(role == "negative" for _, _, role in terms)
            scale = (kept + gone) / kept if treatment == "rescale" else 1.0
            denominator = sum(
                (scale if role == "negative" else 1.0) * weight * logit.exp()
                for logit, weight, role in terms
            )
            total = total + denominator.log() - sum(positives) / len(positives)
            rows += 1
    return total / rows


@pytest.mark.parametrize("treatment", TREATMENTS)
@pytest.mark.parametrize(("name", "detector"), list(product(PLAIN, DETECTORS)))
def test_any_detector_with_any_treatment_in_any_method(name, detector, treatment):
    method = make_method(name, detector=detector, treatment=treatment, queue=14)
    seen, flagged = Flags(method), 0
    for step in range(3):
        data = batch(progress=step / 3, seed=step)
        out = method(data)
        torch.testing.assert_close(out["loss"], naive_loss(name, treatment, seen))
        flagged += int(seen.flagged.sum())
        method.zero_grad()
        out["loss"].backward()
        gradients = [p.grad for p in method.parameters() if p.grad is not None]
        assert any(g.abs().sum() > 0 for g in gradients)
        assert all(g.isfinite().all() for g in gradients)
        method.after_step(data.progress)
        assert out["removed"] is out["flagged"]  # the older name
        assert int(out["flagged"].part.sum()) == int(seen.flagged.sum())
    assert (flagged > 0) == (detector != "none" and (name, detector) != ("supcon", "labels"))


@pytest.mark.parametrize(
    ("name", "judge", "voters", "aggregate"),
    [
        ("simclr", "online", 2, "max"),
        ("simclr", "momentum", 0, "mean"),
        ("simclr", "momentum", 1, "own"),
        ("supcon", "momentum", 2, None),
        ("moco_v2", "online", 1, "max"),
        ("moco_v2", "momentum", 1, "mean"),
        ("moco_v3", "momentum", 0, "max"),
        ("moco_v3", "online", 0, "mean"),
    ],
)
def test_which_views_score_the_candidates(name, judge, voters, aggregate):
    options = {"judge": judge, "voters": voters, "aggregate": aggregate or "auto"}
    method = make_method(name, detector="adaptive", **options).train()
    seen, scored = Flags(method), []
    method.detector.register_forward_hook(lambda _, inputs, out: scored.append(inputs[0]))
    with torch.no_grad():  # so that the momentum encoder differs
        for parameter in method.encoder.parameters():
            parameter.mul_(1.3).add_(0.05)
    data = batch(videos=5, views=2 + voters)
    out = method(data)
    contrast = seen.contrast
    embedded = method.embed(data.clips[:, :2]).detach()
    taught = method.embed_by_momentum(data.clips) if method.teacher else None
    if judge == "momentum":
        voices = taught
    elif name.startswith("moco"):
        voices = contrast.anchors.detach().unflatten(0, (5, 2))
        voices = torch.cat([voices, taught[:, 2:]], 1)
    else:
        further = method.embed(data.clips[:, 2:]).detach() if voters else embedded[:, :0]
        voices = torch.cat([embedded, further], 1)
    if judge == "momentum" and not name.startswith("moco"):
        compared = taught[:, :2].flatten(0, 1)
    else:
        compared = contrast.candidates.detach()
    reduce = {"own": None, "mean": torch.mean, "max": torch.amax}[aggregate or "mean"]
    for row in range(10):
        votes = voices[row // 2] @ compared.T
        wanted = votes[row % 2] if reduce is None else reduce(votes, dim=0)
        torch.testing.assert_close(torch.cat(scored)[row], wanted)
    assert contrast.anchors.shape[0] == 10  # support views are no anchors
    assert out["loss"].isfinite()


@pytest.mark.parametrize("views", [2, 3])
@pytest.mark.parametrize("name", METHODS)
def test_any_number_of_clips(name, views):
    out = make_method(name)(batch(videos=4, views=views))
    assert out["loss"].isfinite()
    for metric in ("alignment", "uniformity", "effective_rank"):
        assert not out[metric].requires_grad
        assert out[metric].isfinite()
    assert isinstance(out["margin"], Ratio)


@pytest.mark.parametrize("name", [name for name in METHODS if name not in LINEAR])
def test_only_the_encoder_and_heads_compute_in_half_precision(name):
    class Rounded(nn.Module):
        """Gives embeddings that no autocast changes: nothing is left to round but the loss."""

        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.ones(DIM))

        def forward(self, clips):
            return clips.flatten(1)[:, :DIM].sub(0.5) * self.weight

    method = make_method(name, encoder=Rounded)
    for part in ("projector", "predictor"):
        if hasattr(method, part):
            setattr(method, part, nn.Identity())
    if getattr(method, "teacher", None):
        method.teacher.projector = nn.Identity()
    twin = copy.deepcopy(method)
    wanted = method(batch())
    with torch.autocast("cpu", torch.bfloat16):
        found = twin(batch())
    for metric in ("loss", "alignment", "uniformity", "effective_rank"):
        assert found[metric].dtype == torch.float32
        torch.testing.assert_close(found[metric], wanted[metric], msg=metric)


def test_attracting_the_oracles_pairs_is_supcon():
    data = batch()
    attracted = make_method("simclr", detector="labels", treatment="attract")(data)["loss"]
    torch.testing.assert_close(attracted, make_method("supcon")(data)["loss"])


def test_rows_without_a_negative_are_skipped_and_counted():
    data = batch(videos=2, classes=1)
    out = make_method("simclr", detector="labels")(data)
    assert out["anchors_without_negatives"] == out["undefined_rows"] == 4
    assert out["loss"] == 0
    out["loss"].backward()


class Broken(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))

    def forward(self, clips):
        features = clips.flatten(1)[:, :16] * self.weight
        return torch.where(torch.arange(len(clips))[:, None] == 1, torch.nan, features)


@pytest.mark.parametrize("name", [name for name in METHODS if name not in ATTACKED_FIRST])
def test_embeddings_that_are_not_finite_are_an_error(name):
    with pytest.raises(Diverged, match="embeddings are not finite"):
        make_method(name, encoder=Broken)(batch(videos=4))


@pytest.mark.parametrize("name", ["simclr", "supcon", "moco_v3"])
def test_a_batch_of_one_video(name):
    with pytest.raises(UserError, match=r"TRAIN\.BATCH"):
        make_method(name)(batch(videos=1))


def test_the_loss_of_equal_embeddings_is_known():
    """By a step of an encoder to which all clips are alike."""

    class Alike(nn.Module):
        def forward(self, features):
            return 1 + 0 * features.sum(dim=1, keepdim=True).expand(-1, DIM)

    for name, clips in (("simclr", 2), ("moco_v2", 3), ("moco_v3", 2), ("acl", 2), ("supcon", 2)):
        method = make_method(name, queue=32).eval()
        method.projector = Alike()
        if name.startswith("moco"):
            method.predictor = method.teacher.projector = Alike()
        if name == "moco_v2":
            method.queue.keys.fill_(DIM**-0.5)
        found = method(batch(videos=6, views=clips))["loss"].detach()
        wanted = method.loss_of_chance(videos=6, clips=clips)
        assert float(found) == pytest.approx(wanted, abs=1e-5), name
    assert make_method("simclr").loss_of_chance(videos=32, clips=2) == pytest.approx(
        4.143, abs=1e-3
    )
    assert make_method("supervised").loss_of_chance(videos=6, clips=2) == pytest.approx(math.log(3))
    assert make_method("rocl").loss_of_chance(videos=6, clips=2) is None
