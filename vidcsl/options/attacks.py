"""Attacks on the trained model."""

from vidcsl.options.option import Option

ATTACKS: dict[str, Option] = {
    "ATTACK.THREATS": Option(["linf"], "norms that are attacked: linf, l2; empty: no attack"),
    "ATTACK.EPS_LINF": Option(
        [0.1, 0.25, 0.5, 0.75, 1.0, 2.0, 4.0, 8.0], "Linf budgets, in 1/255 of the pixel range"
    ),
    "ATTACK.EPS_L2": Option(
        [0.1, 0.25, 0.5, 1.0, 2.0, 4.0], "L2 budgets over the whole clip, pixels in [0, 1]"
    ),
    "ATTACK.STEPS": Option(20, "steps of PGD", minimum=1),
    "ATTACK.RESTARTS": Option(1, "random starts of PGD", minimum=1),
    "ATTACK.FRAMES": Option(
        "all", "frames that may be changed: all, first:k, random:k, or indices such as 0,3,5"
    ),
    "ATTACK.MAX_CLIPS": Option(0, "test videos attacked, evenly chosen; 0: all", minimum=0),
}
