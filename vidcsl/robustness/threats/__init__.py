"""Threats: which perturbations of a clip are allowed, apart from what they are to achieve and how.

A threat works on clips `[N, 3, T, H, W]` in [0, 1] (on images `[N, 3, H, W]` too, where time plays
no part). `mask` says which pixels may change: compute it once (`threat.mask(clips, seeds)`) and
pass it to every call, sliced along with the clips.
"""

from vidcsl.robustness.threats.flicker import Flicker, roughness, thickness
from vidcsl.robustness.threats.masks import Frames, Probe, check_frames, choose_frames
from vidcsl.robustness.threats.norms import L1, L2, FrameSparse, Linf
from vidcsl.robustness.threats.threat import (
    LEVEL,
    THREATS,
    Ball,
    BudgetExceeded,
    Threat,
    to_levels,
)
from vidcsl.robustness.threats.universal import Universal

__all__ = [
    "BUDGETS",
    "L1",
    "L2",
    "LEVEL",
    "THREATS",
    "Ball",
    "BudgetExceeded",
    "Flicker",
    "FrameSparse",
    "Frames",
    "Linf",
    "Probe",
    "Threat",
    "Universal",
    "check_frames",
    "choose_frames",
    "roughness",
    "thickness",
    "to_levels",
]

BUDGETS = {key: option for key, option in THREATS.options().items() if key != THREATS.key}
"""The config keys of the budgets, "ATTACK.EPS_LINF" and so on, which stand beside the threats."""
