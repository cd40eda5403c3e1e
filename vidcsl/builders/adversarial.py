"""Methods that learn from perturbed clips, and the attack that they are handed."""

from collections.abc import Callable
from typing import Any

from fvcore.common.config import CfgNode

from vidcsl.builders.false_negatives import require_clusters, require_labels
from vidcsl.builders.models import build_encoder, load_weights_of
from vidcsl.config import overridden
from vidcsl.data.lists import VideoList
from vidcsl.engine.distributed import World
from vidcsl.errors import UserError
from vidcsl.models import Encoder
from vidcsl.models.pretrained import parse_weights
from vidcsl.objectives import Method
from vidcsl.objectives.adversarial import ADVERSARIAL, ADVERSARIAL_SUPERVISED
from vidcsl.objectives.adversarial.budgets import Budgets
from vidcsl.objectives.adversarial.deacl import DeACL
from vidcsl.objectives.adversarial.pseudo_labels import PseudoLabels
from vidcsl.robustness.attacks.autoattack import AutoAttack
from vidcsl.robustness.attacks.free import FreeAttack
from vidcsl.robustness.attacks.inner import InnerAttack
from vidcsl.robustness.attacks.specs import parse_run
from vidcsl.robustness.threats import THREATS, Universal, check_frames

_LAST = {"stop_when_fooled": "false", "keep_worst": "false"}  # what training wants of a solver


def build_inner_attack(cfg: CfgNode, *, steps: int = 0) -> InnerAttack:
    """The attack of a training step.

    Args:
        cfg: the config.
        steps: in place of ADVERSARIAL.STEPS.

    Raises:
        UserError: its words mean nothing, name a goal or several budgets, or what no step can do.
    """
    options, words = cfg.ADVERSARIAL, cfg.ADVERSARIAL.ATTACK
    defaults = {"steps": str(steps or options.STEPS), **_LAST}
    run = parse_run(
        words,
        budgets={norm: [options.EPS] for norm in THREATS},
        defaults={**dict.fromkeys(("pgd", "mifgsm", "apgd", "adam"), defaults), "fgsm": _LAST},
    )
    if "-" in words.partition("/")[0].partition(":")[0]:
        raise UserError(f"ADVERSARIAL.ATTACK {words!r}: the method says what is maximised")
    if len(run.threats) > 1:
        raise UserError(f"ADVERSARIAL.ATTACK {words!r}: one budget, not {list(run.threats)}")
    (threat,) = run.threats.values()
    if isinstance(threat, Universal) or isinstance(run.solver, AutoAttack):
        raise UserError(
            f"ADVERSARIAL.ATTACK {words!r}: a training step fits no universal perturbation, and "
            "autoattack maximises goals of its own"
        )
    check_frames(threat.frames, cfg.DATA.FRAMES)
    return InnerAttack(
        threat,
        run.solver,
        ramp=options.RAMP,
        every=options.EVERY,
        scale=options.SCALE,
        coarse_until=options.COARSE_UNTIL,
        float32=options.PRECISION == "float32",
    )


def build_attack(cfg: CfgNode) -> InnerAttack | FreeAttack:
    """What an adversarial method is handed: an attack in each step, or one spread over several.

    Raises:
        UserError: its words mean nothing, or ask for both.
    """
    inner, replays = build_inner_attack(cfg), cfg.ADVERSARIAL.REPLAYS
    if replays == 1:
        return inner
    spared = {"EVERY": 1, "SCALE": 1.0, "ADAPTIVE": False}
    for key, without in spared.items():
        if cfg.ADVERSARIAL[key] != without:
            raise UserError(f"ADVERSARIAL.REPLAYS {replays} goes with ADVERSARIAL.{key} {without}")
    return FreeAttack(inner, replays=replays)


def check_adversarial(cfg: CfgNode) -> None:
    """Raise UserError where the attack or the teacher of an adversarial method is amiss."""
    if cfg.METHOD.NAME not in ADVERSARIAL:
        return
    build_attack(cfg)
    if cfg.METHOD.NAME == "deacl" and not cfg.ADVERSARIAL.TEACHER:
        raise UserError("METHOD.NAME deacl learns from a teacher: set ADVERSARIAL.TEACHER")


def contrastive_options(cfg: CfgNode, encoder: Encoder, videos: VideoList, world: World) -> Any:
    """What an adversarial contrastive method takes beside what others take."""
    extra = _EXTRA.get(cfg.METHOD.NAME, lambda *_: {})
    attack = {"attack": build_attack(cfg), "seed": cfg.SEED}
    return {**attack, **extra(cfg, encoder, videos, world)}


def build_adversarial_classifier(
    cfg: CfgNode, encoder: Encoder, videos: VideoList, world: World
) -> Method:
    """AT or TRADES."""
    name = cfg.METHOD.NAME
    require_labels(videos, f"METHOD.NAME {name}")
    return ADVERSARIAL_SUPERVISED[name](
        encoder,
        feature_dim=encoder.feature_dim,
        classes=len(videos.classes),
        label_smoothing=cfg.TRAIN.LABEL_SMOOTHING,
        seed=cfg.SEED,
        world=world,
        **_CLASSIFIERS[name](cfg, videos, world),
    )


def build_deacl(cfg: CfgNode, encoder: Encoder, _videos: VideoList, world: World) -> DeACL:
    """DeACL, its teacher loaded."""
    source = cfg.ADVERSARIAL.TEACHER
    # One of ours saw pixels as the student does, a foreign one as its format says.
    of_teacher = cfg if parse_weights(source).ours else overridden(cfg, {"MODEL.WEIGHTS": source})
    teacher = build_encoder(of_teacher)
    load_weights_of(of_teacher, teacher, source=source)
    return DeACL(encoder, teacher=teacher, attack=build_attack(cfg), seed=cfg.SEED, world=world)


def _advcl(cfg: CfgNode, encoder: Encoder, videos: VideoList, world: World) -> dict[str, Any]:
    counts = cfg.ADVERSARIAL.CLUSTERS
    require_clusters("ADVERSARIAL.CLUSTERS", counts, videos)
    dim = cfg.METHOD.PROJECTOR_DIM if cfg.METHOD.PROJECTOR_LAYERS else encoder.feature_dim
    return {
        "feature_dim": encoder.feature_dim,
        "pseudo_labels": PseudoLabels(
            videos=len(videos),
            dim=dim,
            clusters=tuple(counts),
            epochs=cfg.TRAIN.EPOCHS,
            seed=cfg.SEED,
            world=world,
        ),
    }


_EXTRA: dict[str, Callable[[CfgNode, Encoder, VideoList, World], dict[str, Any]]] = {
    "dynacl": lambda cfg, *_: {"stages": len(cfg.AUGMENT.STRENGTHS)},
    "advcl": _advcl,
}


def _inner(cfg: CfgNode, videos: VideoList, world: World) -> dict[str, Any]:
    budgets = Budgets(videos=len(videos), world=world) if cfg.ADVERSARIAL.ADAPTIVE else None
    return {"attack": build_attack(cfg), "budgets": budgets}


_CLASSIFIERS: dict[str, Callable[[CfgNode, VideoList, World], dict[str, Any]]] = {
    "at": _inner,
    "trades": lambda *given: {"beta": given[0].ADVERSARIAL.BETA, **_inner(*given)},
}
