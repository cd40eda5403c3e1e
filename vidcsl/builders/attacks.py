"""Attacks, by name and budget."""

from collections.abc import Sequence
from functools import partial

from fvcore.common.config import CfgNode
from torch import Tensor, nn

from vidcsl.errors import UserError
from vidcsl.robustness.attack_curve import Attack
from vidcsl.robustness.attacks import PGD, attack
from vidcsl.robustness.threats import THREATS, Threat, choose_frames


def build_attacks(cfg: CfgNode) -> dict[str, dict[str, Attack]]:
    """`{"pgd_linf": {"0.25/255": attack, ...}, "pgd_l2": {...}}`, smallest budget first."""
    unknown = sorted(set(cfg.ATTACK.THREATS) - {"linf", "l2"})
    if unknown:
        raise UserError(f"ATTACK.THREATS: unknown {unknown[0]!r}; choose from linf, l2")
    budgets = {
        "linf": {f"{eps:g}/255": eps / 255 for eps in sorted(cfg.ATTACK.EPS_LINF)},
        "l2": {f"{eps:g}": eps for eps in sorted(cfg.ATTACK.EPS_L2)},
    }
    frames = _frames(cfg.ATTACK.FRAMES)
    choose_frames(frames, cfg.DATA.FRAMES, seeds=[0])  # they may not be there
    solver = PGD(steps=cfg.ATTACK.STEPS, restarts=cfg.ATTACK.RESTARTS)
    return {
        f"pgd_{norm}": {
            key: partial(_attack, threat=THREATS[norm](eps, frames=frames), solver=solver)
            for key, eps in budgets[norm].items()
        }
        for norm in cfg.ATTACK.THREATS
    }


def _attack(
    model: nn.Module,
    clips: Tensor,
    labels: Tensor,
    seeds: Sequence[int],
    *,
    threat: Threat,
    solver: PGD,
) -> Tensor:
    return attack(model, clips, labels, threat=threat, solver=solver, seeds=seeds)


def _frames(spec: str) -> str | list[int]:
    parts = spec.split(",")
    return [int(part) for part in parts] if all(part.strip().isdigit() for part in parts) else spec
