"""Methods by name; a new one is one file and one line here."""

from vidcsl.methods.adversarial import ADVERSARIAL, ADVERSARIAL_CONTRASTIVE
from vidcsl.methods.byol import BYOL
from vidcsl.methods.contrastive import ContrastiveMethod, SimCLR, SupCon
from vidcsl.methods.method import ClipBatch, Method
from vidcsl.methods.moco import MoCoV2, MoCoV3
from vidcsl.methods.supervised import Supervised
from vidcsl.methods.swav import SwAV

__all__ = ["CONTRASTIVE", "METHODS", "ClipBatch", "ContrastiveMethod", "Method"]

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
