"""Attacks against torchattacks, foolbox and the Adversarial Robustness Toolbox (ART), side by side.

    python benchmarks/attacks.py runs/ucf101_10_supervised/seed0 runs/ucf101_10_simclr/seed0

Each run folder gives an encoder trained on real videos; its linear probe is fitted here as an
evaluation does it. On test clips that are right when clean: what a gradient step costs (part
`steps`), survival and time at the same budgets, steps and step sizes (`clips`). The same for a
small image classifier trained here on single frames, as several peers' attacks fail on clips
(`images`, `autoattack`).
"""

import argparse
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from attack_cases import Case, image_case, load_case
from attack_contests import (
    BATCH,
    PEERS,
    Attack,
    Contest,
    autoattack_contests,
    clip_contests,
    image_contests,
    ours,
)
from common import Report, arguments, interleaved
from torch import Tensor, nn

from vidcsl.evaluation.statistics import wilson_interval
from vidcsl.robustness.attacks import APGD, PGD
from vidcsl.robustness.threats import L2, Linf, Threat

PARTS = ("steps", "clips", "images", "autoattack")


def clock() -> float:
    """Seconds: of the processor's work for this process, which other work does not disturb.

    On a GPU, of the wall.
    """
    if not torch.cuda.is_available():
        return time.process_time()
    torch.cuda.synchronize()
    return time.perf_counter()


@dataclass
class MetricAccumulator:
    """What one attack did: which clips stay right, its seconds, by how much it broke the budget."""

    right: list[Tensor] = field(default_factory=list)
    seconds: float = 0.0
    excess: float = 0.0
    fails: str = ""

    def add(self, model: nn.Module, made: Attack, clips: Tensor, labels: Tensor, threat: Threat):
        """Attack one batch."""
        started = clock()
        try:
            found = made(model, clips, labels).detach()
        except Exception as error:  # what a peer cannot run is part of the table
            self.fails = f"{type(error).__name__}: {str(error).splitlines()[0][:60]}"
            return
        self.seconds += clock() - started
        with torch.no_grad():
            self.right.append(model(found).argmax(1) == labels)
        relative = (threat.size(found - clips) / threat.eps).max()
        self.excess = max(self.excess, float(relative) - 1)


def compare(report: Report, case: Case, contest: Contest) -> None:
    """Batch by batch in turns. All clips are right when clean: what stays right is survival."""
    attacks = {who: made for who, made in contest.attacks.items() if made is not None}
    accumulators = {who: MetricAccumulator() for who in attacks}
    for clips, labels in zip(case.clips.split(BATCH), case.labels.split(BATCH), strict=True):
        for who, accumulator in accumulators.items():
            if not accumulator.fails:
                accumulator.add(case.model, attacks[who], clips, labels, contest.threat)
    found: dict[str, tuple[float, float, float]] = {}
    for who, accumulator in accumulators.items():
        if accumulator.fails:
            report.row(on=case.name, attack=contest.title, by=who, fails=accumulator.fails)
            continue
        right = torch.cat(accumulator.right)
        share = float(right.float().mean())
        low, high = wilson_interval(int(right.sum()), len(right))
        report.row(
            on=case.name,
            attack=contest.title,
            by=who,
            survival=share,
            interval=f"{low:.3f}-{high:.3f}",
            seconds=accumulator.seconds,
            over_budget=f"{max(accumulator.excess, 0):.1e}",
        )
        found[who] = (share, high, accumulator.seconds)
    title = f"{case.name} {contest.title}"
    _check_accuracy(report, title, found)
    _check_speed(report, title, found, contest.to_outrun)


def _check_accuracy(report: Report, title: str, found: Mapping[str, tuple[float, ...]]) -> None:
    """Ours is equal or lower than the best peer's, within the best peer's interval."""
    peers = [value for who, value in found.items() if who != "vidcsl"]
    if "vidcsl" in found and peers:
        best = min(peers)
        report.target(
            f"survival, {title}",
            measured=found["vidcsl"][0],
            wanted=f"<= {best[0]:.4g} (up to {best[1]:.4g})",
            met=found["vidcsl"][0] <= best[1],
        )


def _check_speed(
    report: Report, title: str, found: Mapping[str, tuple[float, ...]], names: tuple[str, ...]
) -> None:
    for name in names:
        if name in found and "vidcsl" in found:
            ratio = found[name][2] / found["vidcsl"][2]
            report.target(
                f"speed, {title} against {name}", measured=ratio, wanted=">= 3", met=ratio >= 3
            )


def step_cost(report: Report, case: Case) -> None:
    """A gradient step of ours against one forward and input-gradient backward."""
    clips, labels = case.clips[:BATCH], case.labels[:BATCH]
    steps = 4

    def bare() -> None:
        for parameter in case.model.parameters():
            parameter.requires_grad_(False)
        for _ in range(steps):
            inputs = clips.clone().requires_grad_(True)
            loss = nn.functional.cross_entropy(case.model(inputs), labels, reduction="sum")
            torch.autograd.grad(loss, inputs)

    def stepping(kind: type, threat: Threat, count: int) -> Callable[[], Any]:
        solver = kind(steps=count, stop_when_fooled=False)
        return lambda: ours(threat, solver)(case.model, clips, labels)

    kinds = {
        "PGD Linf": (PGD, Linf(1 / 255)),
        "PGD L2": (PGD, L2(1.0)),
        "APGD Linf": (APGD, Linf(1 / 255)),
    }
    timed: dict[str, Callable[[], Any]] = {"bare": bare}
    for name, (kind, threat) in kinds.items():
        timed[f"{name} 1"] = stepping(kind, threat, 1)
        timed[f"{name} all"] = stepping(kind, threat, steps + 1)
    times = interleaved(timed, repeats=5, clock=clock)
    one = times["bare"].median / steps
    for name in kinds:
        # Starts, clean and last looks, and checks are in both, and so in neither.
        step = (times[f"{name} all"].median - times[f"{name} 1"].median) / steps
        report.row(on=case.name, step=name, milliseconds=1e3 * step, bare=1e3 * one)
        report.target(
            f"step cost, {name}", measured=step / one, wanted="<= 1.05", met=step / one <= 1.05
        )


def on_images(report: Report, case: Case, args: argparse.Namespace) -> None:
    """What needs images, on those that are right when clean."""
    report.row(on=case.name, clean=float(case.right().float().mean()), images=len(case.clips))
    contests: list[Contest] = []
    if "autoattack" in args.parts:
        contests += autoattack_contests(int(case.labels.max()) + 1)
    if "images" in args.parts:
        contests += image_contests(args.queries)
    chosen = case.take(args.images)
    for contest in contests:
        compare(report, chosen, contest)


def main() -> None:
    parser = arguments(str(__doc__).split("\n", 1)[0])
    parser.add_argument("runs", nargs="+", type=Path, help="run folders with checkpoints")
    parser.add_argument("--keep", type=Path, default=Path("runs/attacks_benchmark"))
    parser.add_argument("--parts", nargs="+", default=PARTS, choices=PARTS)
    parser.add_argument("--clips", type=int, default=48, help="test clips of each run")
    parser.add_argument("--images", type=int, default=48, help="test images")
    parser.add_argument("--queries", type=int, default=1000, help="of Square on its own")
    run(parser.parse_args())


def run(args: argparse.Namespace) -> None:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    report = Report("attacks", PEERS)
    cases = [load_case(path, args.keep, device) for path in args.runs]
    for case in cases:
        report.row(on=case.name, clean=float(case.right().float().mean()), clips=len(case.clips))
    if "steps" in args.parts:
        step_cost(report, cases[0])
    for case in cases if "clips" in args.parts else ():
        chosen = case.take(args.clips)
        for contest in clip_contests():
            compare(report, chosen, contest)
    if {"images", "autoattack"} & set(args.parts):
        on_images(report, image_case(cases[0]), args)
    report.finish(args.json)


if __name__ == "__main__":
    main()
