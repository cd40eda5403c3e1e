"""The attack inside a training step: any solver, or the free one.

Any threat and solver can be run in each step; what makes that cheap enough (fewer frames, smaller
ones, a budget that rises) and what it costs in strength is measured by benchmarks/adversarial.py.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vidcsl.errors import UserError
from vidcsl.models.batchnorm import folded
from vidcsl.robustness.attacks import attack
from vidcsl.robustness.attacks.answers import frozen
from vidcsl.robustness.attacks.problem import Solver
from vidcsl.robustness.threats import Flicker, Linf, Threat
from vidcsl.robustness.threats.threat import draw, normal
from vidcsl.seeding import torch_generator

Loss = Callable[[Tensor], Tensor]
"""`outputs [N, D] -> [N]`: what is maximised."""


@dataclass(frozen=True)
class TrainingAttack:
    """Perturbs clips so that a loss of what a network makes of them rises.

    The network is attacked in eval mode, without gradients of its parameters, and within the
    caller's autocast unless `float32`.

    Args:
        threat: which perturbations are allowed.
        solver: how; one that keeps the last delta (`keep_worst=False`) costs least.
        ramp: fraction of the training run over which eps rises from 0 to the threat's; 0: at once.
        every: the attack sees one frame in `every`; the others get what their neighbour got.
        scale: the attack sees frames of this ratio of their side; a pixel of theirs stands for
            all that it covers.
        coarse_until: fraction of the run in which `every` and `scale` hold; then all is seen.
        float32: compute in float32 whatever the autocast.
        near: start at so many times N(0, 1) from the clean clip; 0: wherever the solver starts.

    Raises:
        UserError: a saving that does not keep the budget of the threat, or a start beside the clean
            clip where a threat moves no single pixels.
    """

    replays: ClassVar[int] = 1
    threat: Threat
    solver: Solver
    ramp: float = 0.0
    every: int = 1
    scale: float = 1.0
    coarse_until: float = 1.0
    float32: bool = False
    near: float = 0.0

    def __post_init__(self) -> None:
        if self.near and isinstance(self.threat, Flicker):
            raise UserError(
                "an attack that starts beside the clean clip (METHOD.NAME trades with "
                "METHOD.PUBLISHED) moves single pixels: choose another threat than flicker"
            )
        if (self.every, self.scale) != (1, 1.0) and not isinstance(self.threat, Linf):
            raise UserError("an attack on fewer frames or smaller ones needs the threat linf")

    def __call__(
        self,
        network: nn.Module,
        clips: Tensor,
        loss: Loss,
        *,
        seeds: Sequence[int],
        progress: float = 1.0,
        fraction: float = 1.0,
    ) -> Tensor:
        """The perturbed clips.

        Args:
            network: clips `[N, 3, T, S, S]` -> `[N, D]`.
            clips: float in [0, 1] `[N, 3, T, S, S]`.
            loss: of the network's outputs, one number a clip.
            seeds: `[N]`.
            progress: fraction of the training run that is done.
            fraction: of the eps that is due.
        """
        threat = self.at(progress, fraction)
        # Where a ramp begins nothing is allowed yet, so no pass is spent on it.
        if threat.eps == 0:
            return clips.detach()
        coarse = (self.every, self.scale) != (1, 1.0) and progress < self.coarse_until
        seen = clips
        if coarse:
            seen = clips[:, :, :: self.every]
            side = max(1, round(self.scale * clips.shape[-1]))
            seen = F.interpolate(seen, size=(seen.shape[2], side, side), mode="area")
            seen = seen.clamp(0, 1)  # averages may round above 1
        start = None
        if self.near:
            generators = [torch_generator(seed, "near start") for seed in seeds]
            start = seen + self.near * draw(normal, seen.shape, generators).to(seen)
        autocast = torch.is_autocast_enabled(clips.device.type) and not self.float32
        with frozen(network), folded(network), torch.autocast(clips.device.type, enabled=autocast):
            attacked = attack(
                network,
                seen,
                None,
                threat=threat,
                goal=_MaximiseLoss(loss),
                solver=self.solver,
                seeds=seeds,
                start=start,
            )
        if not coarse:
            return attacked
        delta = (attacked - seen).repeat_interleave(self.every, dim=2)[:, :, : clips.shape[2]]
        delta = F.interpolate(delta, size=clips.shape[2:], mode="nearest")
        # What fits the box around an average may not fit that around its pixels: project again.
        mask = threat.mask(clips, seeds)
        return threat.perturb(clips, threat.project(clips, delta, mask), seeds)

    def ascend(self) -> None:
        """Nothing to do: each step searches for a new perturbation."""

    def at(self, progress: float, fraction: float = 1.0) -> Any:
        """The threat that is due, its eps risen so far."""
        risen = min(1.0, progress / self.ramp) if self.ramp else 1.0
        return replace(self.threat, eps=self.threat.eps * risen * fraction)  # type: ignore[type-var]


@dataclass(frozen=True)
class _MaximiseLoss:
    """The goal of a plain loss: it is never reached."""

    loss: Loss

    def prepare(self, clean: Callable[[], Tensor], labels: Tensor) -> Tensor:
        return labels

    def value(self, outputs: Tensor, labels: Tensor, reference: Tensor) -> Tensor:
        # Outside the network's autocast: losses in half precision are too coarse to compare.
        with torch.autocast(outputs.device.type, enabled=False):
            return self.loss(outputs)

    def reached(self, outputs: Tensor, labels: Tensor, reference: Tensor) -> Tensor:
        return torch.zeros_like(labels, dtype=torch.bool)


@dataclass
class FreeAttack:
    """A perturbation that ascends from replay to replay of a batch, by steps of all of eps.

    Shafahi et al., "Adversarial Training for Free!", NeurIPS 2019: each batch is replayed, and the
    backward pass of each replay moves the weights and the perturbation. There, the perturbation of
    one batch is the start of the next one's; here each batch starts at random: another crop of
    another video has little to do with it, and a resumed run needs none of the last batch.

    What is maximised is the loss that the training run minimises. The seeds identify a batch:
    the same seeds are its next replay.

    Args:
        inner: its threat and ramp hold; its solver is not used.
        replays: training steps with each batch.

    Raises:
        UserError: the inner attack is to see fewer frames or smaller ones.
    """

    inner: TrainingAttack
    replays: int
    _now: "dict[tuple[int, ...], _Replay]" = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        if (self.inner.every, self.inner.scale) != (1, 1.0):
            raise UserError("a perturbation that ascends with the training steps sees all pixels")

    @property
    def pending(self) -> int:
        """How many batches have replays left."""
        return len(self._now)

    def __call__(
        self,
        network: nn.Module,
        clips: Tensor,
        loss: Loss,
        *,
        seeds: Sequence[int],
        progress: float = 1.0,
        fraction: float = 1.0,
    ) -> Tensor:
        """The clips as far as they are perturbed; they require a gradient.

        Args:
            network: plays no part, nor does `loss`: the caller's own backward pass is used.
            clips: float in [0, 1] `[N, 3, T, S, S]`.
            seeds: `[N]`.
            progress: fraction of the training run that is done.
            fraction: of the eps that is due.
        """
        threat, key = self.inner.at(progress, fraction), tuple(seeds)
        clips = clips.detach()
        if threat.eps == 0:
            return clips
        if key not in self._now:
            mask = threat.mask(clips, key)
            generators = [torch_generator(seed, "attack start") for seed in key]
            delta = threat.start(clips, mask, generators)
            shown = threat.perturb(clips, delta, key).detach().requires_grad_(True)
            self._now[key] = _Replay(threat, clips, mask, delta, shown, left=self.replays - 1)
        return self._now[key].shown

    def ascend(self) -> None:
        """Step along the gradients of the last training step; forget batches without replays."""
        replays, self._now = self._now, {}
        for seeds, one in replays.items():
            # Used up, or no backward pass came by: a step that the guard left out has none.
            if not one.left or one.shown.grad is None:
                continue
            # A float16 step that overflowed has no direction: it moves nothing.
            gradient = one.shown.grad.nan_to_num(0.0, 0.0, 0.0)
            threat, clips = one.threat, one.clips
            gradient = threat.pull_back(clips, one.delta, gradient, seeds)
            step = threat.steepest_step(clips, one.delta, gradient, threat.eps, one.mask)
            delta = threat.project(clips, one.delta + step, one.mask)
            shown = threat.perturb(clips, delta, seeds).detach().requires_grad_(True)
            self._now[seeds] = replace(one, delta=delta, shown=shown, left=one.left - 1)


@dataclass(frozen=True)
class _Replay:
    """Clips `[N, ...]` with their delta, as shown in this replay; `left`: in how many more."""

    threat: Threat
    clips: Tensor
    mask: Tensor
    delta: Tensor
    shown: Tensor
    left: int
