"""Optimisation and checkpoints."""

from vidcsl.options.option import Option

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
