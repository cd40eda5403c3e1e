"""From a config to a method: encoder, heads, loss, false negatives and the attack in a step."""

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

import torch
from fvcore.common.config import CfgNode

from vidcsl.config import overridden
from vidcsl.data.lists import VideoList
from vidcsl.distributed import DistributedContext
from vidcsl.errors import UserError
from vidcsl.evaluation.statistics import blind_precision
from vidcsl.methods import METHODS, ContrastiveMethod, Method
from vidcsl.methods.adversarial import Attacking
from vidcsl.methods.false_negatives import DETECTORS, TREATMENTS, FalseNegatives
from vidcsl.methods.losses import LOSSES, RINCE_LIMIT, RowLoss
from vidcsl.methods.method import MomentumEncoder
from vidcsl.methods.moco import KeyQueue, check_queue
from vidcsl.models import Encoder
from vidcsl.models.batchnorm import add_auxiliary_batchnorm, has_batchnorm, idle_parameters
from vidcsl.models.encoder import projector
from vidcsl.models.pretrained import parse_weights
from vidcsl.pipelines.model import build_encoder, load_weights_of
from vidcsl.robustness.attacks.autoattack import AutoAttack
from vidcsl.robustness.attacks.specs import parse_attack
from vidcsl.robustness.attacks.training import FreeAttack, TrainingAttack
from vidcsl.robustness.threats import THREATS, Universal, check_frames
from vidcsl.seeding import seed_of


def build_method(cfg: CfgNode, videos: VideoList, distributed: DistributedContext) -> Method:
    """Encoder, heads and loss, on the device of `distributed`.

    Raises:
        UserError: the method needs labels or views that the data do not give.
    """
    check_method(cfg)
    name = cfg.METHOD.NAME
    kind = METHODS[name]
    clusters = ("ADVERSARIAL.CLUSTERS", cfg.ADVERSARIAL.CLUSTERS)
    require(kind.needs, videos, who=f"METHOD.NAME {name}", clusters=clusters)
    encoder = build_encoder(cfg)
    encoder.chunk = cfg.TRAIN.CHUNK * cfg.DATA.CLIPS
    dim = cfg.METHOD.PROJECTOR_DIM if cfg.METHOD.PROJECTOR_LAYERS else encoder.feature_dim
    # A seed of their own: which heads a method has does not change anything drawn elsewhere.
    with torch.random.fork_rng():
        torch.manual_seed(seed_of(cfg.SEED, "heads"))
        given = build_parts(cfg, encoder, dim=dim)
        if issubclass(kind, ContrastiveMethod):
            given["loss"] = build_loss(cfg)
            given["false_negatives"] = build_false_negatives(cfg, videos, distributed, dim=dim)
        if issubclass(kind, Attacking):
            given["attack"] = build_attack(cfg)
        method: Method = METHODS.build(
            name,
            {**cfg.METHOD, **cfg.ADVERSARIAL},
            encoder=encoder,
            feature_dim=encoder.feature_dim,
            dim=dim,
            classes=len(videos.classes),
            videos=len(videos),
            epochs=cfg.TRAIN.EPOCHS,
            label_smoothing=cfg.TRAIN.LABEL_SMOOTHING,
            stages=len(cfg.AUGMENT.STRENGTHS),
            seed=cfg.SEED,
            distributed=distributed,
            **given,
        )
    if len(method.batchnorm_names) == 1:
        for parameter in idle_parameters(encoder):  # DDP waits for the gradient of every other
            parameter.requires_grad_(False)
    return method.to(distributed.device)


def build_parts(cfg: CfgNode, encoder: Encoder, *, dim: int) -> dict[str, Any]:
    """The heads, momentum encoder, queue or teacher that the method declares.

    They are built in the order of `Method.parts`: the random weights of each depend on it.
    """
    kind, options = METHODS[cfg.METHOD.NAME], cfg.METHOD
    wanted = [*kind.parts, *(kind.published_parts if options.PUBLISHED else ())]
    if cfg.FALSE_NEGATIVES.JUDGE == "momentum" and issubclass(kind, ContrastiveMethod):
        wanted.append("momentum_encoder")
    built: dict[str, Any] = {}
    for part in dict.fromkeys(wanted):
        if part == "projector":
            head = projector(
                in_dim=encoder.feature_dim,
                hidden_dim=options.PROJECTOR_HIDDEN,
                out_dim=options.PROJECTOR_DIM,
                layers=options.PROJECTOR_LAYERS,
                norms=kind.head_norms,
            )
            # A projector of one linear layer has no BatchNorm that could be doubled.
            if len(kind.projector_batchnorm_names) > 1 and has_batchnorm(head):
                add_auxiliary_batchnorm(head, kind.projector_batchnorm_names)
            built[part] = head
        elif part == "predictor":
            built[part] = projector(
                in_dim=dim,
                hidden_dim=options.PREDICTOR_HIDDEN,
                out_dim=dim,
                layers=options.PREDICTOR_LAYERS,
                norms=kind.head_norms,
            )
        elif part == "momentum_encoder":
            built[part] = MomentumEncoder(
                encoder,
                built["projector"],
                momentum=options.MOMENTUM,
                momentum_schedule=options.MOMENTUM_SCHEDULE,
            )
        elif part == "queue":
            built[part] = KeyQueue(length=options.QUEUE, dim=dim)
        elif part == "teacher":
            source = cfg.ADVERSARIAL.TEACHER
            # One of ours saw pixels as the student does, a foreign one as its format says.
            ours = parse_weights(source).ours
            of_teacher = cfg if ours else overridden(cfg, {"MODEL.WEIGHTS": source})
            built[part] = build_encoder(of_teacher)
            load_weights_of(of_teacher, built[part], source=source)
    return built


def build_loss(cfg: CfgNode) -> RowLoss:
    """The contrastive loss of a block of rows, its options bound.

    Raises:
        UserError: its numbers would not fit float32.
    """
    exponent = cfg.LOSS.ORDER / cfg.METHOD.TEMPERATURE
    if cfg.LOSS.NAME == "rince" and exponent > RINCE_LIMIT:
        raise UserError(
            f"LOSS.NAME rince: e^(LOSS.ORDER / METHOD.TEMPERATURE) = e^{exponent:g} is too large a "
            f"number (at most e^{RINCE_LIMIT}): raise METHOD.TEMPERATURE or lower LOSS.ORDER"
        )
    return LOSSES.bind(cfg.LOSS.NAME, cfg.LOSS, temperature=cfg.METHOD.TEMPERATURE)


def build_false_negatives(
    cfg: CfgNode, videos: VideoList, distributed: DistributedContext, *, dim: int
) -> FalseNegatives:
    """Detector and treatment for embeddings of length `dim` of the videos of a training list.

    Raises:
        UserError: the detector needs labels, groups or more videos than the list gives.
    """
    name = cfg.FALSE_NEGATIVES.DETECTOR
    clusters = ("FALSE_NEGATIVES.CLUSTERS", cfg.FALSE_NEGATIVES.CLUSTERS)
    who = f"FALSE_NEGATIVES.DETECTOR {name}"
    require(DETECTORS[name].needs, videos, who=who, clusters=clusters)
    return FalseNegatives(
        detector=DETECTORS.build(
            name,
            cfg.FALSE_NEGATIVES,
            videos=len(videos),
            dim=dim,
            epochs=cfg.TRAIN.EPOCHS,
            earlier=cfg.FALSE_NEGATIVES.ROUNDS > 1 or bool(cfg.FALSE_NEGATIVES.TUTOR),
            chance=blind_precision([video.label for video in videos.videos]) or 0.0,
            seed=cfg.SEED,
            distributed=distributed,
        ),
        treatment=TREATMENTS.bind(cfg.FALSE_NEGATIVES.TREATMENT, cfg.FALSE_NEGATIVES),
        aggregate=cfg.FALSE_NEGATIVES.AGGREGATE,
        judge=cfg.FALSE_NEGATIVES.JUDGE,
        voters=cfg.FALSE_NEGATIVES.VOTERS,
    )


def build_attack(cfg: CfgNode) -> TrainingAttack | FreeAttack:
    """The attack of an adversarial method: whole in each step, or spread over several steps.

    Raises:
        UserError: ADVERSARIAL.ATTACK is no spec of an attack, or does not go with REPLAYS.
    """
    inner, replays = build_inner_attack(cfg), cfg.ADVERSARIAL.REPLAYS
    if cfg.METHOD.PUBLISHED:
        inner = replace(inner, near=METHODS[cfg.METHOD.NAME].published_start)
    if replays == 1:
        return inner
    for key, without in {"EVERY": 1, "SCALE": 1.0, "ADAPTIVE": False}.items():
        if cfg.ADVERSARIAL[key] != without:
            raise UserError(f"ADVERSARIAL.REPLAYS {replays} needs ADVERSARIAL.{key} {without}")
    return FreeAttack(inner, replays=replays)


def build_inner_attack(cfg: CfgNode, *, steps: int = 0) -> TrainingAttack:
    """The attack of a training step.

    Args:
        cfg: the config.
        steps: in place of ADVERSARIAL.STEPS.

    Raises:
        UserError: ADVERSARIAL.ATTACK is no spec of an attack, names a goal or several budgets, or
            an attack that does not fit into a step.
    """
    options, spec = cfg.ADVERSARIAL, cfg.ADVERSARIAL.ATTACK
    # A training step wants the last perturbation, at a fixed cost.
    last = {"stop_when_fooled": "false", "keep_worst": "false"}
    stepping = {"steps": str(steps or options.STEPS), **last}
    run = parse_attack(
        spec,
        budgets={norm: [options.EPS] for norm in THREATS},
        defaults={**dict.fromkeys(("pgd", "mifgsm", "apgd", "adam"), stepping), "fgsm": last},
    )
    if "-" in spec.partition("/")[0].partition(":")[0]:
        raise UserError(
            f"ADVERSARIAL.ATTACK {spec!r}: the method defines what is maximised, so name no goal"
        )
    if len(run.threats) > 1:
        raise UserError(
            f"ADVERSARIAL.ATTACK {spec!r}: give one budget, not {list(run.threats)} "
            "(ADVERSARIAL.EPS)"
        )
    (threat,) = run.threats.values()
    if isinstance(threat, Universal) or isinstance(run.solver, AutoAttack):
        raise UserError(
            f"ADVERSARIAL.ATTACK {spec!r}: universal perturbations and autoattack do not work "
            "inside a training step: name another solver or threat"
        )
    check_frames(threat.frames, cfg.DATA.FRAMES)
    return TrainingAttack(
        threat,
        run.solver,
        ramp=options.RAMP,
        every=options.EVERY,
        scale=options.SCALE,
        coarse_until=options.COARSE_UNTIL,
        float32=options.PRECISION == "float32",
    )


def check_method(cfg: CfgNode) -> None:
    """Find options of the method that do not go together.

    Raises:
        UserError: too few clips, a queue too short, an attack or a teacher that cannot be built,
            false negatives for a method without negatives, or iterative training without a memory
            bank.
    """
    name, detector = cfg.METHOD.NAME, cfg.FALSE_NEGATIVES.DETECTOR
    kind, rounds = METHODS[name], cfg.FALSE_NEGATIVES.ROUNDS
    if kind.least_views > cfg.DATA.CLIPS:
        raise UserError(f"METHOD.NAME {name} needs DATA.CLIPS of at least {kind.least_views}")
    if cfg.METHOD.PUBLISHED:
        kind.check_published(clips=cfg.DATA.CLIPS, voters=cfg.FALSE_NEGATIVES.VOTERS)
    searches = detector != "none" or cfg.FALSE_NEGATIVES.VOTERS
    if searches and not issubclass(kind, ContrastiveMethod):
        contrastive = (each for each in METHODS if issubclass(METHODS[each], ContrastiveMethod))
        raise UserError(
            f"METHOD.NAME {name} has no negatives that may be false: set FALSE_NEGATIVES.DETECTOR "
            f"to none and .VOTERS to 0, or METHOD.NAME to one of {', '.join(contrastive)}"
        )
    if (rounds > 1 or cfg.FALSE_NEGATIVES.TUTOR) and detector != "memory":
        raise UserError(
            "FALSE_NEGATIVES.ROUNDS above 1 and .TUTOR need FALSE_NEGATIVES.DETECTOR memory, whose "
            f"memory bank the next run takes its false negatives from; it is {detector}"
        )
    if cfg.FALSE_NEGATIVES.ROUNDS_METHOD:
        if rounds == 1:
            raise UserError("FALSE_NEGATIVES.ROUNDS_METHOD needs FALSE_NEGATIVES.ROUNDS above 1")
        check_method(earlier_rounds(cfg))
    if issubclass(kind, Attacking):
        build_attack(cfg)
    if "teacher" in kind.parts and not cfg.ADVERSARIAL.TEACHER:
        raise UserError(f"METHOD.NAME {name} learns from a teacher: set ADVERSARIAL.TEACHER")
    if "queue" in kind.parts:
        check_queue(cfg.METHOD.QUEUE, keys=cfg.TRAIN.BATCH * cfg.DATA.CLIPS)


def earlier_rounds(cfg: CfgNode) -> CfgNode:
    """The config of all runs of an iterative training but the last."""
    method = cfg.FALSE_NEGATIVES.ROUNDS_METHOD or cfg.METHOD.NAME
    return overridden(cfg, {"METHOD.NAME": method, "FALSE_NEGATIVES.ROUNDS_METHOD": ""})


def require(
    needs: Sequence[str], videos: VideoList, *, who: str, clusters: tuple[str, Sequence[int]]
) -> None:
    """Raise a UserError where a training list does not give what a method or detector needs.

    Args:
        needs: `Method.needs` or `Detector.needs`.
        videos: the training list.
        who: the config key and its value.
        clusters: the config key of a hierarchy's numbers of clusters, and these.
    """
    if "labels" in needs:
        require_labels(videos, who)
    groupless = sum(video.group < 0 for video in videos.videos)
    if "groups" in needs and groupless:
        raise UserError(
            f"{who} needs the group of every video; {groupless} videos of {videos.source} have "
            "none: fill its group column or choose another detector"
        )
    if "hierarchy" in needs:
        key, counts = clusters
        falling = all(more > less for more, less in pairwise(counts))
        if not counts or min(counts) < 2 or not falling or counts[0] >= len(videos):
            raise UserError(
                f"{key} {counts} must be decreasing numbers of clusters, at least 2 and fewer than "
                f"the {len(videos)} videos of {videos.source}"
            )


def require_labels(videos: VideoList, who: str, *, advice: str = "") -> None:
    """Raise a UserError where a video has no label; `advice` says what to do about it."""
    unlabelled = sum(video.label < 0 for video in videos.videos)
    if unlabelled:
        missing = f"{unlabelled} videos of {videos.source} have none"
        raise UserError(f"{who} needs labels; {missing}{advice}")
