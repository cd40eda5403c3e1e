"""Methods that learn from clips perturbed against them; a new one is imported here.

The attack is an argument (`inner.InnerMaximiser`): it is built from `robustness.attacks`, which
these methods need not know.
"""

# ruff: noqa: I001  # names are listed in the order in which these modules are imported
from vidcsl.methods.adversarial.contrastive import ACL, DynACL, RoCL
from vidcsl.methods.adversarial.advcl import AdvCL
from vidcsl.methods.adversarial.deacl import DeACL
from vidcsl.methods.adversarial.classifier import AdversarialTraining, Trades
from vidcsl.methods.adversarial.inner import OPTIONS, Attacking

__all__ = [
    "ACL",
    "OPTIONS",
    "AdvCL",
    "AdversarialTraining",
    "Attacking",
    "DeACL",
    "DynACL",
    "RoCL",
    "Trades",
]
