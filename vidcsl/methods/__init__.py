"""Pretraining methods, registered by name beside their classes; a new one is imported here."""

# ruff: noqa: I001  # names are listed in the order in which these modules are imported
from vidcsl.methods.method import METHODS, ClipBatch, Method
from vidcsl.methods.contrastive import ContrastiveMethod, SimCLR, SupCon
from vidcsl.methods.moco import MoCoV2, MoCoV3
from vidcsl.methods.byol import BYOL
from vidcsl.methods.swav import SwAV
from vidcsl.methods.vicreg import VICReg
from vidcsl.methods.barlow_twins import BarlowTwins
from vidcsl.methods.lejepa import LeJEPA
from vidcsl.methods.supervised import Supervised
from vidcsl.methods.adversarial import (
    ACL,
    AdvCL,
    AdversarialTraining,
    DeACL,
    DynACL,
    RoCL,
    Trades,
)

__all__ = [
    "ACL",
    "BYOL",
    "METHODS",
    "AdvCL",
    "AdversarialTraining",
    "BarlowTwins",
    "ClipBatch",
    "ContrastiveMethod",
    "DeACL",
    "DynACL",
    "LeJEPA",
    "Method",
    "MoCoV2",
    "MoCoV3",
    "RoCL",
    "SimCLR",
    "SupCon",
    "Supervised",
    "SwAV",
    "Trades",
    "VICReg",
]
