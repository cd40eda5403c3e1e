"""Methods by name; a new one is one file and one line here."""

from vidcsl.objectives.method import ClipBatch, ContrastiveMethod, Method
from vidcsl.objectives.simclr import SimCLR
from vidcsl.objectives.supcon import SupCon
from vidcsl.objectives.supervised import Supervised

CONTRASTIVE: dict[str, type[ContrastiveMethod]] = {"simclr": SimCLR, "supcon": SupCon}
SUPERVISED: dict[str, type[Supervised]] = {"supervised": Supervised}

__all__ = ["CONTRASTIVE", "SUPERVISED", "ClipBatch", "ContrastiveMethod", "Method"]
