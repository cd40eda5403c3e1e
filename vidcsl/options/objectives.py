"""What is learned, and what is done about false negatives."""

from vidcsl.options.option import Option

OBJECTIVES: dict[str, Option] = {
    "METHOD.NAME": Option("simclr", "pretraining method", ("simclr", "supcon", "supervised")),
    "METHOD.TEMPERATURE": Option(0.1, "temperature of the contrastive losses", minimum=1e-4),
    "METHOD.PROJECTOR_LAYERS": Option(2, "layers of the projector; 0: none", minimum=0),
    "METHOD.PROJECTOR_HIDDEN": Option(512, "width of its hidden layers", minimum=1),
    "METHOD.PROJECTOR_DIM": Option(128, "size of the embedding", minimum=1),
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
}
