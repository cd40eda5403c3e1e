"""RoCL, ACL and DynACL: SimCLR with perturbed views."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vidcsl.errors import UserError
from vidcsl.methods.adversarial.inner import Attacking, attack_seeds, in_eval
from vidcsl.methods.contrastive import SimCLR, StepPairs
from vidcsl.methods.losses import Pairs, at_least_float32
from vidcsl.methods.method import METHODS, ClipBatch, embed
from vidcsl.methods.metrics import Metric
from vidcsl.models.batchnorm import ADVERSARIAL, CLEAN, batchnorm_in_use


class AdversarialContrast(Attacking, SimCLR):
    """SimCLR with perturbed views.

    False negatives are found once a step, between clean views; every contrastive term, those that
    the attack maximises among them, takes its pairs from there (`StepPairs.among`).

    Args:
        encoder, projector, options: see `ContrastiveMethod`.
        attack, seed: see `Attacking`.
    """

    one_sided = False  # whether similarities pass gradients to the anchor alone

    def network(self) -> nn.Module:
        """What is attacked: clips, those of a video in a row, to embeddings of any length."""
        return nn.Sequential(self.encoder, self.projector)

    def row_losses(self, embeddings: Tensor, pairs: Pairs) -> tuple[Tensor, Tensor]:
        """The loss of each of the embeddings `[B, V, P]`, and where it is defined, `[B, V]`."""
        with torch.autocast(embeddings.device.type, enabled=False):
            anchors = at_least_float32(embeddings.flatten(0, 1))
            candidates = self.distributed.gather(anchors)
            candidates = candidates.detach() if self.one_sided else candidates
            losses, defined = self.loss(anchors @ candidates.T, pairs)
        shape = embeddings.shape[:2]
        return losses.unflatten(0, shape), defined.unflatten(0, shape)

    def term(self, embeddings: Tensor, pairs: Pairs) -> Tensor:
        """The mean loss of the embeddings `[B, V, P]` over all processes."""
        losses, defined = self.row_losses(embeddings, pairs)
        return self.averaged(losses.sum(), defined)

    def perturbed(
        self, clips: Tensor, loss: Callable[[Tensor], Tensor], batch: ClipBatch
    ) -> Tensor:
        """Clips `[B, V, 3, T, S, S]`, perturbed so that a loss rises.

        Args:
            clips: clean.
            loss: unit embeddings `[B, V, P]` of the perturbed clips to one number a video, `[B]`.
            batch: whose clips they are.
        """
        views = clips.shape[1]

        def of_clips(outputs: Tensor) -> Tensor:
            units = F.normalize(at_least_float32(outputs), dim=1).unflatten(0, (-1, views))
            # An attack wants one number a clip: a video's loss in equal parts, with the same sum.
            return loss(units).repeat_interleave(views) / views

        attacked = self.attack(
            self.network(),
            clips.flatten(0, 1),
            of_clips,
            seeds=attack_seeds(batch, views=views, seed=self.seed),
            progress=batch.progress,
        )
        return attacked.unflatten(0, clips.shape[:2])


REGULARISER = 1 / 256  # weight of the perturbed view against the other view alone


@METHODS.register("rocl", "RoCL (Kim et al., 2020)")
class RoCL(AdversarialContrast):
    """NT-Xent over the clean views and a perturbed first one, which share their BatchNorms.

    Kim et al., "Adversarial Self-Supervised Contrastive Learning", NeurIPS 2020: the perturbed clip
    that the loss recognises least as a view of its video is one more positive. On video, and with
    false negatives removed, it is ours.

    The authors' code, which `published` equals, sums over an anchor's positives where we take their
    mean (so the regulariser weighs double here), lets a similarity pass its gradient to the anchor
    alone, and embeds the regulariser's clips in a pass of their own. What stays different: they add
    1e-8 inside logarithms.

    Args:
        published: compute the loss as the authors' code does.
        options: see `AdversarialContrast`.
    """

    one_mean = False

    def __init__(self, *modules: nn.Module, published: bool = False, **options: Any) -> None:
        super().__init__(*modules, **options)
        self.published = self.one_sided = published

    def forward(self, batch: ClipBatch) -> dict[str, Metric]:
        """The loss over all views, and a small one of the perturbed view and the others alone."""
        views = batch.clips.shape[1] - self.voters
        clips = batch.clips[:, :views]
        # The one set of BatchNorms is to see these clips once, in the joint pass below.
        with torch.no_grad(), in_eval(self.encoder, self.projector):
            contrast = self.contrast(batch)
        clean = contrast.anchors.unflatten(0, (-1, views))
        described = self.describe(clean, batch)
        found = StepPairs(self, contrast, batch)
        found.find_all()
        pairs = found.among([*range(views)])
        # The first view is attacked against the clean others, which stay as they are.
        adversarial = self.perturbed(
            clips[:, :1],
            lambda moved: self.row_losses(torch.cat([moved, clean[:, 1:]], dim=1), pairs)[0].sum(1),
            batch,
        )
        embeddings = self.embed(torch.cat([clips, adversarial], dim=1))
        everything = self.term(embeddings, found.among([*range(views), 0]))
        # The perturbed view in the place of the first, which it was made from.
        pair = torch.cat([embeddings[:, -1:], embeddings[:, 1:-1]], dim=1)
        if self.published:
            everything = views * everything  # so many positives has each anchor
            pair = self.embed(torch.cat([adversarial, clips[:, 1:]], dim=1))
        regulariser = self.term(pair, pairs)
        return {
            "loss": everything + REGULARISER * regulariser,
            "adversarial_loss": regulariser.detach(),
            **found.metrics(),
            **described,
        }


@METHODS.register("acl", "ACL, dual stream (Jiang et al., 2020)")
class ACL(AdversarialContrast):
    """The mean of NT-Xent over the clean views and NT-Xent over all views perturbed together.

    Jiang et al., "Robust Pre-Training by Adversarial Contrastive Learning", NeurIPS 2020, dual
    stream: clean views go through one set of BatchNorms, perturbed ones through another. On video,
    and with false negatives removed, it is ours.
    """

    batchnorm_names = projector_batchnorm_names = (CLEAN, ADVERSARIAL)

    def forward(self, batch: ClipBatch) -> dict[str, Metric]:
        """Both losses, weighted; what else is reported is of the clean views."""
        contrast = self.contrast(batch)
        views = batch.clips.shape[1] - self.voters
        clean = contrast.anchors.unflatten(0, (-1, views))
        described = self.describe(clean, batch)
        found = StepPairs(self, contrast, batch)
        found.find_all()
        # Found between clean views: perturbed ones would be alike for the attack's sake.
        pairs = found.among([*range(views)])
        with batchnorm_in_use(self, ADVERSARIAL):
            clips = self.perturbed(
                batch.clips[:, :views], lambda moved: self.row_losses(moved, pairs)[0].sum(1), batch
            )
            adversarial = self.embed(clips)
        losses = self.term(clean, pairs), self.term(adversarial, pairs)
        weight = self.weight(batch.progress)
        return {
            "loss": ((2 - weight) * losses[0] + weight * losses[1]) / 2,
            "clean_loss": losses[0].detach(),
            "adversarial_loss": losses[1].detach(),
            **found.metrics(),
            **described,
        }

    def weight(self, _progress: float) -> float:
        """Weight of the perturbed views, from 0 to 2."""
        return 1.0


GAIN = 2 / 3  # by how much the weight grows over the whole run


@METHODS.register("dynacl", "DynACL (Luo et al., 2023)")
class DynACL(ACL):
    """ACL with weights of 2 - w and w, where w rises from 1 in as many stages as strengths fall.

    Luo et al., "Rethinking the Effect of Data Augmentation in Adversarial Contrastive Learning",
    ICLR 2023: the augmentation weakens with training (AUGMENT.STRENGTHS), while the perturbed views
    count more.

    The paper describes that; the authors' code embeds the second view of each video by a momentum
    copy of the encoder, clean and perturbed, and `published` does so, too. What stays different:
    they evaluate the copy, we the encoder; theirs follows before the optimiser's step, ours after.

    Args:
        stages: equal parts of the training run.
        published: embed second views by the momentum encoder.
        options: see `AdversarialContrast`.
    """

    published_parts = ("momentum_encoder",)

    def __init__(
        self, *modules: nn.Module, stages: int = 1, published: bool = False, **options: Any
    ) -> None:
        super().__init__(*modules, **options)
        self.stages, self.published = stages, published

    def network(self) -> nn.Module:
        """Encoder and projector, for every second clip their momentum copies."""
        online = super().network()
        if not self.published:
            return online
        assert self.teacher is not None
        return _Alternating(online, nn.Sequential(self.teacher.encoder, self.teacher.projector))

    @classmethod
    def check_published(cls, *, clips: int, voters: int) -> None:
        """Two clips a video, as these have an encoder each."""
        if clips != 2 or voters:
            raise UserError(
                "METHOD.PUBLISHED: dynacl embeds one clip of a video by the encoder, one by its "
                "momentum copy: set DATA.CLIPS to 2 and FALSE_NEGATIVES.VOTERS to 0"
            )

    def embed(self, clips: Tensor) -> Tensor:
        """Unit embeddings `[B, V, P]`.

        Raises:
            UserError: see `check_published`.
        """
        if self.published:
            self.check_published(clips=clips.shape[1], voters=0)
        return embed(self.network(), clips)

    def weight(self, progress: float) -> float:
        """w = min(1 + 2/3 of the fraction of finished stages, 2)."""
        # 1e-9: a stage that has just ended counts, to whichever side its fraction was rounded.
        finished = int(progress * self.stages + 1e-9) / self.stages
        return min(1 + GAIN * finished, 2.0)


class _Alternating(nn.Module):
    """The first of two networks for clips 0, 2, ..., the second for the others."""

    def __init__(self, even: nn.Module, odd: nn.Module) -> None:
        super().__init__()
        self.even, self.odd = even, odd

    def forward(self, clips: Tensor) -> Tensor:
        outputs = torch.stack([self.even(clips[::2]), self.odd(clips[1::2])], dim=1)
        return outputs.flatten(0, 1)
