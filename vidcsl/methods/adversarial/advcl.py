"""AdvCL: a clean, a high-frequency and a perturbed view, with pseudo-labels."""

from dataclasses import replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vidcsl.distributed import DistributedContext
from vidcsl.errors import UserError
from vidcsl.methods.adversarial.contrastive import AdversarialContrast
from vidcsl.methods.adversarial.inner import attack_seeds
from vidcsl.methods.contrastive import StepPairs
from vidcsl.methods.false_negatives import Clusters, Observation
from vidcsl.methods.losses import at_least_float32
from vidcsl.methods.method import METHODS, ClipBatch
from vidcsl.methods.metrics import Metric
from vidcsl.models.batchnorm import ADVERSARIAL, CLEAN, batchnorm_in_use
from vidcsl.registry import Option

PSEUDO = "pseudo"  # the BatchNorms of clips that were perturbed against their pseudo-labels
WEIGHT = 0.2  # of the cross-entropy
BASE_TEMPERATURE = 0.07  # of the authors' SupCon loss, which is multiplied by temperature / this

CLUSTERS = Option(
    [500, 100, 50, 10, 2], "advcl: falling numbers of clusters, whose indices are pseudo-labels"
)


@METHODS.register("advcl", "AdvCL (Fan et al., 2021)", **{"ADVERSARIAL.CLUSTERS": CLUSTERS})
class AdvCL(AdversarialContrast):
    """NT-Xent over all clean views, the first one's high frequencies and the first one perturbed;
    and cross-entropy of pseudo-labels on the first one perturbed against these.

    Fan et al., "When Does Contrastive Learning Preserve Adversarial Robustness from Pretraining to
    Finetuning?", NeurIPS 2021. On video, and with false negatives removed, it is ours; so are the
    pseudo-labels, see `PseudoLabels`.

    The authors' code, which `published` equals, perturbs and filters a further view, the last clip
    here, which is itself not compared; it weighs the contrastive loss by temperature / 0.07 (7.14
    times ours at their 0.5, against the same cross-entropy); it leaves the filtered view as it is,
    about half of its pixels below 0; and it embeds each view in a pass of its own. What stays
    different: their further view is augmented weakly (crop and flip), ours as AUGMENT says; they
    attack in train mode, we in eval mode.

    Args:
        encoder, projector, options: see `AdversarialContrast`.
        feature_dim: length of a feature vector.
        dim: length of an embedding.
        videos: length of the training list.
        clusters: number of pseudo-labels at each level, falling.
        epochs: of the training run.
        seed: of the attack and of k-means.
        published: compute the loss as the authors' code does; it takes three clips or more.
        temperature: of the contrastive loss, for its weight in that.
        distributed: the processes that train together.
    """

    one_mean = False
    needs = ("hierarchy",)
    batchnorm_names = (CLEAN, ADVERSARIAL, PSEUDO)
    projector_batchnorm_names = (CLEAN, ADVERSARIAL)

    def __init__(
        self,
        encoder: nn.Module,
        projector: nn.Module,
        *,
        feature_dim: int,
        dim: int,
        videos: int,
        clusters: tuple[int, ...],
        epochs: int,
        seed: int = 0,
        published: bool = False,
        temperature: float = 0.1,
        distributed: DistributedContext | None = None,
        **options: Any,
    ) -> None:
        super().__init__(encoder, projector, seed=seed, distributed=distributed, **options)
        self.pseudo_labels = PseudoLabels(
            videos=videos,
            dim=dim,
            clusters=clusters,
            epochs=epochs,
            seed=seed,
            distributed=distributed,
        )
        self.published = published
        self.weight = temperature / BASE_TEMPERATURE if published else 1.0
        self.heads = nn.ModuleList(nn.Linear(feature_dim, count) for count in clusters)

    @classmethod
    def check_published(cls, *, clips: int, voters: int) -> None:
        """Two clips are compared, and one is perturbed and filtered."""
        if clips - voters < 3:
            raise UserError(
                "METHOD.PUBLISHED: advcl perturbs a clip of its own beside those it compares: "
                f"set DATA.CLIPS to at least {3 + voters}"
            )

    def forward(self, batch: ClipBatch) -> dict[str, Metric]:
        """Both losses; what else is reported is of the clean views."""
        self.require_videos(batch)
        views = batch.clips.shape[1] - self.voters
        if self.published:
            self.check_published(clips=batch.clips.shape[1], voters=self.voters)
            views -= 1
            source = batch.clips[:, views : views + 1]
            others = torch.cat([batch.clips[:, :views], batch.clips[:, views + 1 :]], dim=1)
            batch = replace(batch, clips=others)
            clips = batch.clips[:, :views]
            filtered = high_frequencies(source, published=True)
            passes = [*clips.split(1, dim=1), filtered]
        else:
            clips = batch.clips[:, :views]
            source = clips[:, :1]
            passes = [torch.cat([clips, high_frequencies(source)], dim=1)]
        shown = torch.cat([self.embed(each) for each in passes], dim=1)
        contrast = self.contrast_of(shown[:, :views], batch)
        described = self.describe(shown[:, :views], batch)
        found = StepPairs(self, contrast, batch)
        found.find_all()
        pairs = found.among([*range(views), 0, 0])
        with batchnorm_in_use(self, ADVERSARIAL):
            fixed = shown.detach()
            perturbed = self.perturbed(
                source,
                lambda moved: self.row_losses(torch.cat([fixed, moved], dim=1), pairs)[0].sum(1),
                batch,
            )
            adversarial = self.embed(perturbed)
        contrastive = self.term(torch.cat([shown, adversarial], dim=1), pairs)
        pseudo = self.pseudo_label_loss(source[:, 0], batch)
        self.pseudo_labels.learn(Observation(batch.videos, contrast.support, batch.progress))
        return {
            "loss": self.weight * contrastive + WEIGHT * pseudo,
            "contrastive_loss": contrastive.detach(),
            "pseudo_label_loss": pseudo.detach(),
            **found.metrics(),
            **described,
        }

    def pseudo_label_loss(self, clips: Tensor, batch: ClipBatch) -> Tensor:
        """The mean cross-entropy of the pseudo-labels on clips perturbed against them."""
        labels = self.pseudo_labels.of(batch.videos)  # [levels, B]
        network = _AllHeads(self.encoder, self.heads)

        def of_clips(logits: Tensor) -> Tensor:
            parts = at_least_float32(logits).split(list(self.pseudo_labels.clusters), dim=1)
            each = [
                F.cross_entropy(part, known, ignore_index=-1, reduction="none")
                for part, known in zip(parts, labels, strict=True)
            ]
            return torch.stack(each).mean(dim=0)

        with batchnorm_in_use(self.encoder, PSEUDO):
            if bool((labels >= 0).any()):
                seeds = attack_seeds(batch, views=1, seed=self.seed, purpose="pseudo-labels")
                clips = self.attack(network, clips, of_clips, seeds=seeds, progress=batch.progress)
            # Also without labels: DDP waits for a gradient of every head.
            logits = network(clips)
        with torch.autocast(logits.device.type, enabled=False):
            known = (labels[0] >= 0).sum()
            return self.averaged(of_clips(logits).sum(), known)


class _AllHeads(nn.Module):
    """The logits of all heads side by side."""

    def __init__(self, encoder: nn.Module, heads: nn.ModuleList) -> None:
        super().__init__()
        self.encoder, self.heads = encoder, heads

    def forward(self, clips: Tensor) -> Tensor:
        features = self.encoder(clips)
        return torch.cat([head(features) for head in self.heads], dim=1)


RADIUS = 0.25  # of the disc of frequencies that is cut out, as a fraction of the frame's side


def high_frequencies(clips: Tensor, *, published: bool = False) -> Tensor:
    """Each frame without its low spatial frequencies, clamped to [0, 1].

    Fan et al. (NeurIPS 2021) cut out a disc of radius 8 in the spectrum of 32 x 32 images; here the
    radius grows with the frames.

    Args:
        clips: `[..., S, S]` in [0, 1].
        published: as the authors' code: without the clamp, and the disc without its rim.
    """
    side = clips.shape[-1]
    with torch.autocast(clips.device.type, enabled=False):
        spectrum = torch.fft.fft2(clips.float())
        steps = torch.fft.fftfreq(side, 1 / side, device=clips.device)  # signed, 0 first
        distance, radius = steps[:, None].square() + steps.square(), (RADIUS * side) ** 2
        low = distance < radius if published else distance <= radius
        passed = torch.fft.ifft2(spectrum.masked_fill(low, 0)).real
    return (passed if published else passed.clamp(0, 1)).to(clips.dtype)


class PseudoLabels(Clusters):
    """Clusters of the training videos at several levels, as labels `[levels, videos]`.

    The embeddings of the run itself are clustered, once an epoch, into a hierarchy. AdvCL as
    published takes labels of an encoder that was pretrained on ImageNet instead, once and for all.
    As heads learn to predict clusters, each new cluster gets the number of the old one that it
    shares most videos with, in the best assignment of all (Kuhn, 1955).
    """

    def cluster(self, epoch: int) -> None:
        """Label the videos seen so far anew, under numbers that outlive the clustering."""
        before = self.labels.clone()
        super().cluster(epoch)
        for level, count in enumerate(self.clusters):
            self.labels[level] = matched(before[level], self.labels[level], count=count)

    def of(self, videos: Tensor) -> Tensor:
        """`[levels, N]`; -1 where unknown so far."""
        return self.labels[:, videos]


def matched(before: Tensor, after: Tensor, *, count: int) -> Tensor:
    """The labels `after` `[n]`, renamed so that as many as possible stay as `before`; -1: unknown.

    Args:
        before, after: int64 `[n]`, below `count`.
        count: how many clusters there are.
    """
    from scipy.optimize import linear_sum_assignment  # here, as it is slow to import

    # By how many videos two clusters share; the assignment maximises the total, not each pair.
    both = (before >= 0) & (after >= 0)
    shared = np.zeros((count, count), dtype=np.int64)
    np.add.at(shared, (after[both].cpu().numpy(), before[both].cpu().numpy()), 1)
    new, old = linear_sum_assignment(shared, maximize=True)
    table = after.new_empty(count).index_copy(0, after.new_tensor(new), after.new_tensor(old))
    return table[after.clamp(min=0)].where(after >= 0, -1)
