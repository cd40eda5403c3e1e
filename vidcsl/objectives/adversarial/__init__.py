"""Methods that learn from clips perturbed against them; a new one is one file and one line here.

The attack is handed in (`inner.InnerAttack`), as everything is that is not a tensor's business: it
is built from `robustness.attacks`.
"""

from vidcsl.objectives.adversarial.acl import ACL
from vidcsl.objectives.adversarial.advcl import AdvCL
from vidcsl.objectives.adversarial.at import AdversarialTraining
from vidcsl.objectives.adversarial.contrast import AdversarialContrast
from vidcsl.objectives.adversarial.deacl import DeACL
from vidcsl.objectives.adversarial.dynacl import DynACL
from vidcsl.objectives.adversarial.rocl import RoCL
from vidcsl.objectives.adversarial.trades import Trades
from vidcsl.objectives.method import Method
from vidcsl.objectives.supervised import Supervised

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

__all__ = ["ADVERSARIAL", "ADVERSARIAL_CONTRASTIVE", "ADVERSARIAL_SUPERVISED"]
