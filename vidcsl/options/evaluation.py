"""Evaluation of the frozen encoder."""

from vidcsl.options.option import Option

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
