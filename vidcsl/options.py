"""Every option: its default, one line of meaning, and what values it may take.

This table is the only place where an option is declared; the config file, the command line, the
type checks and the reference in the docs all come from it.
"""

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Option:
    """One config key: the default (its type is the key's type), meaning and allowed values."""

    default: Any
    meaning: str
    choices: tuple[str, ...] = ()
    minimum: float | None = None
    maximum: float | None = None


OPTIONS: dict[str, Option] = {
    # --- the run
    "NAME": Option("run", "name of the run, in the report and in the default output folder"),
    "SEED": Option(0, "seed of every random choice of the run", minimum=0),
    "OUTPUT_DIR": Option("", "where everything is written; empty: runs/NAME/seedSEED"),
    "DEVICE": Option("auto", "auto takes the GPU where there is one", ("auto", "cpu", "cuda")),
    "PRECISION": Option(
        "auto",
        "of pretraining; auto: bfloat16 where the hardware has it. Evaluation is float32",
        ("auto", "float32", "bfloat16"),
    ),
    # --- data
    "DATA.ROOT": Option("", "folder that the paths in the lists are relative to"),
    "DATA.TRAIN_LIST": Option("", "training list: CSV (video,class,group) or official UCF101 .txt"),
    "DATA.TEST_LIST": Option("", "test list, in the same form; empty: no evaluation"),
    "DATA.READER": Option("auto", "video decoder", ("auto", "decord", "pyav")),
    "DATA.CACHE": Option("", "folder that keeps decoded frames, for small sets; empty: none"),
    "DATA.FRAMES": Option(16, "frames of a clip", minimum=1),
    "DATA.STRIDE": Option(2, "step between the frames of a clip, in frames of the file", minimum=1),
    "DATA.SHORT_SIDE": Option(128, "short side that frames are decoded to, pixels", minimum=8),
    "DATA.SHORT_VIDEO": Option(
        "loop",
        "what to do with a video shorter than a clip",
        ("loop", "repeat_last", "error"),
    ),
    "DATA.CLIPS": Option(2, "training clips (views) of each video", minimum=1),
    "DATA.SAMPLING": Option(
        "random",
        "where training clips start: independently, or as CVRL's pairs of decreasing interval",
        ("random", "decreasing_interval"),
    ),
    "DATA.WORKERS": Option(2, "decoding processes of each training process", minimum=0),
    "DATA.DAMAGED_LIMIT": Option(
        0.01,
        "share of the training list that may be unreadable (and replaced) before the run stops",
        minimum=0,
        maximum=1,
    ),
    "DATA.ALLOW_DAMAGED_TEST": Option(False, "skip unreadable test videos instead of stopping"),
    # --- the generated demonstration set
    "SYNTHETIC.ENABLED": Option(False, "render a labelled set into DATA.ROOT and train on that"),
    "SYNTHETIC.CLASSES": Option(8, "motions (labels)", minimum=2),
    "SYNTHETIC.SOURCES": Option(15, "source videos of each class", minimum=3),
    "SYNTHETIC.CLIPS": Option(3, "clips cut from each source (a known group)", minimum=1),
    "SYNTHETIC.FRAMES": Option(40, "frames of each clip", minimum=8),
    "SYNTHETIC.SIZE": Option(64, "side of the square frames, pixels", minimum=32),
    # --- augmentation
    "AUGMENT.CROP_AREA": Option([0.3, 1.0], "share of the frame that a random crop covers"),
    "AUGMENT.CROP_ASPECT": Option([0.5, 2.0], "width over height of a random crop"),
    "AUGMENT.FLIP": Option(0.5, "probability of a horizontal flip", minimum=0, maximum=1),
    "AUGMENT.JITTER": Option(
        [0.8, 0.8, 0.8, 0.2], "strength of brightness, contrast, saturation, hue"
    ),
    "AUGMENT.JITTER_PROBABILITY": Option(0.8, "of colour jitter", minimum=0, maximum=1),
    "AUGMENT.GRAY_PROBABILITY": Option(0.2, "of dropping colour", minimum=0, maximum=1),
    "AUGMENT.BLUR_PROBABILITY": Option([0.0], "of Gaussian blur: one value, or one for each view"),
    "AUGMENT.BLUR_SIGMA": Option([0.1, 2.0], "range of the blur's sigma, pixels"),
    "AUGMENT.SOLARISE_PROBABILITY": Option([0.0], "of solarising: one value, or one for each view"),
    # --- encoder
    "MODEL.NAME": Option("r2plus1d_18", "encoder", ("r2plus1d_18", "r2plus1d_34")),
    "MODEL.WIDTH": Option(64, "channels of the first stage; 64 is the published size", minimum=4),
    "MODEL.FRAME_SIZE": Option(112, "side of the square frames that the encoder sees", minimum=16),
    # --- what is learned
    "METHOD.NAME": Option("simclr", "pretraining method", ("simclr", "supcon", "supervised")),
    "METHOD.TEMPERATURE": Option(0.1, "temperature of the contrastive losses", minimum=1e-4),
    "METHOD.PROJECTOR_LAYERS": Option(2, "layers of the projector; 0: none", minimum=0),
    "METHOD.PROJECTOR_HIDDEN": Option(512, "width of its hidden layers", minimum=1),
    "METHOD.PROJECTOR_DIM": Option(128, "size of the embedding", minimum=1),
    "FALSE_NEGATIVES.DETECTOR": Option(
        "none",
        "which pairs are no negatives: none; clips of one source; the most similar; the same label",
        ("none", "known_groups", "adaptive", "labels"),
    ),
    "FALSE_NEGATIVES.TREATMENT": Option(
        "eliminate", "drop them from the denominator, or attract them", ("eliminate", "attract")
    ),
    "FALSE_NEGATIVES.CEILING": Option(
        0.1, "adaptive: largest share of the candidates removed", minimum=0, maximum=1
    ),
    "FALSE_NEGATIVES.START": Option(
        0.25, "adaptive: share of training before removal starts", minimum=0, maximum=1
    ),
    "FALSE_NEGATIVES.RAMP": Option(
        0.5, "adaptive: share of training over which removal rises", minimum=0, maximum=1
    ),
    "FALSE_NEGATIVES.AGGREGATE": Option(
        "mean", "adaptive: score over the anchor's views", ("mean", "max")
    ),
    # --- training
    "TRAIN.ENABLED": Option(True, "pretrain; otherwise TRAIN.WEIGHTS or a finished run is needed"),
    "TRAIN.WEIGHTS": Option("", "checkpoint to take the weights from before training"),
    "TRAIN.EPOCHS": Option(200, "passes over the training list", minimum=1),
    "TRAIN.BATCH": Option(64, "videos in a step, over all processes", minimum=2),
    "TRAIN.OPTIMISER": Option("sgd", "optimiser (timm)", ("sgd", "adamw", "lars", "lamb")),
    "TRAIN.LR": Option(0.08, "peak learning rate, for TRAIN.LR_BATCH videos", minimum=0),
    "TRAIN.LR_BATCH": Option(
        256,
        "batch that TRAIN.LR is meant for: the rate is scaled with the batch; 0: not",
        minimum=0,
    ),
    "TRAIN.MOMENTUM": Option(0.9, "of sgd and lars", minimum=0, maximum=1),
    "TRAIN.WEIGHT_DECAY": Option(1e-4, "of weights, not of biases and norms", minimum=0),
    "TRAIN.WARMUP_EPOCHS": Option(5.0, "epochs of linear warm-up before the cosine", minimum=0),
    "TRAIN.CLIP_GRADIENT": Option(1.0, "largest norm of the gradient; 0: not clipped", minimum=0),
    "TRAIN.LABEL_SMOOTHING": Option(0.0, "of the supervised method", minimum=0, maximum=1),
    "TRAIN.LOG_EVERY": Option(10, "steps between lines of the log", minimum=1),
    "TRAIN.CHECKPOINT_EVERY": Option(1, "epochs between checkpoints", minimum=1),
    "TRAIN.KEEP": Option(2, "newest checkpoints that are kept", minimum=1),
    # --- evaluation
    "EVALUATE.LINEAR": Option(True, "linear probe on frozen features"),
    "EVALUATE.KNN": Option(True, "nearest neighbours among the training videos"),
    "EVALUATE.KNN_K": Option(20, "how many neighbours vote", minimum=1),
    "EVALUATE.RETRIEVAL": Option(True, "test queries, training gallery: R@1, 5, 10, 20, 50"),
    "EVALUATE.TRAIN_VIEWS": Option(4, "clips of each training video", minimum=1),
    "EVALUATE.TEST_VIEWS": Option(10, "clips of each test video", minimum=1),
    "EVALUATE.CROPS": Option(1, "spatial crops of each test clip: 1 or 3", minimum=1, maximum=3),
    "EVALUATE.BATCH": Option(16, "videos in a step of evaluation, each process", minimum=1),
    # --- robustness
    "ATTACK.THREATS": Option(["linf"], "norms that are attacked: linf, l2; empty: no attack"),
    "ATTACK.EPS_LINF": Option(
        [0.1, 0.25, 0.5, 0.75, 1.0, 2.0, 4.0, 8.0], "Linf budgets, in 1/255 of the pixel range"
    ),
    "ATTACK.EPS_L2": Option(
        [0.1, 0.25, 0.5, 1.0, 2.0, 4.0], "L2 budgets over the whole clip, pixels in [0, 1]"
    ),
    "ATTACK.STEPS": Option(20, "steps of PGD", minimum=1),
    "ATTACK.RESTARTS": Option(1, "random starts of PGD", minimum=1),
    "ATTACK.FRAMES": Option(
        "all", "frames that may be changed: all, first:k, random:k, or indices such as 0,3,5"
    ),
    "ATTACK.MAX_CLIPS": Option(0, "test videos attacked, evenly chosen; 0: all", minimum=0),
    "CORRUPT.NAMES": Option(
        ["gaussian_noise", "defocus_blur", "jpeg", "C/h264", "freezing", "static_rotation"],
        "corruptions to test (C/ before suite C's); P, C or all: whole suites; empty: none",
    ),
    "CORRUPT.MAX_CLIPS": Option(0, "test videos corrupted, evenly chosen; 0: all", minimum=0),
    "REPORT.ENABLED": Option(True, "write report.html"),
}
