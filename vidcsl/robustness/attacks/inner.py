"""The attack inside a training step: any solver, or the free one."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vidcsl.errors import UserError
from vidcsl.models.norm_sets import folded
from vidcsl.robustness.attacks import attack
from vidcsl.robustness.attacks.problem import frozen
from vidcsl.robustness.attacks.specs import Solver
from vidcsl.robustness.threats import Linf, Threat
from vidcsl.seeding import torch_generator

# ----------------------------------------------------------------------
# The attack inside a training step: any threat and solver, made cheap enough to be run in each.
#
# What is saved, and what that costs in strength, is measured by benchmarks/adversarial.py.

Loss = Callable[[Tensor], Tensor]
"""`outputs [N, D] -> [N]`: what is maximised."""


@dataclass(frozen=True)
class InnerAttack:
    """Perturbs clips so that a loss of what a network makes of them rises.

    The network is attacked in eval mode, without gradients of its parameters, and within the
    caller's autocast unless `float32`.

    Args:
        threat: which perturbations are allowed.
        solver: how; one that keeps the last delta (`keep_worst=False`) costs least.
        ramp: share of the training over which eps rises from 0 to the threat's; 0: at once.
        every: the attack sees every so many frames; the others get what their neighbour got.
        scale: the attack sees frames of this share of their side; a pixel of theirs stands for
            all that it covers.
        coarse_until: share of the training in which `every` and `scale` hold; then all is seen.
        float32: compute in float32 whatever the autocast.

    Raises:
        UserError: a saving that does not keep the budget of the threat.
    """

    replays: ClassVar[int] = 1
    threat: Threat
    solver: Solver
    ramp: float = 0.0
    every: int = 1
    scale: float = 1.0
    coarse_until: float = 1.0
    float32: bool = False

    def __post_init__(self) -> None:
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
        share: float = 1.0,
    ) -> Tensor:
        """The perturbed clips.

        Args:
            network: clips `[N, 3, T, S, S]` -> `[N, D]`.
            clips: float in [0, 1] `[N, 3, T, S, S]`.
            loss: of the network's outputs, one number a clip.
            seeds: `[N]`.
            progress: share of the training that is done.
            share: of the eps that is due.
        """
        threat = self.at(progress, share)
        if threat.eps == 0:
            return clips.detach()
        seen = self._shrunk(clips, progress)
        with (
            frozen(network),
            folded(network),
            torch.autocast(clips.device.type, enabled=_autocast(clips) and not self.float32),
        ):
            attacked = attack(
                network,
                seen,
                None,
                threat=threat,
                goal=_Maximised(loss),
                solver=self.solver,
                seeds=seeds,
            )
        return attacked if seen is clips else self._grown(clips, attacked - seen, threat, seeds)

    def climb(self) -> None:
        """Nothing: each step finds a perturbation of its own."""

    def at(self, progress: float, share: float = 1.0) -> Any:
        """The threat that is due, its eps risen so far."""
        risen = min(1.0, progress / self.ramp) if self.ramp else 1.0
        return replace(self.threat, eps=self.threat.eps * risen * share)  # type: ignore[type-var]

    def _shrunk(self, clips: Tensor, progress: float) -> Tensor:
        if (self.every, self.scale) == (1, 1.0) or progress >= self.coarse_until:
            return clips
        clips = clips[:, :, :: self.every]
        side = max(1, round(self.scale * clips.shape[-1]))
        shrunk: Tensor = F.interpolate(clips, size=(clips.shape[2], side, side), mode="area")
        return shrunk.clamp(0, 1)  # averages may round above 1

    def _grown(self, clips: Tensor, delta: Tensor, threat: Threat, seeds: Sequence[int]) -> Tensor:
        frames = clips.shape[2]
        delta = delta.repeat_interleave(self.every, dim=2)[:, :, :frames]
        delta = F.interpolate(delta, size=clips.shape[2:], mode="nearest")
        mask = threat.mask(clips, seeds)
        return threat.perturb(clips, threat.project(clips, delta, mask), seeds)


@dataclass(frozen=True)
class _Maximised:
    """The goal of a plain loss: it is never reached."""

    loss: Loss

    def prepare(self, _clean: Callable[[], Tensor], labels: Tensor) -> Tensor:
        return labels

    def value(self, outputs: Tensor, _labels: Tensor, _reference: Tensor) -> Tensor:
        with torch.autocast(outputs.device.type, enabled=False):
            return self.loss(outputs)

    def reached(self, _outputs: Tensor, labels: Tensor, _reference: Tensor) -> Tensor:
        return torch.zeros_like(labels, dtype=torch.bool)


def _autocast(clips: Tensor) -> bool:
    return torch.is_autocast_enabled(clips.device.type)


# ----------------------------------------------------------------------
# The attack that costs nothing: the training's own backward pass moves the perturbation too.
#
# Shafahi et al., "Adversarial Training for Free!", NeurIPS 2019: each batch is replayed, and each
# replay takes a step of the weights and a step of the perturbation. There, the perturbation of one
# batch is the start of the next one's; here each batch begins at random: another crop of another
# video has little to do with it, and a resumed run needs none of the last batch.


@dataclass
class FreeAttack:
    """A perturbation that climbs from replay to replay of a batch, by steps of all of eps.

    What it climbs is the loss that the training minimises. Clips are told from others by their
    seeds: the same seeds are the next replay.

    Args:
        inner: whose threat and ramp hold; its solver is not asked.
        replays: steps of the training with each batch.

    Raises:
        UserError: the inner attack is to see fewer frames or smaller ones.
    """

    inner: InnerAttack
    replays: int
    _now: "dict[tuple[int, ...], _Perturbation]" = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        if (self.inner.every, self.inner.scale) != (1, 1.0):
            raise UserError("a perturbation that climbs with the training's steps sees all pixels")

    def __call__(
        self,
        _network: nn.Module,
        clips: Tensor,
        _loss: Callable[[Tensor], Tensor],
        *,
        seeds: Sequence[int],
        progress: float = 1.0,
        share: float = 1.0,
    ) -> Tensor:
        """The clips as far as they are perturbed; their gradient is waited for.

        Args:
            clips: float in [0, 1] `[N, 3, T, S, S]`.
            seeds: `[N]`.
            progress: share of the training that is done.
            share: of the eps that is due.
        """
        threat, key = self.inner.at(progress, share), tuple(seeds)
        if threat.eps == 0:
            return clips.detach()
        if key not in self._now:
            self._now[key] = _begun(threat, clips.detach(), key, left=self.replays - 1)
        return self._now[key].shown

    def climb(self) -> None:
        """Move what the last step has learned from; forget what no replay is left for."""
        self._now = {
            seeds: each.climbed()
            for seeds, each in self._now.items()
            if each.left and each.shown.grad is not None
        }


@dataclass(frozen=True)
class _Perturbation:
    """Of clips `[N, ...]`, by `delta`, shown in this replay; `left`: in how many more."""

    threat: Threat
    clips: Tensor
    seeds: tuple[int, ...]
    mask: Tensor
    delta: Tensor
    shown: Tensor
    left: int

    def climbed(self) -> "_Perturbation":
        """After a step along the gradient at the shown clips."""
        threat, given = self.threat, (self.clips, self.delta)
        assert self.shown.grad is not None
        # From a step of float16 that overflowed nothing can be learned.
        felt = self.shown.grad.nan_to_num(0.0, 0.0, 0.0)
        gradient = threat.pull_back(*given, felt, self.seeds)
        step = threat.steepest_step(*given, gradient, threat.eps, self.mask)
        delta = threat.project(self.clips, self.delta + step, self.mask)
        shown = _shown(threat, self.clips, delta, self.seeds)
        return replace(self, delta=delta, shown=shown, left=self.left - 1)


def _begun(threat: Threat, clips: Tensor, seeds: tuple[int, ...], *, left: int) -> _Perturbation:
    """A random one."""
    mask = threat.mask(clips, seeds)
    delta = threat.start(clips, mask, [torch_generator(seed, "attack start") for seed in seeds])
    return _Perturbation(
        threat, clips, seeds, mask, delta, _shown(threat, clips, delta, seeds), left
    )


def _shown(threat: Threat, clips: Tensor, delta: Tensor, seeds: Sequence[int]) -> Tensor:
    """The perturbed clips, which wait for their gradient."""
    return threat.perturb(clips, delta, seeds).detach().requires_grad_(True)
