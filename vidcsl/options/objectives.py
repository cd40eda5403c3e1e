"""What is learned, and what is done about false negatives."""

from vidcsl.options.option import Option

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
        "similar share by all views seen so far",
        ("none", "labels", "known_groups", "adaptive", "fnc", "clusters", "glofnd", "memory"),
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
        "all but labels, known_groups: share of training before removal starts",
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
        "adaptive, memory: largest share of the negatives removed; glofnd: share to cut off",
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
