"""The attack that costs nothing: the training's own backward pass moves the perturbation too.

Shafahi et al., "Adversarial Training for Free!", NeurIPS 2019: each batch is replayed, and each
replay takes a step of the weights and a step of the perturbation. There, the perturbation of one
batch is the start of the next one's; here each batch begins at random: another crop of another
video has little to do with it, and a resumed run needs none of the last batch.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from torch import Tensor, nn

from vidcsl.errors import UserError
from vidcsl.robustness.attacks.inner import InnerAttack
from vidcsl.robustness.threats import Threat
from vidcsl.seeding import torch_generator


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
