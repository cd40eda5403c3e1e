"""Every option: its default, one line of meaning, and the values it may take.

Options of things that are chosen by name (methods, detectors, encoders, solvers, ...) are
registered beside their code; those of everything else stand here. Config files, the command line,
the checks and the reference in the documentation all come from `OPTIONS`.
"""

from vidcsl.data.readers import READERS
from vidcsl.data.sampling import SHORT_VIDEO, TEST_SAMPLING, TRAIN_SAMPLING
from vidcsl.evaluation.progress import LABEL_FREE
from vidcsl.methods import METHODS
from vidcsl.methods.adversarial import OPTIONS as INNER_ATTACK
from vidcsl.methods.false_negatives import DETECTORS, TREATMENTS
from vidcsl.methods.losses import LOSSES
from vidcsl.models import ENCODERS
from vidcsl.registry import Option
from vidcsl.robustness.attacks import GOALS, SOLVERS
from vidcsl.robustness.targets import INPUTS, TRANSFORMS
from vidcsl.robustness.threats import BUDGETS, THREATS
from vidcsl.training.monitor import TRACKERS
from vidcsl.training.optimisation import DTYPES, OPTIMISERS
from vidcsl.training.parallel import COMPILED, PARALLEL

# ----------------------------------------------------------------------
# The run itself.

RUN: dict[str, Option] = {
    "NAME": Option("run", "name of the run, in the report and in the default output folder"),
    "SEED": Option(0, "seed of every random choice of the run", minimum=0),
    "OUTPUT_DIR": Option("", "where everything is written; empty: runs/NAME/seedSEED", path=True),
    "DEVICE": Option(
        "auto", "device; auto: a GPU if one is visible, else the CPU", ("auto", "cpu", "cuda")
    ),
    "PRECISION": Option(
        "auto",
        "precision of pretraining; auto: bfloat16 if the hardware supports it; float16 uses a loss "
        "scale. Evaluation always uses float32",
        ("auto", *DTYPES),
    ),
    "REPORT.ENABLED": Option(True, "write report.html"),
    "FIT.MINUTES": Option(
        0.0,
        "choose size and clips of an R(2+1)D, TRAIN.BATCH, CHUNK, EPOCHS, WARMUP_EPOCHS and "
        "DATA.WORKERS so that pretraining takes about so many minutes with this list on this "
        "machine; keys on the command line stay; 0: nothing is chosen",
        minimum=0,
    ),
}


# ----------------------------------------------------------------------
# Logging, trackers and the watchdog.

LOG: dict[str, Option] = {
    "LOG.TRACKERS": Option(
        ["tensorboard"], f"trackers beside log.jsonl: {', '.join(TRACKERS)} (docs/cluster.md)"
    ),
    "LOG.PROJECT": Option("vidcsl", "project in W&B, experiment in MLflow"),
    "LOG.HANG_SECONDS": Option(
        600.0,
        "seconds without a step after which the stacks of all processes are written to hangs/; "
        "0: never",
        minimum=0,
    ),
    "LOG.HANG_ENDS": Option(False, "end a run that hangs, so that torchrun restarts it"),
}


# ----------------------------------------------------------------------
# Videos, clips and loading; the generated demonstration set.

DATA: dict[str, Option] = {
    "DATA.ROOT": Option(
        "", "folder of the videos, or of their shards: a path or an fsspec URL", path=True
    ),
    "DATA.TRAIN_LIST": Option(
        "",
        "training list: CSV, of files or shards, or official UCF101 .txt",
        path=True,
    ),
    "DATA.TEST_LIST": Option("", "test list, in the same form; empty: no evaluation", path=True),
    **READERS.options(),
    "DATA.CACHE": Option(
        "",
        "folder that keeps decoded frames, for small data sets; crops are then cut from these "
        "frames, whatever AUGMENT.CROP_BY is; empty: no cache",
        path=True,
    ),
    "DATA.FRAMES": Option(16, "frames of a clip", minimum=1),
    "DATA.STRIDE": Option(2, "step between the frames of a clip, in video frames", minimum=1),
    "DATA.SHORT_SIDE": Option(128, "short side of decoded frames, in pixels", minimum=8),
    "DATA.PIXELS": Option(
        "stored",
        "of videos whose pixels are not square; stored: frames as they are in the file, too narrow "
        "or too wide; square: stretched to the width at which players show them",
        ("stored", "square"),
    ),
    **SHORT_VIDEO.options(),
    "DATA.CLIPS": Option(2, "training clips (views) of each video", minimum=1),
    **TRAIN_SAMPLING.options(),
    "DATA.FPS": Option(
        0.0,
        "frames per second that DATA.STRIDE refers to, where a file's rate varies by presentation "
        "time; 0: each file's own rate",
        minimum=0,
    ),
    "DATA.WINDOW": Option(
        0, "frames in a row that a clip is spread over, instead of DATA.STRIDE; 0: off", minimum=0
    ),
    "DATA.WORKERS": Option(2, "decoding processes of each training process", minimum=0),
    "DATA.DAMAGED_LIMIT": Option(
        0.01,
        "fraction of the training list that may be unreadable: replaced in training, left out of "
        "probes; more stops the run",
        minimum=0,
        maximum=1,
    ),
    "DATA.ALLOW_DAMAGED_TEST": Option(
        False,
        "leave unreadable test videos, and any number of training videos, out of evaluation and "
        "report them, instead of stopping",
    ),
    "DATA.TIMEOUT": Option(
        60.0, "seconds after which a video counts as unreadable; 0: never", minimum=0
    ),
    "SYNTHETIC.ENABLED": Option(False, "render a labelled data set into DATA.ROOT and train on it"),
    "SYNTHETIC.CLASSES": Option(8, "number of motions, which are the classes", minimum=2),
    "SYNTHETIC.SOURCES": Option(15, "source videos of each class", minimum=3),
    "SYNTHETIC.CLIPS": Option(3, "clips cut from each source (a known group)", minimum=1),
    "SYNTHETIC.COHERENCE": Option(
        0.0,
        "how alike the sources of a class look, from 0 (appearance is no clue to the class) to 1",
        minimum=0,
        maximum=1,
    ),
    "SYNTHETIC.FRAMES": Option(40, "frames of each clip", minimum=8),
    "SYNTHETIC.SIZE": Option(64, "side of the square frames, pixels", minimum=32),
}


# ----------------------------------------------------------------------
# Augmentation of training clips.

AUGMENT: dict[str, Option] = {
    "AUGMENT.CROP_BY": Option(
        "decoder",
        "where random crops are cut: by the decoder, from the video's own pixels, which is "
        "cheapest; or on the device, from frames of DATA.SHORT_SIDE. The boxes are the same",
        ("decoder", "device"),
    ),
    "AUGMENT.CROP_AREA": Option(
        [0.3, 1.0], "range of the fraction of the frame that a random crop covers"
    ),
    "AUGMENT.CROP_ASPECT": Option(
        [0.5, 2.0], "range of the aspect ratio (width / height) of a random crop"
    ),
    "AUGMENT.FLIP": Option(0.5, "probability of a horizontal flip", minimum=0, maximum=1),
    "AUGMENT.JITTER": Option(
        [0.8, 0.8, 0.8, 0.2], "strength of brightness, contrast, saturation, hue"
    ),
    "AUGMENT.JITTER_PROBABILITY": Option(0.8, "probability of colour jitter", minimum=0, maximum=1),
    "AUGMENT.GRAY_PROBABILITY": Option(
        0.2, "probability of conversion to gray", minimum=0, maximum=1
    ),
    "AUGMENT.BLUR_PROBABILITY": Option(
        [0.0], "probability of Gaussian blur: one value, or one per view"
    ),
    "AUGMENT.BLUR_SIGMA": Option([0.1, 2.0], "range of the blur's sigma, in pixels"),
    "AUGMENT.STRENGTHS": Option(
        [1.0],
        "strength of crops and colour jitter, 0 (none) to 1; several values divide training into "
        "equal parts. Values other than 1 need AUGMENT.CROP_BY device",
    ),
    "AUGMENT.CORRUPTIONS": Option(
        ["P"], "corruptions to train with, as in CORRUPT.NAMES; equally likely"
    ),
    "AUGMENT.CORRUPTION_PROBABILITY": Option(
        0.0, "probability that a clip is corrupted", minimum=0, maximum=1
    ),
    "AUGMENT.CORRUPTION_SEVERITIES": Option([1, 2, 3], "severities from 1 to 5, equally likely"),
    "AUGMENT.SOLARISE_PROBABILITY": Option(
        [0.0], "probability of solarisation: one value, or one per view"
    ),
    "AUGMENT.MOTION_PROBABILITY": Option(
        [0.0],
        "probability that the static part of a view is removed, so that views of a video agree in "
        "motion and not in scene: one value, or one per view",
    ),
}


# ----------------------------------------------------------------------
# The encoder. `docs/models.md` lists which encoder takes which of its options.

MODELS: dict[str, Option] = {
    **ENCODERS.options(),
    "MODEL.FRAME_SIZE": Option(112, "side of the encoder's square frames, in pixels", minimum=16),
    "MODEL.DUAL_NORM": Option(False, "add an auxiliary BatchNorm for adversarial clips everywhere"),
    "MODEL.NORMALISE": Option(
        "auto",
        "pixel statistics; auto: those of MODEL.WEIGHTS' format, else those of the encoder",
        ("auto", "kinetics", "imagenet", "pyslowfast", "clip", "dpn", "symmetric", "none"),
    ),
    "MODEL.WEIGHTS": Option(
        "",
        "FORMAT:PATH of pretrained weights for training, or for an evaluation without a "
        "checkpoint; docs/models.md lists the formats",
        path=True,
    ),
    "MODEL.WEIGHTS_STRICT": Option(
        True, "missing or unknown tensors are an error; false: they are only logged"
    ),
    "MODEL.CHANNELS": Option(
        "auto",
        "channel order that the weights were trained with; auto: as the format says",
        ("auto", "rgb", "bgr"),
    ),
}


# ----------------------------------------------------------------------
# Methods, losses and false negatives.

OBJECTIVES: dict[str, Option] = {
    **METHODS.options(),
    **LOSSES.options(),
    **DETECTORS.options(),
    **TREATMENTS.options(),
    "FALSE_NEGATIVES.ROUNDS_METHOD": Option(
        "",
        "memory: method of all runs of an iterative training but the last; empty: METHOD.NAME",
        ("", *METHODS),
    ),
    "FALSE_NEGATIVES.EXAMPLES": Option(
        6, "flagged pairs in the report: this many correct ones and as many wrong ones", minimum=0
    ),
    **INNER_ATTACK,
}


# ----------------------------------------------------------------------
# Optimisation and checkpoints.

TRAINING: dict[str, Option] = {
    "TRAIN.ENABLED": Option(
        True, "pretrain; false: evaluate TRAIN.WEIGHTS, MODEL.WEIGHTS or a finished run"
    ),
    "TRAIN.WEIGHTS": Option(
        "",
        "vidcsl checkpoint of the whole method to start from; encoders alone: MODEL.WEIGHTS",
        path=True,
    ),
    "TRAIN.EPOCHS": Option(200, "passes over the training list", minimum=1),
    "TRAIN.BATCH": Option(64, "videos in a step, over all processes", minimum=2),
    "TRAIN.CHUNK": Option(
        0,
        "videos per process that pass the encoder at once, for batches larger than memory; costs a "
        "second forward pass, and BatchNorm normalises each chunk by itself; 0: all at once",
        minimum=0,
    ),
    **PARALLEL.options(),
    "TRAIN.RECOMPUTE": Option(
        False,
        "activation checkpointing: recompute each block of the encoder in the backward pass; saves "
        "memory, costs a second forward pass",
    ),
    "TRAIN.COMPILE": Option(
        "none",
        "torch.compile mode of the encoder; reduce-overhead uses CUDA graphs, max-autotune tries "
        "kernels first",
        ("none", *COMPILED),
    ),
    "TRAIN.CHANNELS_LAST": Option(
        True, "use the channels_last_3d memory layout, in which 3-D convolutions are faster"
    ),
    "TRAIN.OPTIMISER": Option("sgd", "optimiser (timm)", tuple(OPTIMISERS)),
    "TRAIN.FUSED": Option(False, "sgd, adamw: update all parameters in one kernel"),
    "TRAIN.LR": Option(0.08, "peak learning rate, for TRAIN.LR_BATCH videos", minimum=0),
    "TRAIN.LR_BATCH": Option(
        256,
        "batch size that TRAIN.LR refers to: the rate is scaled by TRAIN.BATCH / TRAIN.LR_BATCH; "
        "0: not scaled",
        minimum=0,
    ),
    "TRAIN.MOMENTUM": Option(0.9, "sgd, lars: momentum", minimum=0, maximum=1),
    "TRAIN.WEIGHT_DECAY": Option(1e-4, "weight decay; biases and norms do not decay", minimum=0),
    "TRAIN.WARMUP_EPOCHS": Option(5.0, "epochs of linear warm-up before the cosine", minimum=0),
    "TRAIN.CLIP_GRADIENT": Option(
        0.0,
        "clip the gradient norm to this; 0: no clipping. Contrastive gradients have norms of 5 to "
        "20, so that clipping to 1 divides the learning rate of sgd by as much",
        minimum=0,
    ),
    "TRAIN.LABEL_SMOOTHING": Option(
        0.0, "supervised: label smoothing of the cross-entropy", minimum=0, maximum=1
    ),
    "TRAIN.LOG_EVERY": Option(10, "steps between lines in the log", minimum=1),
    "TRAIN.CHECKPOINT_EVERY": Option(1, "epochs between checkpoints", minimum=1),
    "TRAIN.CHECKPOINT_STEPS": Option(
        0, "steps between further checkpoints within an epoch; 0: none", minimum=0
    ),
    "TRAIN.CHECKPOINT_BACKGROUND": Option(
        True,
        "write checkpoints from a copy in memory while training continues; false: training waits",
    ),
    "TRAIN.KEEP": Option(2, "how many of the newest checkpoints are kept", minimum=1),
    "TRAIN.KEEP_EVERY": Option(
        0, "also keep every checkpoint whose epoch is a multiple of this; 0: none", minimum=0
    ),
    "GUARD.ROLLBACKS": Option(
        2,
        "how often a run whose loss diverged is rolled back to its last checkpoint; after "
        "that, or without a checkpoint, it ends",
        minimum=0,
    ),
    "GUARD.SPIKE": Option(
        0.0,
        "standard deviations above the mean of the last 100 losses that count as diverged; "
        "0: only a loss that is not finite does",
        minimum=0,
    ),
    "GUARD.SKIP": Option(
        2,
        "steps to skip after a rollback; the last of them is the bad one",
        minimum=1,
    ),
}


# ----------------------------------------------------------------------
# Evaluation of the frozen encoder.

EVALUATION: dict[str, Option] = {
    "EVALUATE.EVERY": Option(
        0,
        "while training, score the encoder every so many epochs on up to 512 training videos: "
        "RankMe, LiDAR, agreement with the teacher, and by labels kNN and a probe; 0: never",
        minimum=0,
    ),
    "EVALUATE.CHECKPOINT": Option(
        "last",
        "the checkpoint that is evaluated: the last, or the one with the highest score without "
        "labels, of those that TRAIN.KEEP_EVERY keeps",
        ("last", *LABEL_FREE),
    ),
    "EVALUATE.LINEAR": Option(True, "linear probe on frozen features"),
    "EVALUATE.KNN": Option(True, "kNN classification against the training videos"),
    "EVALUATE.KNN_K": Option(20, "number of neighbours", minimum=1),
    "EVALUATE.RETRIEVAL": Option(
        True, "retrieval of training videos by test videos: R@1, 5, 10, 20, 50"
    ),
    "EVALUATE.NORMS": Option(
        "clean",
        "the BatchNorms that evaluation uses, in encoders with auxiliary ones (MODEL.DUAL_NORM)",
    ),
    **TEST_SAMPLING.options(),
    "EVALUATE.TRAIN_VIEWS": Option(4, "clips per training video", minimum=1),
    "EVALUATE.TEST_VIEWS": Option(10, "clips per test video", minimum=1),
    "EVALUATE.CROPS": Option(1, "spatial crops per test clip: 1 or 3", minimum=1, maximum=3),
    "EVALUATE.BATCH": Option(16, "videos per step and process", minimum=1),
    "EVALUATE.LOW_SHOT": Option(
        [0.0], "linear probes on these fractions of the labelled training videos; 0: none"
    ),
    "EVALUATE.LOW_SHOT_DRAWS": Option(3, "random draws of each fraction, averaged", minimum=1),
    "EVALUATE.SPLITS": Option(
        [], "further splits, averaged with the first: TRAIN_LIST,TEST_LIST", path=True
    ),
    "EVALUATE.TRANSFER": Option(
        [], "other data sets to evaluate on: NAME,ROOT,TRAIN_LIST,TEST_LIST", path=True
    ),
    "EVALUATE.ATTENTIVE": Option(False, "attentive probe on frozen tokens"),
    "EVALUATE.ATTENTIVE_EPOCHS": Option(20, "passes over the training clips", minimum=1),
    "EVALUATE.TOKENS": Option(
        32, "largest number of tokens per clip; more are averaged with their neighbours", minimum=1
    ),
    "FINETUNE.ENABLED": Option(False, "fine-tune a copy of the encoder on the training labels"),
    "FINETUNE.EPOCHS": Option(30, "passes over the training list", minimum=1),
    "FINETUNE.BATCH": Option(32, "videos in a step, over all processes", minimum=2),
    "FINETUNE.LR": Option(1e-3, "peak learning rate of AdamW", minimum=0),
    "FINETUNE.WEIGHT_DECAY": Option(0.05, "weight decay; biases and norms do not decay", minimum=0),
    "FINETUNE.LAYER_DECAY": Option(
        0.75,
        "factor of the learning rate per block, from the head downwards",
        minimum=1e-3,
        maximum=1,
    ),
    "FINETUNE.DROPOUT": Option(0.5, "dropout before the head", maximum=0.99),
    "FINETUNE.MIXUP": Option(
        0.0, "mixup: parameter of the Beta distribution; 0: no mixup", minimum=0
    ),
    "FINETUNE.LABEL_SMOOTHING": Option(0.0, "label smoothing", minimum=0, maximum=1),
    "ROBUST.PROTOCOLS": Option(
        [],
        "adversarial protocols: alf trains a linear head on perturbed clips; aff also trains a "
        "copy of the encoder, by TRADES. ADVERSARIAL.* sets the attack; slf is EVALUATE.LINEAR",
    ),
    "ROBUST.EPOCHS": Option(25, "passes over the training list", minimum=1),
    "ROBUST.BATCH": Option(64, "videos in a step, over all processes", minimum=2),
    "ROBUST.STEPS": Option(10, "attack steps if ADVERSARIAL.ATTACK gives none", minimum=1),
    "ROBUST.LR_FACTOR": Option(
        1.0,
        "factor of the published learning rates: alf 0.01 for 512 videos, aff 0.1 for 128",
        minimum=0,
    ),
}


# ----------------------------------------------------------------------
# Attacks on the trained model.

ATTACKS: dict[str, Option] = {
    "ATTACK.RUNS": Option(
        ["pgd/linf"],
        "attacks, each SOLVER[-GOAL][:option=value,...]/THREAT[:option=value,...]; empty: none. "
        f"Solvers: {', '.join(SOLVERS)}; goals: {', '.join(GOALS)}; threats: {', '.join(THREATS)}",
    ),
    **BUDGETS,
    "ATTACK.STEPS": Option(20, "steps of pgd and mifgsm if ATTACK.RUNS gives none", minimum=1),
    "ATTACK.RESTARTS": Option(1, "random starts of pgd if ATTACK.RUNS gives none", minimum=1),
    "ATTACK.UNIVERSAL_CLIPS": Option(
        256, "training clips on which universal perturbations are fitted; 0: all", minimum=0
    ),
    "ATTACK.QUANTISE": Option(
        False, "attack 8-bit clips: only perturbations that survive rounding count"
    ),
    "ATTACK.TARGETS": Option(
        ["classifier"],
        "what is attacked: classifier (the probe, and a supervised model's own head), knn (the "
        "vote of EVALUATE.KNN_K neighbours), retrieval (the class of the nearest)",
    ),
    **INPUTS.options(),
    **TRANSFORMS.options(),
    "ATTACK.DRAWS": Option(8, "draws of ATTACK.PREPROCESSING, whose mean is attacked", minimum=1),
    "ATTACK.MAX_CLIPS": Option(
        0, "number of test videos to attack, evenly chosen; 0: all", minimum=0
    ),
    "ATTACK.CHECK_CLIPS": Option(
        16, "clips for the sanity checks of each attack; 0: no checks", minimum=0
    ),
    "ATTACK.EXAMPLES": Option(2, "attacked clips per attack that the report plays", minimum=0),
}


# ----------------------------------------------------------------------
# Corruptions of the test clips.

CORRUPTIONS: dict[str, Option] = {
    "CORRUPT.NAMES": Option(
        ["gaussian_noise", "defocus_blur", "jpeg", "C/h264", "freezing", "static_rotation"],
        "corruptions to test: names such as jpeg or C/fog; P, C or V for the scored corruptions of "
        "a suite; all",
    ),
    "CORRUPT.ORDER": Option(
        "video",
        "corruptions over time (codecs, damaged streams, lost or averaged frames) act on the "
        "video at its full rate, of which the clip takes its frames, as published; clip: on the "
        "clip's own frames",
        choices=("video", "clip"),
    ),
    "CORRUPT.MAX_CLIPS": Option(
        0, "number of test videos to corrupt, evenly chosen; 0: all", minimum=0
    ),
    "CORRUPT.EXAMPLES": Option(
        4, "number of the most harmful corruptions whose clips the report plays", minimum=0
    ),
}


OPTIONS: dict[str, Option] = {
    **RUN,
    **LOG,
    **DATA,
    **AUGMENT,
    **MODELS,
    **OBJECTIVES,
    **TRAINING,
    **EVALUATION,
    **ATTACKS,
    **CORRUPTIONS,
}
