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
    "ATTACK.STEPS": Option(20, "steps of gradient attacks that say no other", minimum=1),
    "ATTACK.RESTARTS": Option(1, "their random starts", minimum=1),
    "ATTACK.QUANTISE": Option(False, "only attacks that survive rounding to 8 bits count"),
    "ATTACK.MAX_CLIPS": Option(0, "test videos attacked, evenly chosen; 0: all", minimum=0),
}
