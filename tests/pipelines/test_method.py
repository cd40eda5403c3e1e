from pathlib import Path

import numpy as np
import pytest
import torch

from vidcsl.config import load_config
from vidcsl.data.lists import Video, VideoList
from vidcsl.distributed import DistributedContext
from vidcsl.errors import UserError
from vidcsl.methods import METHODS, ClipBatch, ContrastiveMethod
from vidcsl.methods.false_negatives import AGGREGATES, DETECTORS, TREATMENTS
from vidcsl.methods.losses import LOSSES, Pairs
from vidcsl.methods.method import SCHEDULES
from vidcsl.options import OPTIONS
from vidcsl.pipelines.data import build_augmentation, build_train_loader
from vidcsl.pipelines.method import build_attack, build_loss, build_method, check_method
from vidcsl.pipelines.model import build_encoder, load_weights_of
from vidcsl.pipelines.training import check

ALONE = DistributedContext(rank=0, size=1, device=torch.device("cpu"))
TINY = """
MODEL: {WIDTH: 4, FRAME_SIZE: 16}
DATA: {FRAMES: 4}
METHOD: {PROJECTOR_HIDDEN: 16, PROJECTOR_DIM: 8, PREDICTOR_HIDDEN: 12, PROTOTYPES: 5, QUEUE: 64}
TRAIN: {BATCH: 8, EPOCHS: 10}
ADVERSARIAL: {CLUSTERS: [5, 2], STEPS: 1}
"""
CONSTANT = ("METHOD.MOMENTUM_SCHEDULE", "constant")
SINGLE = ("supervised", "deacl", "at", "trades")


def config(tmp_path, *overrides):
    path = tmp_path / "config.yaml"
    path.write_text(TINY)
    return load_config(path, [str(word) for word in overrides])


def videos(count=20, *, label=True, group=True):
    made = (
        Video(Path(f"{i}.mp4"), i % 2 if label else -1, i // 2 if group else -1)
        for i in range(count)
    )
    return VideoList(tuple(made), ("a", "b"), "list.csv")


@pytest.fixture
def teacher(tmp_path):
    """What deacl needs, as overrides: weights of an encoder of ours."""
    encoder = build_encoder(config(tmp_path))
    torch.save(encoder.state_dict(), tmp_path / "teacher.pt")
    return ("ADVERSARIAL.TEACHER", f"vidcsl:{tmp_path / 'teacher.pt'}")


def build(tmp_path, *overrides, **kinds):
    return build_method(config(tmp_path, *overrides), videos(**kinds), ALONE)


def test_every_choice_of_a_config_is_registered():
    for key, names in {
        "METHOD.NAME": METHODS,
        "LOSS.NAME": LOSSES,
        "METHOD.MOMENTUM_SCHEDULE": SCHEDULES,
        "FALSE_NEGATIVES.DETECTOR": DETECTORS,
        "FALSE_NEGATIVES.TREATMENT": TREATMENTS,
        "FALSE_NEGATIVES.AGGREGATE": ["auto", *AGGREGATES],
    }.items():
        assert set(OPTIONS[key].choices) == set(names), key


@pytest.mark.parametrize("name", METHODS)
def test_every_method_takes_a_step(tmp_path, teacher, name):
    method = build(tmp_path, "METHOD.NAME", name, *teacher).train()
    assert type(method) is METHODS[name]
    ids = torch.arange(4)
    clips = torch.rand(4, 2, 3, 4, 16, 16, generator=torch.Generator())
    method(ClipBatch(clips, ids % 2, ids // 2, ids))["loss"].backward()
    learning = [p for p in method.parameters() if p.requires_grad]
    assert all(p.grad is not None and p.grad.isfinite().all() for p in learning)
    assert not method.state_dict()["encoder.backbone.stem.0.weight"].isnan().any()
    sets = {
        key.split(".norms.")[1].split(".")[0] for key in method.state_dict() if ".norms." in key
    }
    names = type(method).batchnorm_names
    assert sets == (set(names) if len(names) > 1 else set())


@pytest.mark.parametrize(
    ("words", "where", "wanted"),
    [
        (("METHOD.NAME", "moco_v2", "METHOD.QUEUE", 77), "queue.keys.shape", (77, 8)),
        (("METHOD.NAME", "moco_v2", "METHOD.MOMENTUM", 0.7), "teacher.momentum", 0.7),
        (
            ("METHOD.NAME", "byol", "METHOD.MOMENTUM_SCHEDULE", "constant"),
            "teacher.momentum_schedule",
            "constant",
        ),
        (("METHOD.NAME", "moco_v3"), "predictor.0.out_features", 12),
        (("METHOD.NAME", "byol", "METHOD.PREDICTOR_LAYERS", 1), "predictor.0.out_features", 8),
        (("METHOD.NAME", "byol", "METHOD.PROJECTOR_LAYERS", 0), "predictor.0.in_features", 32),
        (("METHOD.NAME", "swav"), "prototypes.shape", (5, 8)),
        (("METHOD.NAME", "swav", "METHOD.CODE_SHARPNESS", 0.02), "code_sharpness", 0.02),
        (("METHOD.NAME", "swav", "METHOD.FROZEN_EPOCHS", 2), "frozen", 0.2),
        (("METHOD.NAME", "swav", "METHOD.TEMPERATURE", 0.3), "temperature", 0.3),
        (("FALSE_NEGATIVES.AGGREGATE", "max"), "aggregate", "max"),
        (("FALSE_NEGATIVES.VOTERS", 3), "voters", 3),
        (("FALSE_NEGATIVES.JUDGE", "momentum"), "teacher.momentum", 0.99),
        (("DETECTOR", "adaptive", "CEILING", 0.4), "detector.ceiling", 0.4),
        (("DETECTOR", "adaptive", "RAMP", 0.4), "detector.ramp", 0.4),
        (("DETECTOR", "adaptive"), "aggregate", "mean"),
        (("DETECTOR", "fnc"), "aggregate", "max"),
        (("DETECTOR", "fnc", "NEAREST", 4), "detector.nearest", 4),
        (("DETECTOR", "fnc", "THRESHOLD", 0.4), "detector.threshold", 0.4),
        (("DETECTOR", "fnc", "START", 0.4), "detector.start", 0.4),
        (("DETECTOR", "clusters", "CLUSTERS", "[5, 3]"), "detector.clusters", (5, 3)),
        (("DETECTOR", "clusters", "ACCEPTED", 0.4), "detector.accepted", 0.4),
        (("DETECTOR", "clusters"), "detector.memory.shape", (20, 8)),
        (("DETECTOR", "clusters"), "detector.epochs", 10),
        (("DETECTOR", "glofnd", "CEILING", 0.4), "detector.ceiling", 0.4),
        (("DETECTOR", "glofnd", "THRESHOLD_LR", 0.4), "detector.threshold_lr", 0.4),
        (("DETECTOR", "glofnd"), "detector.threshold.shape", (20,)),
        (("METHOD.NAME", "acl"), "attack.threat.eps", 2 / 255),
        (("METHOD.NAME", "acl", "ADVERSARIAL.EPS", 0.5), "attack.threat.eps", 0.5 / 255),
        (("METHOD.NAME", "acl", "ADVERSARIAL.STEPS", 3), "attack.solver.steps", 3),
        (("METHOD.NAME", "acl"), "attack.solver.keep_worst", False),
        (("METHOD.NAME", "acl"), "encoder.backbone.stem.1.active", "clean"),
        (("METHOD.NAME", "rocl", "ADVERSARIAL.ATTACK", "pgd/l2:eps=3"), "attack.threat.eps", 3),
        (("METHOD.NAME", "rocl", "ADVERSARIAL.RAMP", 0.4), "attack.ramp", 0.4),
        (("METHOD.NAME", "rocl", "ADVERSARIAL.EVERY", 2), "attack.every", 2),
        (("METHOD.NAME", "rocl", "ADVERSARIAL.SCALE", 0.5), "attack.scale", 0.5),
        (("METHOD.NAME", "rocl", "ADVERSARIAL.COARSE_UNTIL", 0.5), "attack.coarse_until", 0.5),
        (("METHOD.NAME", "rocl", "ADVERSARIAL.PRECISION", "float32"), "attack.float32", True),
        (("METHOD.NAME", "rocl", "SEED", 7), "seed", 7),
        (("METHOD.NAME", "advcl"), "pseudo_labels.clusters", (5, 2)),
        (("METHOD.NAME", "advcl"), "pseudo_labels.memory.shape", (20, 8)),
        (("METHOD.NAME", "trades", "ADVERSARIAL.BETA", 3), "beta", 3),
        (("METHOD.NAME", "at", "ADVERSARIAL.ADAPTIVE", True), "budgets.level.shape", (20,)),
        (("METHOD.NAME", "at", "ADVERSARIAL.REPLAYS", 3), "replays", 3),
        (("METHOD.NAME", "acl", "ADVERSARIAL.REPLAYS", 3), "attack.inner.threat.eps", 2 / 255),
        (("DETECTOR", "memory", "CEILING", 0.4), "detector.ceiling", 0.4),
        (("DETECTOR", "memory"), "detector.visits.shape", (20,)),
    ],
)
def test_options_reach_their_place(tmp_path, words, where, wanted):
    full = [
        f"FALSE_NEGATIVES.{word}" if i % 2 == 0 and "." not in word and word != "SEED" else word
        for i, word in enumerate(words)
    ]
    found = build(tmp_path, *full)
    for name in where.split("."):
        found = found[int(name)] if name.isdigit() else getattr(found, name)
    assert found == wanted


def test_stages_of_dynacl_are_those_of_the_augmentation(tmp_path):
    words = ("AUGMENT.STRENGTHS", "[1, 0.5, 0.2]", "AUGMENT.CROP_BY", "device")
    assert build(tmp_path, "METHOD.NAME", "dynacl", *words).stages == 3


def test_a_set_of_norms_that_no_step_uses_does_not_learn(tmp_path):
    """Several processes would wait for its gradient."""
    method = build(tmp_path, "MODEL.DUAL_NORM", "true")
    learning = {name for name, each in method.named_parameters() if each.requires_grad}
    assert any(".norms.clean." in name for name in learning)
    assert not any(".norms.adversarial." in name for name in learning)


def test_a_foreign_teacher_sees_pixels_as_its_format_says(tmp_path):
    """TCLR's weights were learned on BGR."""
    slim = ("MODEL.NAME", "r3d_18_tclr", "MODEL.WIDTH", 4, "MODEL.DEPTH", 1)
    file = tmp_path / "tclr.pth"
    state = build_encoder(config(tmp_path, *slim)).backbone.state_dict()
    torch.save({"state_dict": {f"module.0.{name}": each for name, each in state.items()}}, file)
    of_file = config(tmp_path, *slim, "MODEL.WEIGHTS", f"tclr:{file}")
    wanted = build_encoder(of_file).eval()
    load_weights_of(of_file, wanted)
    words = ("METHOD.NAME", "deacl", "ADVERSARIAL.TEACHER", f"tclr:{file}")
    teacher = build(tmp_path, *slim, *words).teacher
    size = config(tmp_path).MODEL.FRAME_SIZE
    clips = torch.rand(2, 3, config(tmp_path).DATA.FRAMES, size, size)
    torch.testing.assert_close(teacher(clips), wanted(clips))
    assert not torch.allclose(wanted(clips), wanted(clips.flip(1)))


def test_a_network_without_batchnorm_has_no_sets(tmp_path):
    words = ("MODEL.NAME", "video_vit_s", "MODEL.WIDTH", 32, "MODEL.DEPTH", 1, "MODEL.HEADS", 2)
    method = build(tmp_path, "METHOD.NAME", "acl", *words, "METHOD.PROJECTOR_LAYERS", 0)
    assert not [key for key in method.state_dict() if "norms" in key]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("METHOD.NAME", "deacl"), r"ADVERSARIAL\.TEACHER"),
        (("ADVERSARIAL.ATTACK", "pgd-margin/linf"), "the method defines what is maximised"),
        (("ADVERSARIAL.ATTACK", "pgd/linf:eps=1+2"), "one budget, not"),
        (("ADVERSARIAL.ATTACK", "pgd/l9"), "unknown 'l9'"),
        (
            ("ADVERSARIAL.ATTACK", "pgd/linf:universal=cyclic"),
            "universal perturbations and autoattack",
        ),
        (("ADVERSARIAL.ATTACK", "autoattack/linf"), "inside a training step"),
        (("ADVERSARIAL.ATTACK", "pgd/linf:frames=random:9"), "frames"),
        (("ADVERSARIAL.ATTACK", "pgd/l2", "ADVERSARIAL.EVERY", 2), "threat linf"),
        (("METHOD.NAME", "advcl", "ADVERSARIAL.CLUSTERS", "[30]"), r"ADVERSARIAL\.CLUSTERS \[30\]"),
        (("METHOD.NAME", "at"), "at needs labels"),
    ],
)
def test_adversarial_methods_that_cannot_be_built(tmp_path, words, message):
    named = words if "METHOD.NAME" in words else ("METHOD.NAME", "acl", *words)
    with pytest.raises(UserError, match=message):
        build(tmp_path, *named, label="at" not in words)


def test_the_weight_reaches_the_treatment(tmp_path):
    words = ("FALSE_NEGATIVES.TREATMENT", "weight", "FALSE_NEGATIVES.WEIGHT", 0.2)
    assert build(tmp_path, *words).treatment.keywords == {"weight": 0.2}


@pytest.mark.parametrize("name", METHODS)
def test_a_single_clip_is_enough_where_none_are_compared(tmp_path, teacher, name):
    cfg = config(tmp_path, "METHOD.NAME", name, "DATA.CLIPS", 1, *teacher)
    if name in SINGLE:
        check_method(cfg)
    else:
        with pytest.raises(UserError, match=r"DATA\.CLIPS"):
            check_method(cfg)


@pytest.mark.parametrize("name", METHODS)
def test_false_negatives_of_a_method_without_negatives(tmp_path, teacher, name):
    for words in (("DETECTOR", "labels"), ("VOTERS", 1)):
        key, value = words
        cfg = config(tmp_path, "METHOD.NAME", name, f"FALSE_NEGATIVES.{key}", value, *teacher)
        if issubclass(METHODS[name], ContrastiveMethod):
            check_method(cfg)
        else:
            with pytest.raises(UserError, match="no negatives that may be false"):
                check_method(cfg)


def test_a_queue_shorter_than_a_step(tmp_path):
    words = ("METHOD.NAME", "moco_v2", "DATA.CLIPS", 3, "METHOD.QUEUE", 23)
    with pytest.raises(UserError, match=r"METHOD\.QUEUE is 23, shorter than the 24 keys"):
        check(config(tmp_path, *words))


@pytest.mark.parametrize(
    ("words", "kinds", "message"),
    [
        (("METHOD.NAME", "supcon"), {"label": False}, "supcon needs labels; 20 videos of list.csv"),
        (("METHOD.NAME", "supervised"), {"label": False}, "supervised needs labels"),
        (("FALSE_NEGATIVES.DETECTOR", "labels"), {"label": False}, "DETECTOR labels needs labels"),
        (("FALSE_NEGATIVES.DETECTOR", "known_groups"), {"group": False}, "20 videos of list.csv"),
        (("FALSE_NEGATIVES.DETECTOR", "clusters"), {"count": 10}, r"CLUSTERS \[10\] must be"),
    ],
)
def test_what_the_list_does_not_give(tmp_path, words, kinds, message):
    with pytest.raises(UserError, match=message):
        build(tmp_path, *words, **kinds)


@pytest.mark.parametrize("words", [("EVERY", 2), ("SCALE", 0.5), ("ADAPTIVE", True)], ids=str)
def test_replays_are_no_attack_that_could_be_made_cheaper(tmp_path, words):
    given = ("METHOD.NAME", "at", "ADVERSARIAL.REPLAYS", 3, f"ADVERSARIAL.{words[0]}", words[1])
    with pytest.raises(UserError, match=f"REPLAYS 3 needs ADVERSARIAL.{words[0]}"):
        build(tmp_path, *given)


def test_support_views_are_further_clips(tmp_path):
    cfg = config(tmp_path, "FALSE_NEGATIVES.VOTERS", 2, "AUGMENT.BLUR_PROBABILITY", "[1.0, 0.1]")
    augmentation = build_augmentation(cfg)
    assert augmentation.colour.blur_probability == (1.0, 0.1, 0.1, 0.1)
    for sampling in ("random", "decreasing_interval"):
        cfg = config(tmp_path, "FALSE_NEGATIVES.VOTERS", 2, "DATA.SAMPLING", sampling)
        loader = build_train_loader(cfg, videos(), ALONE)
        assert loader.dataset.sampler(100, 25.0, np.random.default_rng(0)).shape == (4, 4)


@pytest.mark.parametrize("name", LOSSES)
def test_options_reach_the_loss(tmp_path, name):
    similarities, itself = torch.rand(6, 6, generator=torch.Generator()), torch.eye(6).bool()
    pairs = Pairs(torch.roll(itself, 1, dims=1), itself)
    options = {
        "debiased": {"LOSS.PRIOR": 0.3},
        "hard_negative": {"LOSS.PRIOR": 0.3, "LOSS.CONCENTRATION": 2},
        "rince": {"LOSS.ORDER": 0.3, "LOSS.DENSITY": 0.5},
    }
    words = ["LOSS.NAME", name]
    before = build_loss(config(tmp_path, *words))(similarities, pairs)[0]
    for key, value in {"METHOD.TEMPERATURE": 0.3, **options.get(name, {})}.items():
        changed = build_loss(config(tmp_path, *words, key, value))(similarities, pairs)[0]
        assert not torch.allclose(before, changed), key


def test_rince_beyond_float32_is_an_error(tmp_path):
    words = ("LOSS.NAME", "rince", "LOSS.ORDER", 1, "METHOD.TEMPERATURE", 0.01)
    with pytest.raises(UserError, match=r"raise METHOD\.TEMPERATURE or lower LOSS\.ORDER"):
        build_loss(config(tmp_path, *words))


def test_chunks_and_loss_reach_the_method(tmp_path):
    cfg = config(tmp_path, "TRAIN.CHUNK", 2, "LOSS.NAME", "hard_negative")
    listed = VideoList((Video(Path("a.mp4")),), (), "list.csv")
    method = build_method(cfg, listed, ALONE)
    assert method.encoder.chunk == 2 * cfg.DATA.CLIPS
    ids = torch.arange(4)
    clips = torch.rand(4, 2, 3, 4, 16, 16, generator=torch.Generator())
    out = method.train()(ClipBatch(clips, torch.full((4,), -1), ids, ids))
    out["loss"].backward()
    gradients = [p.grad for p in method.parameters()]
    assert all(g is not None and g.isfinite().all() for g in gradients)


def test_published_says_before_the_first_step_which_clips_it_needs(tmp_path):
    published = ("METHOD.PUBLISHED", True)
    for name, clips, voters, remedy in (
        ("advcl", 2, 0, "set DATA.CLIPS to at least 3"),
        ("advcl", 3, 1, "set DATA.CLIPS to at least 4"),
        ("dynacl", 3, 0, "set DATA.CLIPS to 2"),
    ):
        words = ("METHOD.NAME", name, "DATA.CLIPS", clips, "FALSE_NEGATIVES.VOTERS", voters)
        check_method(config(tmp_path, *words))
        with pytest.raises(UserError, match=remedy):
            check_method(config(tmp_path, *words, *published))


def test_published_trades_starts_its_attack_beside_the_clean_clip(tmp_path):
    words = ("METHOD.NAME", "trades", "METHOD.PUBLISHED")
    assert build_attack(config(tmp_path, *words, True)).near == 0.001
    assert build_attack(config(tmp_path, *words, False)).near == 0
    assert build_attack(config(tmp_path, "METHOD.NAME", "acl", *words[2:], True)).near == 0


def test_what_authors_build_beside_is_built_with_published_alone(tmp_path):
    words = ("METHOD.NAME", "dynacl", "METHOD.PUBLISHED")
    assert build(tmp_path, *words, True).teacher is not None
    assert build(tmp_path, *words, False).teacher is None
