"""Every option: its default, one line of meaning, and the values it may take."""

from vidcsl.registry import Option

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
        ("auto", "float32", "bfloat16", "float16"),
    ),
    "REPORT.ENABLED": Option(True, "write report.html"),
}


# ----------------------------------------------------------------------
# What is told of a run while it runs.

LOG: dict[str, Option] = {
    "LOG.TRACKERS": Option(
        ["tensorboard"], "beside log.jsonl: tensorboard, wandb, mlflow (docs/cluster.md)"
    ),
    "LOG.PROJECT": Option("vidcsl", "W&B's project, MLflow's experiment"),
    "LOG.HANG_SECONDS": Option(
        600.0,
        "without a step, after which the stacks of all processes are written to hangs/; 0: never",
        minimum=0,
    ),
    "LOG.HANG_ENDS": Option(False, "end a run that hangs, so that torchrun starts it anew"),
}


# ----------------------------------------------------------------------
# Videos, clips and loading; the generated demonstration set.

DATA: dict[str, Option] = {
    "DATA.ROOT": Option("", "folder of the videos, or of their shards: a path or an fsspec URL"),
    "DATA.TRAIN_LIST": Option(
        "", "training list: CSV, of files or shards, or official UCF101 .txt"
    ),
    "DATA.TEST_LIST": Option("", "test list, in the same form; empty: no evaluation"),
    "DATA.READER": Option(
        "auto",
        "who decodes; auto: PyAV, and pictures for a folder of .jpg or .png files",
        ("auto", "pyav", "decord", "torchcodec", "pictures"),
    ),
    "DATA.CACHE": Option(
        "",
        "folder that keeps decoded frames, for small sets, from which crops are then cut whatever "
        "AUGMENT.CROP_BY; empty: none",
    ),
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
        "where training clips start: independently; spaced, DATA.MIN_GAP to DATA.MAX_GAP apart; as "
        "CVRL's pairs of decreasing interval; or one frame of each of DATA.FRAMES equal segments",
        ("random", "spaced", "decreasing_interval", "segment"),
    ),
    "DATA.MIN_GAP": Option(0, "spaced: least frames between neighbours' starts", minimum=0),
    "DATA.MAX_GAP": Option(0, "spaced: most frames between them; 0: no limit", minimum=0),
    "DATA.FPS": Option(
        0.0, "take every file as if it ran at this rate, frames per second; 0: its own", minimum=0
    ),
    "DATA.WINDOW": Option(
        0, "dense clips: spread over so many frames in a row, in place of DATA.STRIDE", minimum=0
    ),
    "DATA.WORKERS": Option(2, "decoding processes of each training process", minimum=0),
    "DATA.DAMAGED_LIMIT": Option(
        0.01,
        "share of the training list that may be unreadable (and replaced) before the run stops",
        minimum=0,
        maximum=1,
    ),
    "DATA.ALLOW_DAMAGED_TEST": Option(
        False, "leave unreadable videos out of evaluation, and name them, instead of stopping"
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
        "how much the sources of a class look alike: 0, the looks say nothing of the class; 1, all",
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

NAMES = (
    *("r2plus1d_18", "r2plus1d_34", "r2plus1d_34_mmaction2", "r3d_18", "r3d_18_tclr", "mc3_18"),
    *("s3d", "slow_r50", "mvit_v2_s", "swin3d_t", "swin3d_s", "swin3d_b"),
    *("video_vit_s", "video_vit_b", "video_vit_l", "frames"),
)

_CHANNELS = ("auto", "rgb", "bgr")

MODELS: dict[str, Option] = {
    "MODEL.NAME": Option("r2plus1d_18", "encoder", NAMES),
    "MODEL.WIDTH": Option(0, "channels of the first stage; 0: the published number", minimum=0),
    "MODEL.DEPTH": Option(
        0,
        "most blocks of a stage (of a video ViT: all its blocks); 0: the published number",
        minimum=0,
    ),
    "MODEL.FRAME_SIZE": Option(112, "side of the square frames that the encoder sees", minimum=16),
    "MODEL.HEADS": Option(0, "video ViT: attention heads; 0: one for 64 channels", minimum=0),
    "MODEL.TUBELET": Option([2, 16], "video ViT: frames and pixels of a token"),
    "MODEL.ATTENTION": Option(
        "joint", "video ViT: over all tokens, or over time, then over space", ("joint", "divided")
    ),
    "MODEL.POSITIONS": Option(
        "sine", "video ViT: where a token lies", ("learned", "sine", "rotary")
    ),
    "MODEL.POOLING": Option(
        "mean",
        "video ViT: mean of the tokens, normalised; mean of normalised tokens; a class token",
        ("mean", "tokens", "class"),
    ),
    "MODEL.IMAGE": Option("resnet18", "frames: the image backbone, a name of timm's"),
    "MODEL.TEMPORAL": Option("mean", "frames: what joins them", ("mean", "transformer")),
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
        "auto", "pixels that the weights were learned on; auto: as the format says", _CHANNELS
    ),
}


# ----------------------------------------------------------------------
# What is learned, and what is done about false negatives.

_METHODS = (
    *("simclr", "supcon", "moco_v2", "moco_v3", "byol", "swav", "supervised"),
    *("rocl", "acl", "dynacl", "advcl", "deacl", "at", "trades"),
)

OBJECTIVES: dict[str, Option] = {
    "METHOD.NAME": Option("simclr", "pretraining method", _METHODS),
    "METHOD.TEMPERATURE": Option(
        0.1, "temperature of the contrastive losses and of swav", minimum=1e-4
    ),
    "METHOD.PROJECTOR_LAYERS": Option(2, "layers of the projector; 0: none", minimum=0),
    "METHOD.PROJECTOR_HIDDEN": Option(512, "width of its hidden layers", minimum=1),
    "METHOD.PROJECTOR_DIM": Option(128, "size of the embedding", minimum=1),
    "METHOD.PREDICTOR_LAYERS": Option(2, "byol, moco_v3: layers of the predictor", minimum=1),
    "METHOD.PREDICTOR_HIDDEN": Option(512, "byol, moco_v3: width of its hidden layers", minimum=1),
    "METHOD.MOMENTUM": Option(
        0.99, "of the momentum encoder, at the start of the training", minimum=0, maximum=1
    ),
    "METHOD.MOMENTUM_SCHEDULE": Option(
        "cosine", "it rises to 1 along half a cosine, or stays", ("cosine", "constant")
    ),
    "METHOD.QUEUE": Option(4096, "moco_v2: keys of earlier steps that are kept", minimum=1),
    "METHOD.PROTOTYPES": Option(300, "swav: how many", minimum=2),
    "METHOD.CODE_SHARPNESS": Option(
        0.05, "swav: epsilon of the codes, the smaller the surer", minimum=1e-3
    ),
    "METHOD.FROZEN_EPOCHS": Option(
        1.0, "swav: epochs in which the prototypes stay as they are", minimum=0
    ),
    "LOSS.NAME": Option(
        "nt_xent",
        "contrastive loss: nt_xent (with the positives of a class SupCon, over a queue InfoNCE); "
        "supcon_in: sum inside the log; debiased; hard_negative: debiased, near ones first; rince",
        ("nt_xent", "supcon_in", "debiased", "hard_negative", "rince"),
    ),
    "LOSS.PRIOR": Option(
        0.1,
        "debiased, hard_negative: share of an anchor's class among its negatives",
        minimum=0,
        maximum=0.99,
    ),
    "LOSS.CONCENTRATION": Option(1.0, "hard_negative: how much near ones count more", minimum=0),
    "LOSS.ORDER": Option(
        0.1, "rince: near 0 InfoNCE, 1 bears wrong positives", minimum=1e-3, maximum=1
    ),
    "LOSS.DENSITY": Option(0.01, "rince: weight of the negatives (lambda)", minimum=1e-6),
    "FALSE_NEGATIVES.DETECTOR": Option(
        "none",
        "which pairs are no negatives: none; labels: the same label; known_groups: clips of one "
        "source; adaptive: the most similar share; fnc: the nearest few; clusters (IFND): one "
        "k-means cluster; glofnd: above the anchor's learnt threshold; memory (ours): the most "
        "similar share by all views seen so far; teacher (ours): those that a teacher finds alike",
        (
            "none",
            "labels",
            "known_groups",
            "adaptive",
            "fnc",
            "clusters",
            "glofnd",
            "memory",
            "teacher",
        ),
    ),
    "FALSE_NEGATIVES.TEACHER": Option(
        "motion",
        "teacher: who knows which videos are alike: motion (a descriptor of optical flow, computed "
        "once); a file of features (.npz, .npy, .safetensors); the checkpoint of a run with the "
        "detector memory; FORMAT:PATH of an encoder; several, joined by +",
    ),
    "FALSE_NEGATIVES.RULE": Option(
        "auto",
        "teacher: which videos are alike: auto, those that stand out from a video's other "
        "similarities; share, its nearest CEILING of the list; mutual, those that are among the "
        "nearest CEILING of each other",
        ("auto", "share", "mutual"),
    ),
    "FALSE_NEGATIVES.FALSE_DISCOVERY_RATE": Option(
        0.5,
        "teacher, rule auto: expected share of wrong pairs among the flagged; a fifth of it where "
        "they are attracted",
        minimum=0.01,
        maximum=1,
    ),
    "FALSE_NEGATIVES.ORACLE_RECALL": Option(
        1.0, "labels: share of the false negatives that are found", minimum=0, maximum=1
    ),
    "FALSE_NEGATIVES.ORACLE_PRECISION": Option(
        1.0,
        "labels: share of the flagged that are right; other pairs are added until it holds",
        minimum=1e-3,
        maximum=1,
    ),
    "FALSE_NEGATIVES.TREATMENT": Option(
        "eliminate",
        "drop them from the denominator, attract them, or let them count by a weight",
        ("eliminate", "attract", "weight"),
    ),
    "FALSE_NEGATIVES.WEIGHT": Option(
        0.5, "weight: 0 eliminates, 1 leaves them as they are", minimum=0, maximum=1
    ),
    "FALSE_NEGATIVES.START": Option(
        0.25,
        "all but labels, known_groups, teacher: share of training before removal starts",
        minimum=0,
        maximum=1,
    ),
    "FALSE_NEGATIVES.RAMP": Option(
        0.5,
        "adaptive, memory, clusters: share of training over which removal rises",
        minimum=0,
        maximum=1,
    ),
    "FALSE_NEGATIVES.CEILING": Option(
        0.1,
        "adaptive, memory: largest share of the negatives removed; glofnd: share to cut off; "
        "teacher: rules share and mutual",
        minimum=0,
        maximum=1,
    ),
    "FALSE_NEGATIVES.NEAREST": Option(10, "fnc: at most so many of an anchor", minimum=1),
    "FALSE_NEGATIVES.THRESHOLD": Option(0.7, "fnc: least similarity", minimum=-1, maximum=1),
    "FALSE_NEGATIVES.CLUSTERS": Option([10], "clusters: how many; several, falling: a hierarchy"),
    "FALSE_NEGATIVES.ACCEPTED": Option(
        1.0,
        "clusters: share of the videos, surest first, believed in the end",
        minimum=0,
        maximum=1,
    ),
    "FALSE_NEGATIVES.THRESHOLD_LR": Option(
        0.05, "glofnd: learning rate of the thresholds", minimum=0
    ),
    "FALSE_NEGATIVES.AGGREGATE": Option(
        "auto",
        "score of a candidate over the anchor's views; auto: adaptive mean, fnc max, others own",
        ("auto", "own", "mean", "max"),
    ),
    "FALSE_NEGATIVES.VOTERS": Option(
        0, "further clips of each video that only vote on false negatives", minimum=0
    ),
    "FALSE_NEGATIVES.ROUNDS": Option(
        1,
        "memory: trainings from the start, one after the other, each judged from its first step on "
        "by what the one before remembers of the videos",
        minimum=1,
    ),
    "FALSE_NEGATIVES.ROUNDS_METHOD": Option(
        "", "memory: method of the rounds before the last; '': METHOD.NAME", ("", *_METHODS)
    ),
    "FALSE_NEGATIVES.TUTOR": Option(
        "",
        "memory: checkpoint of a training with this detector on the same list, by any method; its "
        "memory judges from the first step on",
    ),
    "FALSE_NEGATIVES.EXAMPLES": Option(
        6, "flagged pairs that the report shows, right ones and as many wrong ones", minimum=0
    ),
    "FALSE_NEGATIVES.JUDGE": Option(
        "online",
        "whose embeddings are compared: the encoder's or a momentum encoder's",
        ("online", "momentum"),
    ),
}


# ----------------------------------------------------------------------
# The attack inside a training step, and what only adversarial methods take.

ADVERSARIAL: dict[str, Option] = {
    "ADVERSARIAL.ATTACK": Option(
        "pgd/linf",
        "attack in each step of an adversarial method, SOLVER[:option=value,...]/THREAT[:option="
        "value,...] as in ATTACK.RUNS; the method says what is maximised",
    ),
    "ADVERSARIAL.EPS": Option(
        2.0, "its budget where the words give none, of linf and flicker in 1/255", minimum=0
    ),
    "ADVERSARIAL.STEPS": Option(5, "its steps where the words give none", minimum=1),
    "ADVERSARIAL.RAMP": Option(
        0.0,
        "share of the training over which the budget rises from 0 (a curriculum); 0: at once",
        minimum=0,
        maximum=1,
    ),
    "ADVERSARIAL.EVERY": Option(
        1, "the attack looks at every so many frames; the ones between take over", minimum=1
    ),
    "ADVERSARIAL.SCALE": Option(
        1.0, "it looks at frames of this share of their side", minimum=0.1, maximum=1
    ),
    "ADVERSARIAL.COARSE_UNTIL": Option(
        1.0,
        "share of the training in which EVERY and SCALE hold; then it looks at everything",
        minimum=0,
        maximum=1,
    ),
    "ADVERSARIAL.PRECISION": Option(
        "auto", "of the attack; auto: as pretraining", ("auto", "float32")
    ),
    "ADVERSARIAL.CLUSTERS": Option(
        [500, 100, 50, 10, 2], "advcl: falling numbers of clusters whose numbers are pseudo-labels"
    ),
    "ADVERSARIAL.TEACHER": Option("", "deacl: FORMAT:PATH of the frozen teacher, as MODEL.WEIGHTS"),
    "ADVERSARIAL.BETA": Option(6.0, "trades: weight of the robust term", minimum=0),
    "ADVERSARIAL.REPLAYS": Option(
        1,
        "steps of the training with each batch; above 1 the perturbation climbs by their backward "
        "passes, not by an attack (Free AT); TRAIN.EPOCHS should be divided by it",
        minimum=1,
    ),
    "ADVERSARIAL.ADAPTIVE": Option(
        False,
        "at, trades: each video has a budget of its own, which rises while the video is still "
        "named right under attack, and falls when not",
    ),
}


# ----------------------------------------------------------------------
# Optimisation and checkpoints.

TRAINING: dict[str, Option] = {
    "TRAIN.ENABLED": Option(True, "pretrain; otherwise TRAIN.WEIGHTS or a finished run is needed"),
    "TRAIN.WEIGHTS": Option(
        "", "checkpoint of ours, of the whole method, to start from; others: MODEL.WEIGHTS"
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
    "TRAIN.PARALLEL": Option(
        "ddp",
        "several processes hold the whole method each (ddp), or a part of every parameter, of "
        "which a block at a time is gathered (fsdp): for encoders too large for one GPU",
        ("ddp", "fsdp"),
    ),
    "TRAIN.RECOMPUTE": Option(
        False,
        "drop the activations of each block of the encoder and compute them again for its "
        "gradient: less memory at the price of a second forward pass, BatchNorm as without",
    ),
    "TRAIN.COMPILE": Option(
        "none",
        "compile the encoder (torch.compile); reduce-overhead: with CUDA graphs; max-autotune: "
        "kernels are tried out first",
        ("none", "default", "reduce-overhead", "max-autotune"),
    ),
    "TRAIN.CHANNELS_LAST": Option(
        True, "layout of clips and weights in which 3-D convolutions are faster"
    ),
    "TRAIN.OPTIMISER": Option("sgd", "optimiser (timm)", ("sgd", "adamw", "lars", "lamb")),
    "TRAIN.FUSED": Option(False, "one kernel for all parameters; of sgd and adamw"),
    "TRAIN.LR": Option(0.08, "peak learning rate, for TRAIN.LR_BATCH videos", minimum=0),
    "TRAIN.LR_BATCH": Option(
        256,
        "batch that TRAIN.LR is meant for: the rate is scaled with the batch; 0: not",
        minimum=0,
    ),
    "TRAIN.MOMENTUM": Option(0.9, "of sgd and lars", minimum=0, maximum=1),
    "TRAIN.WEIGHT_DECAY": Option(1e-4, "of weights, not of biases and norms", minimum=0),
    "TRAIN.WARMUP_EPOCHS": Option(5.0, "epochs of linear warm-up before the cosine", minimum=0),
    "TRAIN.CLIP_GRADIENT": Option(
        0.0,
        "largest norm of the gradient; 0: not clipped. Contrastive gradients are 5 to 20 long for "
        "all of a training: clipped to 1, sgd's learning rate is that much smaller",
        minimum=0,
    ),
    "TRAIN.LABEL_SMOOTHING": Option(0.0, "of the supervised method", minimum=0, maximum=1),
    "TRAIN.LOG_EVERY": Option(10, "steps between lines of the log", minimum=1),
    "TRAIN.CHECKPOINT_EVERY": Option(1, "epochs between checkpoints", minimum=1),
    "TRAIN.CHECKPOINT_STEPS": Option(
        0, "steps between further checkpoints within an epoch; 0: none", minimum=0
    ),
    "TRAIN.CHECKPOINT_BACKGROUND": Option(
        True,
        "write checkpoints from a copy in memory while training goes on; otherwise it waits",
    ),
    "TRAIN.KEEP": Option(2, "newest checkpoints that are kept", minimum=1),
    "TRAIN.KEEP_EVERY": Option(
        0, "checkpoints kept beside the newest: those of every so many epochs; 0: none", minimum=0
    ),
    "GUARD.ROLLBACKS": Option(
        2,
        "how often a training whose loss went astray is set back to its last checkpoint; "
        "then, or without one, it ends",
        minimum=0,
    ),
    "GUARD.SPIKE": Option(
        0.0,
        "standard deviations above the mean of the last 100 losses that count as astray; "
        "0: only a loss that is not finite",
        minimum=0,
    ),
    "GUARD.SKIP": Option(
        2, "steps whose batches are left out after a roll-back, the bad one the last", minimum=1
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
    "EVALUATE.SAMPLING": Option(
        "uniform",
        "where the clips lie: evenly spaced, or one frame of each of DATA.FRAMES equal segments",
        ("uniform", "segment"),
    ),
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
        "attacks, each SOLVER[-GOAL][:option=value,...]/THREAT[:option=value,...]; empty: none",
    ),
    "ATTACK.EPS_LINF": Option(
        [0.1, 0.25, 0.5, 0.75, 1.0, 2.0, 4.0, 8.0], "Linf budgets, in 1/255 of the pixel range"
    ),
    "ATTACK.EPS_L2": Option(
        [0.1, 0.25, 0.5, 1.0, 2.0, 4.0], "L2 budgets over the whole clip, pixels in [0, 1]"
    ),
    "ATTACK.EPS_L1": Option(
        [1.0, 3.0, 10.0, 30.0, 100.0], "L1 budgets over the whole clip, pixels in [0, 1]"
    ),
    "ATTACK.EPS_L21": Option(
        [0.25, 0.5, 1.0, 2.0, 4.0], "frame-sparse budgets: sums of the frames' L2 norms"
    ),
    "ATTACK.EPS_FLICKER": Option(
        [1.0, 2.0, 4.0, 8.0, 16.0, 32.0], "colour offsets of whole frames, in 1/255"
    ),
    "ATTACK.STEPS": Option(20, "steps of pgd and mifgsm where a run gives none", minimum=1),
    "ATTACK.RESTARTS": Option(1, "random starts of pgd where a run gives none", minimum=1),
    "ATTACK.UNIVERSAL_CLIPS": Option(
        256, "training clips on which universal perturbations are fitted; 0: all", minimum=0
    ),
    "ATTACK.QUANTISE": Option(False, "only attacks that survive rounding to 8 bits count"),
    "ATTACK.TARGETS": Option(
        ["classifier"],
        "what is attacked: classifier (the probe, and a supervised model's own head), knn (the "
        "vote of EVALUATE.KNN_K neighbours), retrieval (the class of the nearest)",
    ),
    "ATTACK.INPUT": Option(
        "clip",
        "pixels that are changed: the central clip as the encoder takes it; its frames as decoded, "
        "before crop and resizing; the decoded frames of all test views, averaged over these",
        ("clip", "frames", "video"),
    ),
    "ATTACK.PREPROCESSING": Option(
        "none",
        "random preprocessing in front of the model, attacked in expectation (EOT)",
        ("none", "crop", "noise"),
    ),
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
    **ADVERSARIAL,
    **TRAINING,
    **EVALUATION,
    **ATTACKS,
    **CORRUPTIONS,
}
