"""From a config to a method: its loss, detector, treatment and inner attack."""

from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise
from typing import Any

import torch
from fvcore.common.config import CfgNode
from torch import nn

from vidcsl.config import overridden
from vidcsl.data.lists import VideoList
from vidcsl.distributed import DistributedContext
from vidcsl.errors import UserError
from vidcsl.methods import CONTRASTIVE, METHODS, Method
from vidcsl.methods.adversarial import ADVERSARIAL, ADVERSARIAL_CONTRASTIVE, ADVERSARIAL_SUPERVISED
from vidcsl.methods.adversarial.advcl import PseudoLabels
from vidcsl.methods.adversarial.deacl import DeACL
from vidcsl.methods.adversarial.inner import Budgets
from vidcsl.methods.byol import BYOL
from vidcsl.methods.false_negatives import DETECTORS, TREATMENTS, Detector, Treatment
from vidcsl.methods.losses import LOSSES, RINCE_LIMIT, RowLoss
from vidcsl.methods.method import MomentumEncoder
from vidcsl.methods.moco import KeyQueue, check_queue
from vidcsl.methods.supervised import Supervised
from vidcsl.methods.swav import SwAV
from vidcsl.models import Encoder
from vidcsl.models.encoder import Norms, projector
from vidcsl.models.norm_sets import has_norms, idle_parameters, with_norm_sets
from vidcsl.models.pretrained import parse_weights
from vidcsl.pipelines.model import build_encoder, load_weights_of
from vidcsl.robustness.attacks.autoattack import AutoAttack
from vidcsl.robustness.attacks.inner import FreeAttack, InnerAttack
from vidcsl.robustness.attacks.specs import parse_run
from vidcsl.robustness.threats import THREATS, Universal, check_frames
from vidcsl.seeding import seed_of

# ----------------------------------------------------------------------
# The contrastive loss, its options bound.


def build_loss(cfg: CfgNode) -> RowLoss:
    """The loss of a block of rows.

    Raises:
        UserError: its numbers would not fit float32.
    """
    loss, temperature = cfg.LOSS, cfg.METHOD.TEMPERATURE
    options = {
        "debiased": {"prior": loss.PRIOR},
        "hard_negative": {"prior": loss.PRIOR, "concentration": loss.CONCENTRATION},
        "rince": {"order": loss.ORDER, "density": loss.DENSITY},
    }
    exponent = loss.ORDER / temperature
    if loss.NAME == "rince" and exponent > RINCE_LIMIT:
        raise UserError(
            f"LOSS.NAME rince: e^(LOSS.ORDER / METHOD.TEMPERATURE) = e^{exponent:g} is too large a "
            f"number (at most e^{RINCE_LIMIT}): raise METHOD.TEMPERATURE or lower LOSS.ORDER"
        )
    return partial(LOSSES[loss.NAME], temperature=temperature, **options.get(loss.NAME, {}))


# ----------------------------------------------------------------------
# Detectors and treatments of false negatives.


def build_treatment(cfg: CfgNode) -> Treatment:
    """What is done with the flagged pairs."""
    options = cfg.FALSE_NEGATIVES
    return TREATMENTS[options.TREATMENT](weight=options.WEIGHT)


def build_detector(
    cfg: CfgNode, videos: VideoList, distributed: DistributedContext, *, dim: int
) -> Detector:
    """A detector for embeddings of length `dim` of the videos of a training list.

    Raises:
        UserError: it needs labels, groups or more videos than the list gives.
    """
    name = cfg.FALSE_NEGATIVES.DETECTOR
    if name in _NEEDS:
        _NEEDS[name](cfg, videos)
    options = _OPTIONS[name](cfg) if name in _OPTIONS else {}
    if name in _STATEFUL:
        options |= {"videos": len(videos), "distributed": distributed}
    if name in _EMBEDDED:
        options["dim"] = dim
    return DETECTORS[name](**options)


def require_labels(videos: VideoList, who: str, *, advice: str = "") -> None:
    """Raise a UserError where a video has no label; `advice` says what to do about it."""
    unlabelled = sum(video.label < 0 for video in videos.videos)
    if unlabelled:
        missing = f"{unlabelled} videos of {videos.source} have none"
        raise UserError(f"{who} needs labels; {missing}{advice}")


def _require_groups(_cfg: CfgNode, videos: VideoList) -> None:
    groupless = sum(video.group < 0 for video in videos.videos)
    if groupless:
        raise UserError(
            f"FALSE_NEGATIVES.DETECTOR known_groups needs the group of every video; {groupless} "
            f"videos of {videos.source} have none: fill its group column or take another detector"
        )


def require_clusters(key: str, counts: Sequence[int], videos: VideoList) -> None:
    """Raise a UserError where the counts, option `key`, are no hierarchy of these videos."""
    falling = all(more > less for more, less in pairwise(counts))
    if not counts or min(counts) < 2 or not falling or counts[0] >= len(videos):
        raise UserError(
            f"{key} {counts} must be falling numbers of clusters, from 2 on and fewer than the "
            f"{len(videos)} videos of {videos.source}"
        )


def earlier_rounds(cfg: CfgNode) -> CfgNode:
    """The config of the rounds before the last."""
    method = cfg.FALSE_NEGATIVES.ROUNDS_METHOD or cfg.METHOD.NAME
    return overridden(cfg, {"METHOD.NAME": method, "FALSE_NEGATIVES.ROUNDS_METHOD": ""})


def _require_videos(cfg: CfgNode, videos: VideoList) -> None:
    require_clusters("FALSE_NEGATIVES.CLUSTERS", cfg.FALSE_NEGATIVES.CLUSTERS, videos)


_NEEDS: dict[str, Callable[[CfgNode, VideoList], None]] = {
    "labels": lambda _, videos: require_labels(videos, "FALSE_NEGATIVES.DETECTOR labels"),
    "known_groups": _require_groups,
    "clusters": _require_videos,
}
_OPTIONS: dict[str, Callable[[CfgNode], dict[str, Any]]] = {
    "labels": lambda cfg: {
        "recall": cfg.FALSE_NEGATIVES.ORACLE_RECALL,
        "precision": cfg.FALSE_NEGATIVES.ORACLE_PRECISION,
        "seed": cfg.SEED,
    },
    "adaptive": lambda cfg: {
        "ceiling": cfg.FALSE_NEGATIVES.CEILING,
        "start": cfg.FALSE_NEGATIVES.START,
        "ramp": cfg.FALSE_NEGATIVES.RAMP,
    },
    "fnc": lambda cfg: {
        "count": cfg.FALSE_NEGATIVES.NEAREST,
        "threshold": cfg.FALSE_NEGATIVES.THRESHOLD,
        "start": cfg.FALSE_NEGATIVES.START,
    },
    "clusters": lambda cfg: {
        "clusters": tuple(cfg.FALSE_NEGATIVES.CLUSTERS),
        "epochs": cfg.TRAIN.EPOCHS,
        "accepted": cfg.FALSE_NEGATIVES.ACCEPTED,
        "start": cfg.FALSE_NEGATIVES.START,
        "ramp": cfg.FALSE_NEGATIVES.RAMP,
        "seed": cfg.SEED,
    },
    "memory": lambda cfg: {
        "told": cfg.FALSE_NEGATIVES.ROUNDS > 1 or bool(cfg.FALSE_NEGATIVES.TUTOR),
        "ceiling": cfg.FALSE_NEGATIVES.CEILING,
        "start": cfg.FALSE_NEGATIVES.START,
        "ramp": cfg.FALSE_NEGATIVES.RAMP,
    },
    "teacher": lambda cfg: {
        "rule": cfg.FALSE_NEGATIVES.RULE,
        "ceiling": cfg.FALSE_NEGATIVES.CEILING,
        "false_discovery_rate": cfg.FALSE_NEGATIVES.FALSE_DISCOVERY_RATE,
        "treatment": cfg.FALSE_NEGATIVES.TREATMENT,
    },
    "glofnd": lambda cfg: {
        "share": cfg.FALSE_NEGATIVES.CEILING,
        "start": cfg.FALSE_NEGATIVES.START,
        "learning_rate": cfg.FALSE_NEGATIVES.THRESHOLD_LR,
    },
}
_STATEFUL = ("clusters", "glofnd", "memory")  # remember something of each video
_EMBEDDED = ("clusters", "memory")  # namely its embedding


# ----------------------------------------------------------------------
# Methods that learn from perturbed clips, and the attack that they are handed.

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


def contrastive_options(
    cfg: CfgNode, encoder: Encoder, videos: VideoList, distributed: DistributedContext
) -> Any:
    """What an adversarial contrastive method takes beside what others take."""
    extra = _EXTRA.get(cfg.METHOD.NAME, lambda *_: {})
    attack = {"attack": build_attack(cfg), "seed": cfg.SEED}
    return {**attack, **extra(cfg, encoder, videos, distributed)}


def build_adversarial_classifier(
    cfg: CfgNode, encoder: Encoder, videos: VideoList, distributed: DistributedContext
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
        distributed=distributed,
        **_CLASSIFIERS[name](cfg, videos, distributed),
    )


def build_deacl(
    cfg: CfgNode, encoder: Encoder, _videos: VideoList, distributed: DistributedContext
) -> DeACL:
    """DeACL, its teacher loaded."""
    source = cfg.ADVERSARIAL.TEACHER
    # One of ours saw pixels as the student does, a foreign one as its format says.
    of_teacher = cfg if parse_weights(source).ours else overridden(cfg, {"MODEL.WEIGHTS": source})
    teacher = build_encoder(of_teacher)
    load_weights_of(of_teacher, teacher, source=source)
    return DeACL(
        encoder, teacher=teacher, attack=build_attack(cfg), seed=cfg.SEED, distributed=distributed
    )


def _advcl(
    cfg: CfgNode, encoder: Encoder, videos: VideoList, distributed: DistributedContext
) -> dict[str, Any]:
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
            distributed=distributed,
        ),
    }


_EXTRA: dict[str, Callable[[CfgNode, Encoder, VideoList, DistributedContext], dict[str, Any]]] = {
    "dynacl": lambda cfg, *_: {"stages": len(cfg.AUGMENT.STRENGTHS)},
    "advcl": _advcl,
}


def _inner(cfg: CfgNode, videos: VideoList, distributed: DistributedContext) -> dict[str, Any]:
    budgets = (
        Budgets(videos=len(videos), distributed=distributed) if cfg.ADVERSARIAL.ADAPTIVE else None
    )
    return {"attack": build_attack(cfg), "budgets": budgets}


_CLASSIFIERS: dict[str, Callable[[CfgNode, VideoList, DistributedContext], dict[str, Any]]] = {
    "at": _inner,
    "trades": lambda *given: {"beta": given[0].ADVERSARIAL.BETA, **_inner(*given)},
}


# ----------------------------------------------------------------------
# Encoder, heads and objective.


def build_method(cfg: CfgNode, videos: VideoList, distributed: DistributedContext) -> Method:
    """Encoder, heads and loss, on the world's device.

    Raises:
        UserError: the method needs labels or views that the data do not give.
    """
    check_method(cfg)
    encoder = build_encoder(cfg)
    encoder.chunk = cfg.TRAIN.CHUNK * cfg.DATA.CLIPS
    with torch.random.fork_rng():
        torch.manual_seed(seed_of(cfg.SEED, "heads"))
        method = _BUILDERS[cfg.METHOD.NAME](cfg, encoder, videos, distributed)
    if len(METHODS[cfg.METHOD.NAME].norm_sets) == 1:
        for parameter in idle_parameters(encoder):  # DDP waits for the gradient of every other
            parameter.requires_grad_(False)
    return method.to(distributed.device)


def check_method(cfg: CfgNode) -> None:
    """Find what does not fit together in the method's options.

    Raises:
        UserError: too few clips, a queue too short, an attack or a teacher amiss, false negatives
            of a method without any, or rounds of a detector that remembers nothing.
    """
    name, detector = cfg.METHOD.NAME, cfg.FALSE_NEGATIVES.DETECTOR
    if name not in _SINGLE and cfg.DATA.CLIPS < 2:
        raise UserError(f"METHOD.NAME {name} needs DATA.CLIPS of at least 2")
    if name not in CONTRASTIVE and (detector != "none" or cfg.FALSE_NEGATIVES.VOTERS):
        raise UserError(
            f"METHOD.NAME {name} has no negatives that may be false: set FALSE_NEGATIVES.DETECTOR "
            f"to none and .VOTERS to 0, or METHOD.NAME to one of {', '.join(CONTRASTIVE)}"
        )
    _check_rounds(cfg)
    check_adversarial(cfg)
    if name == "moco_v2":
        check_queue(cfg.METHOD.QUEUE, keys=cfg.TRAIN.BATCH * cfg.DATA.CLIPS)


def _check_rounds(cfg: CfgNode) -> None:
    options = cfg.FALSE_NEGATIVES
    if (options.ROUNDS > 1 or options.TUTOR) and options.DETECTOR != "memory":
        raise UserError(
            "FALSE_NEGATIVES.ROUNDS above 1 and .TUTOR need FALSE_NEGATIVES.DETECTOR memory: what "
            f"one training remembers judges the next; it is {options.DETECTOR}"
        )
    if options.ROUNDS_METHOD and options.ROUNDS == 1:
        raise UserError("FALSE_NEGATIVES.ROUNDS_METHOD needs FALSE_NEGATIVES.ROUNDS above 1")
    if options.ROUNDS_METHOD:
        check_method(earlier_rounds(cfg))


# BatchNorm in the heads, where it is not everywhere, as published: Chen et al. (MoCo v2), Grill et
# al. (BYOL) and Caron et al. (SwAV), all 2020.
_NORMS = {
    "moco_v2": Norms(hidden=False, last=False),
    "byol": Norms(last=False),
    "swav": Norms(last=False),
}


def _build_projector(cfg: CfgNode, encoder: Encoder) -> nn.Module:
    head = projector(
        in_dim=encoder.feature_dim,
        hidden_dim=cfg.METHOD.PROJECTOR_HIDDEN,
        out_dim=cfg.METHOD.PROJECTOR_DIM,
        layers=cfg.METHOD.PROJECTOR_LAYERS,
        norms=_NORMS.get(cfg.METHOD.NAME, Norms()),
    )
    sets = METHODS[cfg.METHOD.NAME].projector_sets
    return with_norm_sets(head, sets) if len(sets) > 1 and has_norms(head) else head


def _build_predictor(cfg: CfgNode, dim: int) -> nn.Module:
    return projector(
        in_dim=dim,
        hidden_dim=cfg.METHOD.PREDICTOR_HIDDEN,
        out_dim=dim,
        layers=cfg.METHOD.PREDICTOR_LAYERS,
        norms=_NORMS.get(cfg.METHOD.NAME, Norms()),
    )


def _build_teacher(cfg: CfgNode, encoder: Encoder, head: nn.Module) -> MomentumEncoder:
    return MomentumEncoder(
        encoder, head, momentum=cfg.METHOD.MOMENTUM, schedule=cfg.METHOD.MOMENTUM_SCHEDULE
    )


def _embedding_dim(cfg: CfgNode, encoder: Encoder) -> int:
    return cfg.METHOD.PROJECTOR_DIM if cfg.METHOD.PROJECTOR_LAYERS else encoder.feature_dim


def _build_contrastive(
    cfg: CfgNode, encoder: Encoder, videos: VideoList, distributed: DistributedContext, **extra: Any
) -> Method:
    name, options = cfg.METHOD.NAME, cfg.FALSE_NEGATIVES
    if name == "supcon":
        require_labels(videos, "METHOD.NAME supcon")
    head = _build_projector(cfg, encoder)
    if name in ADVERSARIAL_CONTRASTIVE:
        extra |= contrastive_options(cfg, encoder, videos, distributed)
    if name in _KEYED or options.JUDGE == "momentum":
        extra["teacher"] = _build_teacher(cfg, encoder, head)
    return CONTRASTIVE[name](
        encoder,
        head,
        loss=build_loss(cfg),
        detector=build_detector(cfg, videos, distributed, dim=_embedding_dim(cfg, encoder)),
        treatment=build_treatment(cfg),
        aggregate=None if options.AGGREGATE == "auto" else options.AGGREGATE,
        judge=options.JUDGE,
        voters=options.VOTERS,
        classes=len(videos.classes),
        distributed=distributed,
        **extra,
    )


def _build_moco_v2(
    cfg: CfgNode, encoder: Encoder, videos: VideoList, distributed: DistributedContext
) -> Method:
    queue = KeyQueue(length=cfg.METHOD.QUEUE, dim=_embedding_dim(cfg, encoder))
    return _build_contrastive(cfg, encoder, videos, distributed, queue=queue)


def _build_moco_v3(
    cfg: CfgNode, encoder: Encoder, videos: VideoList, distributed: DistributedContext
) -> Method:
    predictor = _build_predictor(cfg, _embedding_dim(cfg, encoder))
    return _build_contrastive(cfg, encoder, videos, distributed, predictor=predictor)


def _build_byol(
    cfg: CfgNode, encoder: Encoder, _videos: VideoList, distributed: DistributedContext
) -> Method:
    head = _build_projector(cfg, encoder)
    return BYOL(
        encoder,
        head,
        predictor=_build_predictor(cfg, _embedding_dim(cfg, encoder)),
        teacher=_build_teacher(cfg, encoder, head),
        distributed=distributed,
    )


def _build_swav(
    cfg: CfgNode, encoder: Encoder, _videos: VideoList, distributed: DistributedContext
) -> Method:
    return SwAV(
        encoder,
        _build_projector(cfg, encoder),
        dim=_embedding_dim(cfg, encoder),
        prototypes=cfg.METHOD.PROTOTYPES,
        temperature=cfg.METHOD.TEMPERATURE,
        sharpness=cfg.METHOD.CODE_SHARPNESS,
        frozen=cfg.METHOD.FROZEN_EPOCHS / cfg.TRAIN.EPOCHS,
        distributed=distributed,
    )


def _build_supervised(
    cfg: CfgNode, encoder: Encoder, videos: VideoList, distributed: DistributedContext
) -> Method:
    require_labels(videos, "METHOD.NAME supervised")
    return Supervised(
        encoder,
        feature_dim=encoder.feature_dim,
        classes=len(videos.classes),
        label_smoothing=cfg.TRAIN.LABEL_SMOOTHING,
        distributed=distributed,
    )


_SINGLE = ("supervised", "deacl", *ADVERSARIAL_SUPERVISED)  # compare no clips of a video
_KEYED = ("moco_v2", "moco_v3")  # need a momentum encoder in any case
_BUILDERS: dict[str, Callable[[CfgNode, Encoder, VideoList, DistributedContext], Method]] = {
    "simclr": _build_contrastive,
    "supcon": _build_contrastive,
    "moco_v2": _build_moco_v2,
    "moco_v3": _build_moco_v3,
    "byol": _build_byol,
    "swav": _build_swav,
    "supervised": _build_supervised,
    **dict.fromkeys(ADVERSARIAL_CONTRASTIVE, _build_contrastive),
    "deacl": build_deacl,
    **dict.fromkeys(ADVERSARIAL_SUPERVISED, build_adversarial_classifier),
}
