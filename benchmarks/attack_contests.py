"""Which attacks are compared, and how each library sets them up: the same budget and steps."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from common import peer
from torch import Tensor, nn

from vidcsl.robustness.attacks import APGD, FGSM, PGD, AutoAttack, MomentumPGD, Square, attack
from vidcsl.robustness.threats import L1, L2, Linf, Threat

PEERS = ("torchattacks", "foolbox", "adversarial-robustness-toolbox")
BATCH = 16  # clips at a time
Attack = Callable[[nn.Module, Tensor, Tensor], Tensor]
_ART_PGD = "ProjectedGradientDescentPyTorch"


@dataclass(frozen=True)
class Contest:
    """One attack by everyone who has it.

    Args:
        title: for the table.
        threat: what is allowed.
        attacks: by whom; None where the library is not installed.
        to_outrun: whom to be three times as fast as.
    """

    title: str
    threat: Threat
    attacks: Mapping[str, Attack | None]
    to_outrun: tuple[str, ...] = ()


def clip_contests() -> list[Contest]:
    """What runs on clips, by all."""
    return [
        _pgd_linf(0.5 / 255, "0.5/255"),
        _pgd_linf(4 / 255, "4/255", to_outrun=("torchattacks", "foolbox")),
        Contest(
            "PGD-20 L2 0.3",
            L2(0.3),
            {
                "vidcsl": ours(L2(0.3), PGD(steps=20, step_size=0.075)),
                "torchattacks": of_torchattacks("PGDL2", eps=0.3, alpha=0.075, steps=20),
                "foolbox": of_foolbox("L2PGD", 0.3, abs_stepsize=0.075, steps=20),
                "ART": of_art(_ART_PGD, norm=2, eps=0.3, eps_step=0.075, max_iter=20),
            },
        ),
        Contest(
            "PGD-20 L1 8",
            L1(8.0),
            {
                "vidcsl": ours(L1(8.0), PGD(steps=20)),
                "foolbox": of_foolbox("SparseL1DescentAttack", 8.0, rel_stepsize=0.25, steps=20),
                "ART": of_art(_ART_PGD, norm=1, eps=8.0, eps_step=2.0, max_iter=20),
            },
        ),
        Contest(
            "FGSM Linf 0.5/255",
            Linf(0.5 / 255),
            {
                "vidcsl": ours(Linf(0.5 / 255), FGSM()),
                "torchattacks": of_torchattacks("FGSM", eps=0.5 / 255),
                "foolbox": of_foolbox("LinfFastGradientAttack", 0.5 / 255),
            },
        ),
        Contest(
            "MI-FGSM-10 Linf 0.5/255",
            Linf(0.5 / 255),
            {
                "vidcsl": ours(Linf(0.5 / 255), MomentumPGD(steps=10)),
                "torchattacks": of_torchattacks(
                    "MIFGSM", eps=0.5 / 255, alpha=0.05 / 255, steps=10
                ),
            },
        ),
        Contest(
            "APGD-20 Linf 0.5/255",
            Linf(0.5 / 255),
            {
                "vidcsl": ours(Linf(0.5 / 255), APGD(steps=20)),
                "torchattacks": of_torchattacks("APGD", eps=0.5 / 255, steps=20),
            },
        ),
    ]


def _pgd_linf(eps: float, budget: str, *, to_outrun: tuple[str, ...] = ()) -> Contest:
    step = eps / 4
    attacks = {
        "vidcsl": ours(Linf(eps), PGD(steps=20, step_size=step)),
        "torchattacks": of_torchattacks("PGD", eps=eps, alpha=step, steps=20),
        "foolbox": of_foolbox("LinfPGD", eps, abs_stepsize=step, steps=20),
        "ART": of_art(_ART_PGD, eps=eps, eps_step=step, max_iter=20, num_random_init=1),
    }
    return Contest(f"PGD-20 Linf {budget}", Linf(eps), attacks, to_outrun)


def image_contests(queries: int) -> list[Contest]:
    """What several peers run on images alone.

    Args:
        queries: of Square.
    """
    eps = 4 / 255
    threat = Linf(eps)
    return [
        Contest(
            "MI-FGSM-10 Linf 4/255",
            threat,
            {
                "vidcsl": ours(threat, MomentumPGD(steps=10)),
                "torchattacks": of_torchattacks("MIFGSM", eps=eps, alpha=eps / 10, steps=10),
                "foolbox": of_foolbox(
                    "LinfMomentumIterativeFastGradientMethod", eps, abs_stepsize=eps / 10, steps=10
                ),
            },
        ),
        *(
            Contest(
                f"APGD-100 {loss} Linf 4/255",
                threat,
                {
                    "vidcsl": ours(threat, APGD(), goal),
                    "torchattacks": of_torchattacks("APGD", eps=eps, steps=100, loss=loss),
                },
            )
            for goal, loss in (("cross_entropy", "ce"), ("dlr", "dlr"))
        ),
        Contest(
            "APGD-100 ce L2 0.5",
            L2(0.5),
            {
                "vidcsl": ours(L2(0.5), APGD()),
                "torchattacks": of_torchattacks("APGD", norm="L2", eps=0.5, steps=100),
            },
        ),
        Contest(
            f"Square-{queries} Linf 4/255",
            threat,
            {
                "vidcsl": ours(threat, Square(queries=queries), "margin"),
                "torchattacks": of_torchattacks("Square", eps=eps, n_queries=queries),
                "ART": of_art("SquareAttack", eps=eps, max_iter=queries, nb_restarts=1),
            },
        ),
    ]


def autoattack_contests(classes: int) -> list[Contest]:
    """The standard version, as far as torchattacks runs it: on images."""
    return [
        Contest(
            f"AutoAttack {norm} {budget}",
            threat,
            {
                "vidcsl": ours(threat, AutoAttack()),
                "torchattacks": of_torchattacks(
                    "AutoAttack", norm=norm, eps=threat.eps, n_classes=classes
                ),
            },
            to_outrun=("torchattacks",),
        )
        for norm, budget, threat in (("Linf", "8/255", Linf(8 / 255)), ("L2", "1", L2(1.0)))
    ]


def ours(threat: Threat, solver: Any, goal: str = "cross_entropy") -> Attack:
    return lambda model, clips, labels: attack(
        model, clips, labels, threat=threat, solver=solver, goal=goal
    )


def of_torchattacks(name: str, **options: Any) -> Attack | None:
    module = peer("torchattacks")
    if module is None:
        return None
    return lambda model, clips, labels: getattr(module, name)(model, **options)(clips, labels)


def of_foolbox(name: str, eps: float, **options: Any) -> Attack | None:
    module = peer("foolbox")
    if module is None:
        return None
    made = getattr(module.attacks, name)(**options)

    def run(model: nn.Module, clips: Tensor, labels: Tensor) -> Tensor:
        wrapped = module.PyTorchModel(model, bounds=(0, 1), device=clips.device)
        return made(wrapped, clips, labels, epsilons=eps)[1]

    return run


def of_art(name: str, **options: Any) -> Attack | None:
    evasion = peer("art.attacks.evasion", package="adversarial-robustness-toolbox")
    if evasion is None:
        return None
    estimators = peer("art.estimators.classification")

    def run(model: nn.Module, clips: Tensor, labels: Tensor) -> Tensor:
        wrapped = estimators.PyTorchClassifier(
            model,
            loss=nn.CrossEntropyLoss(),
            input_shape=tuple(clips.shape[1:]),
            nb_classes=int(model(clips[:1]).shape[1]),
            clip_values=(0.0, 1.0),
            device_type="gpu" if clips.is_cuda else "cpu",
        )
        made = getattr(evasion, name)(wrapped, batch_size=BATCH, verbose=False, **options)
        found = made.generate(clips.cpu().numpy(), y=labels.cpu().numpy())
        return torch.from_numpy(found).to(clips)

    return run
