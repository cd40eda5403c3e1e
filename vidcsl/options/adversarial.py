"""The attack inside a training step, and what only adversarial methods take."""

from vidcsl.options.option import Option

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
