"""Methods that learn from clips perturbed against them; a new one is one file and one line here.

The attack is handed in (`inner.InnerAttack`), as everything is that is not a tensor's business: it
is built from `robustness.attacks`.
"""

from vidcsl.methods.adversarial.advcl import AdvCL
from vidcsl.methods.adversarial.classifier import AdversarialTraining, Trades
from vidcsl.methods.adversarial.contrastive import ACL, AdversarialContrast, DynACL, RoCL
from vidcsl.methods.adversarial.deacl import DeACL
from vidcsl.methods.method import Method
from vidcsl.methods.supervised import Supervised

__all__ = ["ADVERSARIAL", "ADVERSARIAL_CONTRASTIVE", "ADVERSARIAL_SUPERVISED"]

ADVERSARIAL_CONTRASTIVE: dict[str, type[AdversarialContrast]] = {
    "rocl": RoCL,
    "acl": ACL,
    "dynacl": DynACL,
    "advcl": AdvCL,
}
ADVERSARIAL_SUPERVISED: dict[str, type[Supervised]] = {
    "at": AdversarialTraining,
    "trades": Trades,
}
ADVERSARIAL: dict[str, type[Method]] = {
    **ADVERSARIAL_CONTRASTIVE,
    "deacl": DeACL,
    **ADVERSARIAL_SUPERVISED,
}
