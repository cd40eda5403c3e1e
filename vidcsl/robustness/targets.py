"""What is attacked: modules from pixels in [0, 1] to logits, and the pixels that they are given.

Every threat, goal and solver works on such a module. A classifier on clips is one already. Here are
the others: a prediction averaged over the views of a video, whose frames are what is perturbed; a
vote of nearest neighbours; and the expectation over a random preprocessing. Each wraps a module and
can be wrapped in turn.
"""

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from vidcsl.data.loader import Batch
from vidcsl.errors import UserError
from vidcsl.registry import Registry
from vidcsl.robustness.attacks.answers import Judged
from vidcsl.robustness.corruptions.windows import Window
from vidcsl.seeding import torch_generator

Mean = Callable[[Tensor], Tensor]
"""Outputs for several views `[N, V, ...]` to one output `[N, ...]`."""

Crop = Callable[[Tensor, Tensor], Tensor]
"""`(frames [N, V, 3, T, H, W], sizes [N, 2]) -> clips [N, V * crops, 3, T, S, S]`, an EvalCrop."""

InputView = Callable[[nn.Module, Mean], nn.Module]
"""How a model of clips sees the attacked pixels: (model, mean) -> the model of these pixels."""

Target = Callable[[InputView], nn.Module]
"""What is attacked, given how it sees the pixels that are perturbed: a module in eval mode."""

Transform = Callable[[Tensor, torch.Generator], Tensor]
"""`(clips, generator on the CPU) -> clips`, differentiable; one draw for the whole batch."""


def clip_view(model: nn.Module, mean: Mean) -> nn.Module:  # noqa: ARG001
    """The view of pixels that are clips already: the model itself."""
    return model


def classifier(model: nn.Module) -> Target:
    """The target that is a classifier of clips."""
    return lambda view: view(model, mean_probability)


def mean_probability(logits: Tensor) -> Tensor:
    """Logits `[N, V, K]` of V views -> the logarithm of their mean probability `[N, K]`.

    Its largest entry is the prediction of the video, and its cross-entropy the video's loss.
    """
    views = logits.shape[1]
    return logits.log_softmax(dim=2).logsumexp(dim=1) - np.log(views)


def mean_direction(features: Tensor) -> Tensor:
    """Features `[N, V, D]` of V views -> the unit vector of the mean of their unit vectors."""
    return F.normalize(F.normalize(features, dim=2).mean(dim=1), dim=1)


def frames_used(clips: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The frames of a video that its views read, and the views in terms of these.

    Args:
        clips: frame indices of each view, `[V, T]`; views may overlap and loop.

    Returns:
        The frames `[U]`, each once and in order, and `[V, T]` positions among them.
    """
    used, positions = np.unique(clips, return_inverse=True)
    return used, positions.reshape(clips.shape)


class OverViews(nn.Module):
    """A model of clips as a model of a video's frames: its output averaged over views and crops.

    A frame that several views share is one input: it is perturbed once, and its gradient is the
    sum of what all views send back. Cropping and resizing are part of the attacked function.

    Args:
        model: clips `[M, 3, T, S, S]` -> logits `[M, K]` (or features).
        views: positions of each view's frames among the U given ones, integers `[V, T]`.
        crop: from frames to squares, an `EvalCrop`; None where the frames are cropped already.
        mean: how the outputs are averaged; a single one is passed on as it is.
    """

    def __init__(
        self,
        model: nn.Module,
        views: Tensor | NDArray[np.int64],
        *,
        crop: Crop | None = None,
        mean: Mean = mean_probability,
    ) -> None:
        super().__init__()
        self.model, self.crop, self.mean = model, crop, mean
        self.training = model.training
        # On the CPU: the frames of a view are known without asking the device.
        self.views = torch.as_tensor(views, dtype=torch.long, device="cpu")
        if self.views.ndim != 2 or self.views.numel() == 0 or self.views.min() < 0:
            raise UserError(f"views must be frame positions [V, T], not {list(self.views.shape)}")

    def forward(self, frames: Tensor) -> Tensor:
        """The averaged output `[N, K]` for frames `[N, 3, U, H, W]`."""
        if frames.ndim != 5 or frames.shape[2] <= int(self.views.max()):
            raise UserError(
                f"these views need frames [N, 3, {int(self.views.max()) + 1} or more, H, W], not "
                f"{list(frames.shape)}"
            )
        squares = frames[:, None]  # [N, C, 3, U, S, S]
        if self.crop is not None:
            squares = self.crop(squares, torch.tensor(frames.shape[-2:]).expand(len(frames), 2))
        clips = squares[:, :, :, self.views.to(frames.device)]  # [N, C, 3, V, T, S, S]
        clips = clips.permute(0, 3, 1, 2, 4, 5, 6).flatten(1, 2)  # [N, V * C, 3, T, S, S]
        outputs: Tensor = self.model(clips.flatten(0, 1)).unflatten(0, clips.shape[:2])
        return outputs[:, 0] if outputs.shape[1] == 1 else self.mean(outputs)


class NeighbourVote(nn.Module):
    """Nearest neighbours as a classifier: the vote of the k most similar gallery videos.

    The label with the largest logit is exactly the one that `knn_accuracy` gives; with k = 1 it is
    the label of the first retrieved video, so that fooling it is losing R@1. With k = 1 the logit
    of a class is the similarity of its nearest video: goals maximise the margin between the nearest
    right and the nearest wrong neighbour, which is that of the retrieval itself. With k > 1 a vote
    jumps wherever a video joins the k nearest, and does not show what would join: attacks maximise
    `surrogates`, one after the other, and the vote alone decides whether a clip is fooled.

    Args:
        encoder: clips -> features `[N, D]`.
        gallery: unit features `[M, D]`.
        labels: of the gallery, int64 `[M]`, all known.
        classes: how many there are.
        k: neighbours that vote; at most M.
        temperature: of the weights exp(similarity / temperature) of the k neighbours.
    """

    VERSION = 2  # attacks maximise margins between neighbours: see `attacks.specs.versions`

    gallery: Tensor
    one_hot: Tensor
    members: Tensor
    vote: Tensor

    def __init__(
        self,
        encoder: nn.Module,
        gallery: Tensor,
        labels: Tensor,
        *,
        classes: int,
        k: int,
        temperature: float = 0.07,
    ) -> None:
        super().__init__()
        if len(gallery) == 0 or len(labels) != len(gallery) or int(labels.min()) < 0:
            raise UserError("nearest neighbours need a gallery whose videos all have labels")
        self.encoder, self.k, self.temperature = encoder, min(k, len(gallery)), temperature
        self.training = encoder.training
        self.register_buffer("gallery", gallery)
        self.register_buffer("one_hot", F.one_hot(labels, classes).to(gallery.dtype))  # [M, K]
        own = [(labels == label).nonzero()[:, 0] for label in range(classes)]
        padded = nn.utils.rnn.pad_sequence(own, batch_first=True, padding_value=len(gallery))
        self.register_buffer("members", padded)  # [K, the largest class]
        # Among the buffers, so that `weights_digest` tells votes over one gallery apart.
        self.register_buffer("vote", torch.tensor([self.k, temperature], dtype=torch.float64))

    def similarities(self, clips: Tensor) -> Tensor:
        """Cosines to the gallery, `[N, M]`."""
        features = F.normalize(self.encoder(clips).to(self.gallery.dtype), dim=1)
        return features @ self.gallery.T

    def decide(self, similarities: Tensor) -> Tensor:
        """Logits `[N, K]` of the vote itself, from `[N, M]`; with k = 1, of the nearest videos."""
        if self.k == 1:
            logits = self.nearest_of_classes(similarities, 1) / RETRIEVAL_TEMPERATURE
            # All but the nearest two classes far below them: a cross-entropy would spend part of
            # its gradient on classes that cannot win, and the margin alone decides.
            second = logits.topk(min(2, logits.shape[1]), dim=1).values[:, -1:]
            return torch.where(logits < second, logits - 20, logits)
        near = similarities.topk(self.k, dim=1)
        weights = ((near.values - near.values[:, :1]) / self.temperature).exp()  # [N, k]
        votes = (weights[:, :, None] * self.one_hot[near.indices]).sum(dim=1)
        return votes.clamp_min(torch.finfo(votes.dtype).tiny).log()

    def nearest_of_classes(self, similarities: Tensor, count: int) -> Tensor:
        """Mean similarity to the `count` nearest of each class, `[N, M]` -> `[N, K]`."""
        beside = F.pad(similarities, (0, 1), value=-torch.inf)  # what `members` pads with
        of_classes = beside[:, self.members]  # [N, K, the largest class]
        near = of_classes.topk(min(count, of_classes.shape[2]), dim=2).values
        there = near.isfinite()
        mean = torch.where(there, near, 0.0).sum(dim=2) / there.sum(dim=2).clamp_min(1)
        # A class without a video is farther than any: cosines are -1 or more.
        return torch.where(there.any(dim=2), mean, -2.0)

    def forward(self, clips: Tensor) -> Tensor:
        """Logits `[N, K]`."""
        return self.decide(self.similarities(clips))

    @property
    def surrogates(self) -> list[nn.Module]:
        """What attacks maximise; none for k = 1, where the vote's own logits lead the way."""
        return [] if self.k == 1 else [_SoftMembers(self), _Switching(self)]


RETRIEVAL_TEMPERATURE = 0.02
"""Of logits that are cosines: as low as it may be without underflow (cosines differ by 2)."""


class _Surrogate(nn.Module):
    """A smooth function of the similarities, with the vote that decides."""

    def __init__(self, vote: NeighbourVote) -> None:
        super().__init__()
        self.vote = vote
        self.training = vote.training

    def forward(self, clips: Tensor) -> Judged:
        similarities = self.vote.similarities(clips)
        return Judged(self.logits(similarities), self.vote.decide(similarities.detach()))

    def logits(self, similarities: Tensor) -> Tensor:
        """`[N, M]` -> `[N, K]`."""
        raise NotImplementedError


class _SoftMembers(_Surrogate):
    """The vote in which a video is among the k nearest more or less, not yes or no.

    How softly follows from the similarities around the k-th: near it half of what lies between the
    k/2-th and the 2k-th has a part. So the surrogate is as sharp as the vote, at any temperature.
    """

    def logits(self, similarities: Tensor) -> Tensor:
        """`[N, M]` -> `[N, K]`."""
        vote, count = self.vote, similarities.shape[1]
        ranked = similarities.topk(min(2 * vote.k, count), dim=1).values
        last = (ranked[:, vote.k - 1] + ranked[:, min(vote.k, ranked.shape[1] - 1)]) / 2
        width = (ranked[:, (vote.k - 1) // 2] - ranked[:, -1]).clamp_min(1e-6) / 8
        members = F.logsigmoid((similarities - last[:, None]) / width[:, None])
        weights = similarities / vote.temperature + members
        # Far below any weight, yet finite: a class that has no video in the gallery.
        absent = weights.detach().amin(dim=1, keepdim=True) - 10
        of_classes = torch.where(vote.one_hot.T.bool()[None], weights[:, None], -torch.inf)
        found = of_classes.logsumexp(dim=2)
        return torch.where(found.isfinite(), found, absent)


class _Switching(_Surrogate):
    """The nearest of each class, as many as decide a vote of k: who is to be the majority."""

    def logits(self, similarities: Tensor) -> Tensor:
        """`[N, M]` -> `[N, K]`."""
        return (
            self.vote.nearest_of_classes(similarities, self.vote.k // 2 + 1) / RETRIEVAL_TEMPERATURE
        )


def neighbours(
    encoder: nn.Module, gallery: Tensor, labels: Tensor, *, classes: int, k: int
) -> Target:
    """The target that is a `NeighbourVote`; of several views the mean direction is compared."""
    return lambda view: NeighbourVote(
        view(encoder, mean_direction), gallery, labels, classes=classes, k=k
    )


class Expectation(nn.Module):
    """A model behind a random preprocessing: its output averaged over seeded draws (EOT).

    The gradient is that of the expected output, without which a random defence only looks strong
    (Athalye et al., "Obfuscated Gradients Give a False Sense of Security", ICML 2018). The draws
    are the same at every call, so that an attack's best clips stay the best, and the result for a
    clip depends neither on its batch nor on earlier calls.

    Args:
        model: clips -> logits `[N, K]`.
        transform: the random preprocessing.
        draws: over how many it is averaged.
        seed: of the draws.
        mean: how the outputs are averaged.
    """

    def __init__(
        self,
        model: nn.Module,
        transform: Transform,
        *,
        draws: int,
        seed: int = 0,
        mean: Mean = mean_probability,
    ) -> None:
        super().__init__()
        if draws < 1:
            raise UserError(f"an expectation needs 1 or more draws, not {draws}")
        self.model, self.transform, self.mean = model, transform, mean
        self.draws, self.seed = draws, seed
        self.training = model.training

    def forward(self, clips: Tensor) -> Tensor | Judged:
        """The mean output `[N, K]`."""
        generators = [torch_generator(self.seed, draw, "transform") for draw in range(self.draws)]
        # Copies: the model may normalise in place, and a transform may pass on what it was given.
        outputs = [self.model(self.transform(clips.clone(), each)) for each in generators]
        if isinstance(outputs[0], Judged):
            parts = zip(*outputs, strict=True)
            return Judged(*(self.mean(torch.stack(part, dim=1)) for part in parts))
        return self.mean(torch.stack(outputs, dim=1))

    @property
    def surrogates(self) -> list[nn.Module]:
        """Those of the model, each behind the same draws."""
        how: dict[str, Any] = {"draws": self.draws, "seed": self.seed, "mean": self.mean}
        inner = getattr(self.model, "surrogates", ())
        return [Expectation(each, self.transform, **how) for each in inner]


TRANSFORMS: Registry[Callable[[], Transform | None]] = Registry(
    "ATTACK.PREPROCESSING",
    default="none",
    meaning="random preprocessing in front of the model, attacked in expectation (EOT)",
)


@TRANSFORMS.register("none", "no preprocessing")
def no_transform() -> None:
    """The model as it is: nothing to average over."""


@TRANSFORMS.register("crop", "a square of random place and size, resized")
class RandomCrop:
    """A square of random place and size, back at full size, the same for a whole batch.

    Args:
        sides: smallest and largest side, as a ratio of the short side.
    """

    def __init__(self, sides: Sequence[float] = (0.75, 1.0)) -> None:
        self.sides = sides

    def __call__(self, clips: Tensor, generator: torch.Generator) -> Tensor:
        """Clips `[N, 3, T, H, W]` cut to one square and resized to H x W by bilinear weights."""
        height, width = clips.shape[-2:]
        low, high = self.sides
        ratio, down, right = torch.rand(3, generator=generator).tolist()
        side = max(1, round((low + (high - low) * ratio) * min(height, width)))
        top, left = int(down * (height - side + 1)), int(right * (width - side + 1))
        cut = clips[..., top : top + side, left : left + side]
        resized = F.interpolate(
            cut.flatten(1, 2), size=(height, width), mode="bilinear", align_corners=False
        )
        return resized.unflatten(1, clips.shape[1:3])


@TRANSFORMS.register("noise", "Gaussian noise on every pixel")
class GaussianNoise:
    """Noise on every pixel, the same for all clips of a batch: randomised smoothing's transform.

    Args:
        sigma: standard deviation, pixels in [0, 1].
    """

    def __init__(self, sigma: float = 0.05) -> None:
        self.sigma = sigma

    def __call__(self, clips: Tensor, generator: torch.Generator) -> Tensor:
        """Clips `[N, ...]` with noise, still in [0, 1]."""
        noise = torch.randn(clips.shape[1:], generator=generator)
        return (clips + self.sigma * noise.to(clips)).clamp(0, 1)


@dataclass(frozen=True)
class Clips:
    """Pixels to be attacked or evaluated, with their labels.

    Args:
        clips: float32 `[N, 3, T, H, W]` in [0, 1].
        labels: int64 `[N]`.
        seeds: one a video.
        videos: their indices in the list.
        view: how a model of clips sees these pixels.
        windows: the videos around the clips at full rate, one a clip, for corruptions over time.
    """

    clips: Tensor
    labels: Tensor
    seeds: Sequence[int]
    videos: Sequence[int]
    view: InputView = clip_view
    windows: Sequence[Window] | None = None

    def __len__(self) -> int:
        return len(self.clips)

    def take(self, rows: Tensor) -> "Clips":
        """The chosen rows, an index tensor."""
        chosen = rows.tolist()
        return replace(
            self,
            clips=self.clips[rows],
            labels=self.labels[rows],
            seeds=[self.seeds[i] for i in chosen],
            videos=[self.videos[i] for i in chosen],
            windows=None if self.windows is None else [self.windows[i] for i in chosen],
        )


INPUTS: Registry[Callable[..., Iterator[Clips]]] = Registry(
    "ATTACK.INPUT", default="clip", meaning="pixels that are changed"
)


@INPUTS.register("clip", "the central clip as the encoder takes it")
def cropped_clips(
    batch: Batch, crop: Crop, *, seeds: Sequence[int], videos: Sequence[int]
) -> Iterator[Clips]:
    """The first view of each video as the model takes it: cropped and resized."""
    yield Clips(crop(batch.frames[:, :1], batch.sizes)[:, 0], batch.labels, seeds, videos)


@dataclass(frozen=True)
class FrameViews:
    """How a model of clips sees the decoded frames of a video: views, cropped and averaged.

    Args:
        pattern: positions of each view's frames among those given, `[V, T]`.
        crop: from frames to what the model takes.
    """

    pattern: NDArray[np.int64]
    crop: Crop

    def __call__(self, model: nn.Module, mean: Mean) -> nn.Module:
        """The model of clips as one of these frames."""
        return OverViews(model, self.pattern, crop=self.crop, mean=mean)


@INPUTS.register("video", "the decoded frames of all test views, averaged over these")
@INPUTS.register("frames", "its frames as decoded, before crop and resizing")
def decoded_frames(
    batch: Batch, crop: Crop, *, seeds: Sequence[int], videos: Sequence[int]
) -> Iterator[Clips]:
    """The decoded frames that all views of a video read, each once; cropping is in the view.

    Videos of one size whose views read their frames in the same pattern come together.
    """
    alike: dict[tuple[bytes, int, int], list[tuple[int, Tensor]]] = defaultdict(list)
    patterns = {}
    for row, (height, width) in enumerate(batch.sizes.tolist()):
        read = batch.frame_indices[row].cpu().numpy()
        _, first = np.unique(read, return_index=True)
        pattern = frames_used(read)[1]
        flat = batch.frames[row, ..., :height, :width].transpose(0, 1).flatten(1, 2)
        key = (pattern.tobytes(), height, width)
        patterns[key] = pattern
        alike[key].append((row, flat[:, torch.from_numpy(first).to(flat.device)].float() / 255))
    for key, members in alike.items():
        rows = [row for row, _ in members]
        yield Clips(
            torch.stack([frames for _, frames in members]),
            batch.labels[rows],
            [seeds[row] for row in rows],
            [videos[row] for row in rows],
            view=FrameViews(patterns[key], crop),
        )
