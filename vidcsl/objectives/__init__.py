"""Methods by name; a new one is one file and one line here."""

from vidcsl.objectives.adversarial import ADVERSARIAL, ADVERSARIAL_CONTRASTIVE
from vidcsl.objectives.byol import BYOL
from vidcsl.objectives.contrastive import ContrastiveMethod
from vidcsl.objectives.method import ClipBatch, Method
from vidcsl.objectives.moco_v2 import MoCoV2
from vidcsl.objectives.moco_v3 import MoCoV3
from vidcsl.objectives.simclr import SimCLR
from vidcsl.objectives.supcon import SupCon
from vidcsl.objectives.supervised import Supervised
from vidcsl.objectives.swav import SwAV

CONTRASTIVE: dict[str, type[ContrastiveMethod]] = {
    "simclr": SimCLR,
    "supcon": SupCon,
    "moco_v2": MoCoV2,
    "moco_v3": MoCoV3,
    **ADVERSARIAL_CONTRASTIVE,
}
METHODS: dict[str, type[Method]] = {
    **CONTRASTIVE,
    "byol": BYOL,
    "swav": SwAV,
    "supervised": Supervised,
    **ADVERSARIAL,
}

__all__ = ["CONTRASTIVE", "METHODS", "ClipBatch", "ContrastiveMethod", "Method"]
