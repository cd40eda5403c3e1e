"""Every option: its default, one line of meaning, and the values it may take."""

from vidcsl.data.readers import READERS
from vidcsl.data.sampling import SHORT_VIDEO, TEST_SAMPLING, TRAIN_SAMPLING
from vidcsl.methods import METHODS
from vidcsl.methods.adversarial import OPTIONS as INNER_ATTACK
from vidcsl.methods.false_negatives import DETECTORS, TREATMENTS
from vidcsl.methods.losses import LOSSES
from vidcsl.models import ENCODERS
from vidcsl.registry import Option
from vidcsl.robustness.attacks import GOALS, SOLVERS
from vidcsl.robustness.targets import INPUTS, TRANSFORMS
from vidcsl.robustness.threats import BUDGETS, THREATS
from vidcsl.training.optimisation import DTYPES, OPTIMISERS
from vidcsl.training.parallel import COMPILED, PARALLEL
from vidcsl.training.trackers import TRACKERS

# ----------------------------------------------------------------------
# The run itself.

RUN: dict[str, Option] = {
    "NAME": Option("run", "name of the run, in the report and in the default output folder"),
    "SEED": Option(0, "seed of every random choice of the run", minimum=0),
    "OUTPUT_DIR": Option("", "where everything is written; empty: runs/NAME/seedSEED"),
    "DEVICE": Option("auto", "auto takes the GPU where there is one", ("auto", "cpu", "cuda")),
    "PRECISION": Option(
        "auto",
        "of pretraining; auto: bfloat16 where the hardware has it; float16 comes with a loss "
        "scale. Evaluation is float32",
        ("auto", *DTYPES),
    ),
    "REPORT.ENABLED": Option(True, "write report.html"),
}


# ----------------------------------------------------------------------
# Logging, trackers and the watchdog.

LOG: dict[str, Option] = {
    "LOG.TRACKERS": Option(
        ["tensorboard"], f"beside log.jsonl: {', '.join(TRACKERS)} (docs/cluster.md)"
    ),
    "LOG.PROJECT": Option("vidcsl", "W&B's project, MLflow's experiment"),
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
    "DATA.ROOT": Option("", "folder of the videos, or of their shards: a path or an fsspec URL"),
    "DATA.TRAIN_LIST": Option(
        "", "training list: CSV, of files or shards, or official UCF101 .txt"
    ),
    "DATA.TEST_LIST": Option("", "test list, in the same form; empty: no evaluation"),
    **READERS.options(),
    "DATA.CACHE": Option(
        "",
        "folder that keeps decoded frames, for small data sets; crops are then cut from these "
        "frames, whatever AUGMENT.CROP_BY is; empty: no cache",
    ),
    "DATA.FRAMES": Option(16, "frames of a clip", minimum=1),
    "DATA.STRIDE": Option(2, "step between the frames of a clip, in frames of the file", minimum=1),
    "DATA.SHORT_SIDE": Option(128, "short side that frames are decoded to, pixels", minimum=8),
    **SHORT_VIDEO.options(),
    "DATA.CLIPS": Option(2, "training clips (views) of each video", minimum=1),
    **TRAIN_SAMPLING.options(),
    "DATA.FPS": Option(
        0.0, "frames per second that DATA.STRIDE refers to; 0: each file's own rate", minimum=0
    ),
    "DATA.WINDOW": Option(
        0, "frames in a row that a clip is spread over, instead of DATA.STRIDE; 0: off", minimum=0
    ),
    "DATA.WORKERS": Option(2, "decoding processes of each training process", minimum=0),
    "DATA.DAMAGED_LIMIT": Option(
        0.01,
        "fraction of the training list that may be unreadable (and replaced) before the run stops",
        minimum=0,
        maximum=1,
    ),
    "DATA.ALLOW_DAMAGED_TEST": Option(
        False, "leave unreadable videos out of evaluation and report them, instead of stopping"
    ),
    "DATA.TIMEOUT": Option(
        60.0, "seconds after which a video counts as unreadable; 0: never", minimum=0
    ),
    "SYNTHETIC.ENABLED": Option(False, "render a labelled set into DATA.ROOT and train on that"),
    "SYNTHETIC.CLASSES": Option(8, "motions (labels)", minimum=2),
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
        "who cuts random crops: the decoder, from the file's own pixels, which costs least, or the "
        "device, from frames of DATA.SHORT_SIDE; the boxes are the same",
        ("decoder", "device"),
    ),
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
    "AUGMENT.STRENGTHS": Option(
        [1.0],
        "strength of crops and colours in equal parts of the training, 0 (none) to 1; other than "
        "1: AUGMENT.CROP_BY device",
    ),
    "AUGMENT.CORRUPTIONS": Option(
        ["P"], "corruptions to train with, as in CORRUPT.NAMES; equally likely"
    ),
    "AUGMENT.CORRUPTION_PROBABILITY": Option(
        0.0, "of corrupting a clip in one of these ways", minimum=0, maximum=1
    ),
    "AUGMENT.CORRUPTION_SEVERITIES": Option([1, 2, 3], "severities from 1 to 5, equally likely"),
    "AUGMENT.SOLARISE_PROBABILITY": Option([0.0], "of solarising: one value, or one for each view"),
    "AUGMENT.MOTION_PROBABILITY": Option(
        [0.0],
        "of taking what stands still out of a view, so that views of a video are alike by its "
        "motion, not by its scene: one value, or one for each view",
    ),
}


# ----------------------------------------------------------------------
# The encoder. `docs/models.md` lists which encoder takes which of its options.

MODELS: dict[str, Option] = {
    **ENCODERS.options(),
    "MODEL.FRAME_SIZE": Option(112, "side of the square frames that the encoder sees", minimum=16),
    "MODEL.DUAL_NORM": Option(False, "every BatchNorm twice, for clean and for adversarial clips"),
    "MODEL.NORMALISE": Option(
        "auto",
        "pixel statistics; auto: those of MODEL.WEIGHTS' format, else those of the encoder",
        ("auto", "kinetics", "imagenet", "pyslowfast", "clip", "dpn", "symmetric", "none"),
    ),
    "MODEL.WEIGHTS": Option(
        "",
        "FORMAT:PATH of pretrained weights, where training or an evaluation without checkpoint "
        "starts; docs/models.md lists the formats",
    ),
    "MODEL.WEIGHTS_STRICT": Option(
        True, "weights that do not fit wholly are an error, else a note"
    ),
    "MODEL.CHANNELS": Option(
        "auto",
        "pixels that the weights were learned on; auto: as the format says",
        ("auto", "rgb", "bgr"),
    ),
}


# ----------------------------------------------------------------------
# What is learned, and what becomes of false negatives: registered beside the classes.

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
        "", "vidcsl checkpoint of the whole method to start from; encoders alone: MODEL.WEIGHTS"
    ),
    "TRAIN.EPOCHS": Option(200, "passes over the training list", minimum=1),
    "TRAIN.BATCH": Option(64, "videos in a step, over all processes", minimum=2),
    "TRAIN.CHUNK": Option(
        0,
        "videos of a process that pass the encoder at a time, forward and backward: for batches "
        "larger than memory, at the price of a second forward pass; BatchNorm then normalises "
        "each chunk by itself; 0: all at once",
        minimum=0,
    ),
    **PARALLEL.options(),
    "TRAIN.RECOMPUTE": Option(
        False,
        "drop the activations of each block of the encoder and compute them again for its "
        "gradient: less memory at the price of a second forward pass, BatchNorm as without",
    ),
    "TRAIN.COMPILE": Option(
        "none",
        "compile the encoder (torch.compile); reduce-overhead: with CUDA graphs; max-autotune: "
        "kernels are tried out first",
        ("none", *COMPILED),
    ),
    "TRAIN.CHANNELS_LAST": Option(
        True, "memory layout of clips and weights in which 3-D convolutions are faster"
    ),
    "TRAIN.OPTIMISER": Option("sgd", "optimiser (timm)", tuple(OPTIMISERS)),
    "TRAIN.FUSED": Option(False, "sgd, adamw: one kernel for all parameters"),
    "TRAIN.LR": Option(0.08, "peak learning rate, for TRAIN.LR_BATCH videos", minimum=0),
    "TRAIN.LR_BATCH": Option(
        256,
        "batch that TRAIN.LR is meant for: the rate is scaled by TRAIN.BATCH / TRAIN.LR_BATCH; "
        "0: not scaled",
        minimum=0,
    ),
    "TRAIN.MOMENTUM": Option(0.9, "sgd, lars: momentum", minimum=0, maximum=1),
    "TRAIN.WEIGHT_DECAY": Option(1e-4, "weight decay; biases and norms do not decay", minimum=0),
    "TRAIN.WARMUP_EPOCHS": Option(5.0, "epochs of linear warm-up before the cosine", minimum=0),
    "TRAIN.CLIP_GRADIENT": Option(
        0.0,
        "largest norm of the gradient; 0: not clipped. Contrastive gradients have a norm of 5 to "
        "20 all the time: clipped to 1, they make sgd's learning rate that much smaller",
        minimum=0,
    ),
    "TRAIN.LABEL_SMOOTHING": Option(
        0.0, "supervised: label smoothing of the cross-entropy", minimum=0, maximum=1
    ),
    "TRAIN.LOG_EVERY": Option(10, "steps between lines of the log", minimum=1),
    "TRAIN.CHECKPOINT_EVERY": Option(1, "epochs between checkpoints", minimum=1),
    "TRAIN.CHECKPOINT_STEPS": Option(
        0, "steps between further checkpoints within an epoch; 0: none", minimum=0
    ),
    "TRAIN.CHECKPOINT_BACKGROUND": Option(
        True,
        "write checkpoints from a copy in memory while training continues; false: it waits",
    ),
    "TRAIN.KEEP": Option(2, "how many of the newest checkpoints are kept", minimum=1),
    "TRAIN.KEEP_EVERY": Option(
        0, "also keep the checkpoints of every so many epochs; 0: none", minimum=0
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
        "steps whose batches are left out after a roll-back; the last of them is the bad one",
        minimum=1,
    ),
}


# ----------------------------------------------------------------------
# Evaluation of the frozen encoder.

EVALUATION: dict[str, Option] = {
    "EVALUATE.LINEAR": Option(True, "linear probe on frozen features"),
    "EVALUATE.KNN": Option(True, "nearest neighbours among the training videos"),
    "EVALUATE.KNN_K": Option(20, "how many neighbours vote", minimum=1),
    "EVALUATE.RETRIEVAL": Option(True, "test queries, training gallery: R@1, 5, 10, 20, 50"),
    "EVALUATE.NORMS": Option(
        "clean", "which BatchNorms an encoder with several sets is judged with (MODEL.DUAL_NORM)"
    ),
    **TEST_SAMPLING.options(),
    "EVALUATE.TRAIN_VIEWS": Option(4, "clips of each training video", minimum=1),
    "EVALUATE.TEST_VIEWS": Option(10, "clips of each test video", minimum=1),
    "EVALUATE.CROPS": Option(1, "spatial crops of each test clip: 1 or 3", minimum=1, maximum=3),
    "EVALUATE.BATCH": Option(16, "videos in a step of evaluation, each process", minimum=1),
    "EVALUATE.LOW_SHOT": Option(
        [0.0], "linear probes on these shares of the labelled training videos (0.01, 0.05); 0: none"
    ),
    "EVALUATE.LOW_SHOT_DRAWS": Option(3, "random choices of each share, averaged", minimum=1),
    "EVALUATE.SPLITS": Option(
        [], "more splits of the data, averaged with the first: TRAIN_LIST,TEST_LIST"
    ),
    "EVALUATE.TRANSFER": Option(
        [], "other data sets, their own gallery and queries: NAME,ROOT,TRAIN_LIST,TEST_LIST"
    ),
    "EVALUATE.ATTENTIVE": Option(False, "attentive probe on the tokens of frozen encoders"),
    "EVALUATE.ATTENTIVE_EPOCHS": Option(20, "passes over the training clips", minimum=1),
    "EVALUATE.TOKENS": Option(
        32, "most tokens of a clip for it; of more, neighbouring ones are averaged", minimum=1
    ),
    "FINETUNE.ENABLED": Option(False, "fine-tune a copy of the encoder on the training labels"),
    "FINETUNE.EPOCHS": Option(30, "passes over the training list", minimum=1),
    "FINETUNE.BATCH": Option(32, "videos in a step, over all processes", minimum=2),
    "FINETUNE.LR": Option(1e-3, "peak learning rate of AdamW", minimum=0),
    "FINETUNE.WEIGHT_DECAY": Option(0.05, "of weights, not of biases and norms", minimum=0),
    "FINETUNE.LAYER_DECAY": Option(
        0.75, "factor of the learning rate a block, from the head down", minimum=1e-3, maximum=1
    ),
    "FINETUNE.DROPOUT": Option(0.5, "share of the features dropped before the head", maximum=0.99),
    "FINETUNE.MIXUP": Option(0.0, "parameter of the Beta distribution; 0: no mixup", minimum=0),
    "FINETUNE.LABEL_SMOOTHING": Option(0.0, "of the labels", minimum=0, maximum=1),
    "ROBUST.PROTOCOLS": Option(
        [],
        "adversarial protocols: alf, a linear head learns from perturbed clips; aff, a copy of the "
        "encoder too, by TRADES. The attack is ADVERSARIAL.*; slf is EVALUATE.LINEAR",
    ),
    "ROBUST.EPOCHS": Option(25, "passes over the training list", minimum=1),
    "ROBUST.BATCH": Option(64, "videos in a step, over all processes", minimum=2),
    "ROBUST.STEPS": Option(10, "steps of the attack where its words give none", minimum=1),
    "ROBUST.LR_FACTOR": Option(
        1.0,
        "of the published learning rates: alf 0.01 for 512 videos, aff 0.1 for 128",
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
    "ATTACK.STEPS": Option(20, "steps of pgd and mifgsm where ATTACK.RUNS gives none", minimum=1),
    "ATTACK.RESTARTS": Option(1, "random starts of pgd where ATTACK.RUNS gives none", minimum=1),
    "ATTACK.UNIVERSAL_CLIPS": Option(
        256, "training clips on which universal perturbations are fitted; 0: all", minimum=0
    ),
    "ATTACK.QUANTISE": Option(False, "only attacks that survive rounding to 8 bits count"),
    "ATTACK.TARGETS": Option(
        ["classifier"],
        "what is attacked: classifier (the probe, and a supervised model's own head), knn (the "
        "vote of EVALUATE.KNN_K neighbours), retrieval (the class of the nearest)",
    ),
    **INPUTS.options(),
    **TRANSFORMS.options(),
    "ATTACK.DRAWS": Option(8, "draws over which that expectation is taken", minimum=1),
    "ATTACK.MAX_CLIPS": Option(0, "test videos attacked, evenly chosen; 0: all", minimum=0),
    "ATTACK.CHECK_CLIPS": Option(
        16, "clips on which each attack itself is checked; 0: no checks", minimum=0
    ),
    "ATTACK.EXAMPLES": Option(2, "attacked clips that the report plays, of each attack", minimum=0),
}


# ----------------------------------------------------------------------
# Corruptions of the test clips.

CORRUPTIONS: dict[str, Option] = {
    "CORRUPT.NAMES": Option(
        ["gaussian_noise", "defocus_blur", "jpeg", "C/h264", "freezing", "static_rotation"],
        "corruptions to test, such as jpeg or C/fog; P, C, V: what a suite's scores count; all",
    ),
    "CORRUPT.MAX_CLIPS": Option(0, "test videos corrupted, evenly chosen; 0: all", minimum=0),
    "CORRUPT.EXAMPLES": Option(
        4, "corruptions, those that hurt most, of which the report plays a clip", minimum=0
    ),
}


# ----------------------------------------------------------------------
# Every option: its default, one line of meaning, and what values it may take.
#
# These tables are the only place where an option is declared; the config file, the command line,
# the type checks and the reference in the docs all come from them.

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
