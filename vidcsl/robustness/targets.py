"""What is attacked: modules from pixels in [0, 1] to logits, and the pixels that they are given.

Every threat, goal and solver works on such a module. A classifier on clips is one already. Here are
the others: a prediction averaged over the views of a video, whose frames are what is perturbed; a
vote of nearest neighbours; and the expectation over a random preprocessing. Each wraps a module and
can be wrapped in turn.
"""

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from vidcsl.data.loader import Batch
from vidcsl.errors import UserError
from vidcsl.registry import Registry
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
    the label of the first retrieved video, so that fooling it is losing R@1. But a vote is constant
    almost everywhere. The logits are therefore those of a soft vote, in which the whole gallery
    takes part, weighted by exp(similarity / temperature): their gradient leads away from the
    neighbours of one's own class, towards those of others. Where soft and true vote disagree, the
    true winner is lifted, without gradient, above the rest.

    Args:
        encoder: clips -> features `[N, D]`.
        gallery: unit features `[M, D]`.
        labels: of the gallery, int64 `[M]`, all known.
        classes: how many there are.
        k: neighbours that vote; at most M.
        temperature: of the weights.
    """

    gallery: Tensor
    one_hot: Tensor
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
        # Among the buffers, so that `weights_digest` tells votes over one gallery apart.
        self.register_buffer("vote", torch.tensor([self.k, temperature], dtype=torch.float64))

    def forward(self, clips: Tensor) -> Tensor:
        """Logits `[N, K]`."""
        features = F.normalize(self.encoder(clips).to(self.gallery.dtype), dim=1)
        scaled = features @ self.gallery.T / self.temperature  # [N, M]
        # The soft vote. Only differences of similarities count: without the largest one, exp
        # would overflow at small temperatures.
        highest = scaled.detach().amax(dim=1, keepdim=True)
        votes = (scaled - highest).exp() @ self.one_hot  # [N, K]
        logits = votes.clamp_min(torch.finfo(votes.dtype).tiny).log() + highest
        with torch.no_grad():
            near = scaled.topk(self.k, dim=1)
            weights = (near.values - near.values[:, :1]).exp()  # [N, k]
            true_vote = (weights[:, :, None] * self.one_hot[near.indices]).sum(dim=1)
            winner = true_vote.argmax(dim=1, keepdim=True)
            others = logits.scatter(1, winner, -torch.inf).amax(dim=1, keepdim=True)
            short = others - logits.gather(1, winner)
            # A hair above the best other where it is not ahead anyway: argmax must not see a tie.
            lift = torch.where(short >= 0, short + 1e-4 * (1 + others.abs()), 0.0)
        return logits.scatter_add(1, winner, lift)


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

    def forward(self, clips: Tensor) -> Tensor:
        """The mean output `[N, K]`."""
        generators = [torch_generator(self.seed, draw, "transform") for draw in range(self.draws)]
        # Copies: the model may normalise in place, and a transform may pass on what it was given.
        outputs = [self.model(self.transform(clips.clone(), each)) for each in generators]
        return self.mean(torch.stack(outputs, dim=1))


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
    """

    clips: Tensor
    labels: Tensor
    seeds: Sequence[int]
    videos: Sequence[int]
    view: InputView = clip_view

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
