"""Evaluation of the frozen encoder."""

from vidcsl.options.option import Option

EVALUATION: dict[str, Option] = {
    "EVALUATE.LINEAR": Option(True, "linear probe on frozen features"),
    "EVALUATE.KNN": Option(True, "nearest neighbours among the training videos"),
    "EVALUATE.KNN_K": Option(20, "how many neighbours vote", minimum=1),
    "EVALUATE.RETRIEVAL": Option(True, "test queries, training gallery: R@1, 5, 10, 20, 50"),
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
}
