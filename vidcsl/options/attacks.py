"""Attacks on the trained model."""

from vidcsl.options.option import Option

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
