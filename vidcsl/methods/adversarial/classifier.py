"""Adversarial training of classifiers: PGD-AT and TRADES."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vidcsl.distributed import DistributedContext
from vidcsl.methods.adversarial.inner import Attacking, attack_seeds, in_eval
from vidcsl.methods.false_negatives.detector import distinct
from vidcsl.methods.losses import at_least_float32
from vidcsl.methods.method import METHODS, ClipBatch
from vidcsl.methods.metrics import Metric
from vidcsl.methods.supervised import Supervised
from vidcsl.registry import Option

LEVELS = 4  # steps between nothing and the whole budget


class Budgets(nn.Module):
    """A budget for each video, as large as the network withstands.

    It rises a step where all clips of a video are still predicted correctly under attack, else it
    falls one: Balaji et al., "Instance Adaptive Adversarial Training", 2019; with steps of a
    quarter of the attack's budget, so that clips of one budget are attacked together. (Kinfu and
    Vidal adapt, for video, a distribution from which all clips draw their budget.)

    Args:
        videos: length of the training list.
        distributed: the processes that train together.
    """

    level: Tensor

    def __init__(self, *, videos: int, distributed: DistributedContext | None = None) -> None:
        super().__init__()
        self.distributed = distributed or DistributedContext()
        self.register_buffer("level", torch.ones(videos, dtype=torch.long))

    def fraction(self, videos: Tensor) -> Tensor:
        """Fraction of the attack's budget, float `[N]` in [0, 1]."""
        return self.level[videos] / LEVELS

    @torch.no_grad()
    def learn(self, videos: Tensor, correct: Tensor) -> None:
        """Which videos `[N]` were predicted correctly, bool `[N]`; on all processes alike."""
        everyone = self.distributed.gather(videos)
        predicted = self.distributed.gather(correct.long())
        # A video that stands in for a damaged one may be there twice, and is to move once.
        seen, first = distinct(everyone)
        self.level[seen] = (self.level[seen] + 2 * predicted[first] - 1).clamp(0, LEVELS)


class AdversarialClassifier(Attacking, Supervised):
    """A supervised method that learns from perturbed clips.

    Args:
        encoder, options: see `Attacking` and `Supervised`.
        adaptive: adapt a budget for each video; by default all have the attack's.
        videos: length of the training list, for adaptive budgets.
    """

    def __init__(
        self, encoder: nn.Module, *, adaptive: bool = False, videos: int = 0, **options: Any
    ) -> None:
        super().__init__(encoder, **options)
        self.budgets = Budgets(videos=videos, distributed=self.distributed) if adaptive else None

    def perturbed(self, clips: Tensor, batch: ClipBatch, *references: Tensor) -> Tensor:
        """Clips `[B * V, 3, T, S, S]` within the budget of each, perturbed so that `harm` rises."""
        views = len(clips) // len(batch.videos)
        seeds = attack_seeds(batch, views=views, seed=self.seed)
        network = nn.Sequential(self.encoder, self.head)
        fractions = torch.ones(len(clips), device=clips.device)
        if self.budgets is not None:
            fractions = self.budgets.fraction(batch.videos).repeat_interleave(views)
        # An attack takes one budget a call, so clips of one level go together.
        attacked = clips.clone()
        for fraction in fractions.unique().tolist():
            rows = (fractions == fraction).nonzero().flatten()
            known = [reference[rows] for reference in references]
            attacked[rows] = self.attack(
                network,
                clips[rows],
                lambda logits, known=known: self.harm(at_least_float32(logits), *known),  # type: ignore[misc]
                seeds=[seeds[row] for row in rows.tolist()],
                progress=batch.progress,
                fraction=fraction,
            )
        return attacked

    def harm(self, logits: Tensor, *references: Tensor) -> Tensor:
        """What the attack maximises, `[n]`, of logits `[n, classes]` and the clips' references."""
        raise NotImplementedError

    def report(self, batch: ClipBatch, features: Tensor, logits: Tensor) -> dict[str, Metric]:
        """Geometry of features `[B * V, D]` and accuracy of logits; budgets learn from these."""
        shape = batch.clips.shape[:2]
        units = F.normalize(at_least_float32(features.detach()), dim=1).unflatten(0, shape)
        described = self.describe(units, batch)
        # One number a video, so all of its clips have to withstand.
        correct = logits.argmax(dim=1) == batch.labels.repeat_interleave(shape[1])
        if self.budgets is not None:
            self.budgets.learn(batch.videos, correct.unflatten(0, shape).all(dim=1))
            described["budget"] = self.budgets.fraction(batch.videos).mean()
        return {"train_accuracy": correct.float().mean(), **described}


ADAPTIVE = Option(
    False,
    "at, trades: adapt the budget of each video, which rises while the video is still predicted "
    "correctly under attack and falls otherwise",
)


@METHODS.register(
    "at", "adversarial training (Madry et al., 2018)", **{"ADVERSARIAL.ADAPTIVE": ADAPTIVE}
)
class AdversarialTraining(AdversarialClassifier):
    """Minimises the cross-entropy that the attack maximises.

    Madry et al., "Towards Deep Learning Models Resistant to Adversarial Attacks", ICLR 2018. Fast
    AT (Wong et al., ICLR 2020) is the same with one step of 1.25 eps; Free AT (Shafahi et al.,
    NeurIPS 2019) is the same with a perturbation that ascends from replay to replay.
    """

    def forward(self, batch: ClipBatch) -> dict[str, Metric]:
        """Mean cross-entropy and accuracy over all views under attack."""
        clips = batch.clips.flatten(0, 1)
        labels = batch.labels.repeat_interleave(batch.clips.shape[1])
        features = self.encoder(self.perturbed(clips, batch, labels))
        logits = at_least_float32(self.head(features))
        loss = F.cross_entropy(logits, labels, label_smoothing=self.label_smoothing)
        return {"loss": loss, **self.report(batch, features, logits)}

    def harm(self, logits: Tensor, *references: Tensor) -> Tensor:
        """Cross-entropy."""
        return F.cross_entropy(logits, references[0], reduction="none")


BETA = Option(6.0, "trades: weight of the divergence term", minimum=0)


@METHODS.register("trades", "TRADES (Zhang et al., 2019)", **{"ADVERSARIAL.BETA": BETA})
class Trades(AdversarialClassifier):
    """L = CE(f(x), y) + beta KL(f(x) || f(x + delta)), where delta maximises the divergence.

    Zhang et al., "Theoretically Principled Trade-off between Robustness and Accuracy", ICML 2019.

    The loss is the authors'. Different from their code, which `published` equals: the attack starts
    anywhere within the budget, theirs at 0.001 N(0, 1) from the clean clip, where the divergence
    has next to no slope; and theirs passes the clean clips a second time, for the divergence, which
    BatchNorm's running statistics and dropout notice. What stays different: steps are those of
    ADVERSARIAL.ATTACK, theirs ten of 0.007 at an eps of 0.031; the start is cut to [0, 1].

    Args:
        encoder, options: see `AdversarialClassifier`.
        beta: weight of the divergence.
        published: compute the loss as the authors' code does; the attack that is handed in starts
            where theirs does.
    """

    published_start = 0.001

    def __init__(
        self, encoder: nn.Module, *, beta: float = 6.0, published: bool = False, **options: Any
    ) -> None:
        super().__init__(encoder, **options)
        self.beta, self.published = beta, published

    def forward(self, batch: ClipBatch) -> dict[str, Metric]:
        """Both terms over all views, and the accuracy on perturbed clips."""
        clips = batch.clips.flatten(0, 1)
        labels = batch.labels.repeat_interleave(batch.clips.shape[1])
        # In eval mode, as the attack sees the network: else the divergence would not start at 0.
        with torch.no_grad(), in_eval(self.encoder):
            wanted = at_least_float32(self.head(self.encoder(clips))).log_softmax(dim=1)
        attacked = self.perturbed(clips, batch, wanted)
        features = self.encoder(clips)
        logits = at_least_float32(self.head(features))
        moved = at_least_float32(self.head(self.encoder(attacked)))
        natural = F.cross_entropy(logits, labels, label_smoothing=self.label_smoothing)
        again = at_least_float32(self.head(self.encoder(clips))) if self.published else logits
        robust = divergence(again.log_softmax(dim=1), moved).mean()
        return {
            "loss": natural + self.beta * robust,
            "divergence": robust.detach(),
            **self.report(batch, features, moved),
        }

    def harm(self, logits: Tensor, *references: Tensor) -> Tensor:
        """The divergence from the prediction on the clean clips."""
        return divergence(references[0], logits)


def divergence(wanted: Tensor, logits: Tensor) -> Tensor:
    """KL(p || q) `[N]` of log p `[N, K]` and the logits of q."""
    return F.kl_div(logits.log_softmax(dim=1), wanted, reduction="none", log_target=True).sum(dim=1)
