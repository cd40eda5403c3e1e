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
import yaml
from common import Report, arguments, interleaved, peer
from torch import Tensor, nn

from vidcsl import builders
from vidcsl.config import load_config
from vidcsl.engine.checkpoint import load_newest
from vidcsl.engine.distributed import World
from vidcsl.engine.run_folder import RunFolder
from vidcsl.engine.weights import load_weights, weights_digest
from vidcsl.models.heads import Classifier
from vidcsl.options import OPTIONS
from vidcsl.report.summary import wilson_interval
from vidcsl.robustness.attacks import APGD, FGSM, PGD, AutoAttack, MomentumPGD, Square, attack
from vidcsl.robustness.threats import L1, L2, Linf, Threat
from vidcsl.stages.job import Job

BATCH = 16
PARTS = ("steps", "clips", "images", "autoattack")
PEERS = ("torchattacks", "foolbox", "adversarial-robustness-toolbox")
Attack = Callable[[nn.Module, Tensor, Tensor], Tensor]


def clock() -> float:
    """Seconds: of the processor's work for this process, which other work does not disturb.

    On a GPU, of the wall.
    """
    if not torch.cuda.is_available():
        return time.process_time()
    torch.cuda.synchronize()
    return time.perf_counter()


@dataclass(frozen=True)
class Case:
    """A trained classifier and the clips (or images) of its test list."""

    name: str
    model: nn.Module
    clips: Tensor
    labels: Tensor

    def take(self, most: int) -> "Case":
        """At most so many of the clips that are right when clean, evenly chosen."""
        with torch.no_grad():
            right = (self.model(self.clips).argmax(1) == self.labels).nonzero()[:, 0]
        chosen = right[torch.linspace(0, len(right) - 1, min(most, len(right))).round().long()]
        return Case(self.name, self.model, self.clips[chosen], self.labels[chosen])


def load_case(path: Path, keep: Path, device: torch.device) -> Case:
    """Encoder of a run's newest checkpoint, its linear probe, its central test clips.

    Features, probe and clips are kept in a folder of their own: the run's is only read.
    """
    folder = RunFolder(keep / path.parent.name / path.name)
    folder.create()
    world = World(rank=0, size=1, device=device)
    cfg = _config(path, folder.path)
    train, test = builders.build_lists(cfg, world)
    method = builders.build_method(cfg, train, world).eval()
    load_weights(method, load_newest(path / "checkpoints")["method"], source=str(path))
    stored = folder.path / f"case_{weights_digest(method.encoder)}.pt"
    if not stored.exists():
        job = Job(cfg, method, train, world, folder)
        probe = job.linear_probe(job.features(train, clips=cfg.EVALUATE.TRAIN_VIEWS, crops=1))
        batches = list(job.clips(test, range(len(test))))
        parts = ([batch.clips for batch in batches], [batch.labels for batch in batches])
        torch.save([*(torch.cat(part).cpu() for part in parts), probe.weight, probe.bias], stored)
    clips, labels, weight, bias = torch.load(stored, weights_only=True)
    head = nn.Linear(weight.shape[1], weight.shape[0])
    head.load_state_dict({"weight": weight, "bias": bias})
    model = Classifier(method.encoder, head).to(device).eval()
    return Case(path.parent.name, model, clips.to(device), labels.to(device))


def _config(path: Path, scratch: Path) -> Any:
    """The run's config, without options that this version no longer has."""
    document = yaml.safe_load((path / "config.yaml").read_text())
    known: dict[str, Any] = {}
    for section, values in document.items():
        pairs = values.items() if isinstance(values, dict) else [("", values)]
        for key, value in pairs:
            name = f"{section}.{key}".rstrip(".")
            if name in OPTIONS:
                known[name] = value
    (scratch / "config.yaml").write_text(yaml.safe_dump(known))
    return load_config(scratch / "config.yaml", ["OUTPUT_DIR", str(scratch / "run")])


class FrameNet(nn.Module):
    """A small image classifier, with its normalisation inside."""

    def __init__(self, classes: int, width: int = 16) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for before, after in ((3, width), (width, 2 * width), (2 * width, 4 * width)):
            layers += [nn.Conv2d(before, after, 3, padding=1, stride=2), nn.BatchNorm2d(after)]
            layers += [nn.ReLU(), nn.Conv2d(after, after, 3, padding=1), nn.ReLU()]
        self.body, self.head = nn.Sequential(*layers), nn.Linear(4 * width, classes)

    def forward(self, images: Tensor) -> Tensor:
        """Logits [N, classes] of images [N, 3, H, W] in [0, 1]."""
        return self.head(self.body((images - 0.45) / 0.25).mean(dim=(2, 3)))


def image_case(case: Case, epochs: int = 12) -> Case:
    """A FrameNet trained on frames of half of the clips; middle frames of the other half."""
    order = torch.randperm(len(case.clips), generator=torch.Generator().manual_seed(0))
    half = len(order) // 2
    frames = case.clips[order[:half]].transpose(1, 2).flatten(0, 1)
    labels = case.labels[order[:half]].repeat_interleave(case.clips.shape[2])
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = FrameNet(int(case.labels.max()) + 1).to(frames.device)
        optimiser = torch.optim.Adam(model.parameters(), lr=2e-3)
        for _ in range(epochs):
            for rows in torch.randperm(len(frames)).split(64):
                loss = nn.functional.cross_entropy(model(frames[rows]), labels[rows])
                optimiser.zero_grad()
                loss.backward()
                optimiser.step()
    held = order[half:]
    middle = case.clips[held, :, case.clips.shape[2] // 2]
    return Case("images", model.eval(), middle.contiguous(), case.labels[held])


def ours(threat: Threat, solver: Any, goal: str = "cross_entropy") -> Attack:
    return lambda model, clips, labels: attack(
        model, clips, labels, threat=threat, solver=solver, goal=goal
    )


def of_torchattacks(name: str, **options: Any) -> Attack | None:
    module = peer("torchattacks")
    if module is None:
        return None
    return lambda model, clips, labels: getattr(module, name)(model, **options)(clips, labels)


def of_foolbox(name: str, eps: float, **options: Any) -> Attack | None:
    module = peer("foolbox")
    if module is None:
        return None
    made = getattr(module.attacks, name)(**options)

    def run(model: nn.Module, clips: Tensor, labels: Tensor) -> Tensor:
        wrapped = module.PyTorchModel(model, bounds=(0, 1), device=clips.device)
        return made(wrapped, clips, labels, epsilons=eps)[1]

    return run


def of_art(name: str, **options: Any) -> Attack | None:
    evasion = peer("art.attacks.evasion", package="adversarial-robustness-toolbox")
    if evasion is None:
        return None
    estimators = peer("art.estimators.classification")

    def run(model: nn.Module, clips: Tensor, labels: Tensor) -> Tensor:
        wrapped = estimators.PyTorchClassifier(
            model,
            loss=nn.CrossEntropyLoss(),
            input_shape=tuple(clips.shape[1:]),
            nb_classes=int(model(clips[:1]).shape[1]),
            clip_values=(0.0, 1.0),
            device_type="gpu" if clips.is_cuda else "cpu",
        )
        made = getattr(evasion, name)(wrapped, batch_size=BATCH, verbose=False, **options)
        found = made.generate(clips.cpu().numpy(), y=labels.cpu().numpy())
        return torch.from_numpy(found).to(clips)

    return run


@dataclass
class Tally:
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


def compare(
    report: Report, case: Case, title: str, threat: Threat, attacks: Mapping[str, Attack | None]
) -> dict[str, tuple[float, float, float]]:
    """One attack by everyone who can run it, batch by batch in turns.

    All clips are right when clean: what stays right is survival.
    """
    tallies = {who: Tally() for who, made in attacks.items() if made is not None}
    for clips, labels in zip(case.clips.split(BATCH), case.labels.split(BATCH), strict=True):
        for who, tally in tallies.items():
            if not tally.fails:
                tally.add(case.model, attacks[who], clips, labels, threat)
    found: dict[str, tuple[float, float, float]] = {}
    for who, tally in tallies.items():
        if tally.fails:
            report.row(on=case.name, attack=title, by=who, fails=tally.fails)
            continue
        right = torch.cat(tally.right)
        share = float(right.float().mean())
        low, high = wilson_interval(share, len(right))
        report.row(
            on=case.name,
            attack=title,
            by=who,
            survival=share,
            interval=f"{low:.3f}-{high:.3f}",
            seconds=tally.seconds,
            over_budget=f"{max(tally.excess, 0):.1e}",
        )
        found[who] = (share, high, tally.seconds)
    _check_accuracy(report, f"{case.name} {title}", found)
    return found


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


def on_clips(report: Report, case: Case) -> None:
    """What runs on clips, by all: the same budgets, steps and step sizes."""
    for eps255 in (0.5, 4):
        eps, step = eps255 / 255, eps255 / 255 / 4
        found = compare(
            report,
            case,
            f"PGD-20 Linf {eps255:g}/255",
            Linf(eps),
            {
                "vidcsl": ours(Linf(eps), PGD(steps=20, step_size=step)),
                "torchattacks": of_torchattacks("PGD", eps=eps, alpha=step, steps=20),
                "foolbox": of_foolbox("LinfPGD", eps, abs_stepsize=step, steps=20),
                "ART": of_art(
                    "ProjectedGradientDescentPyTorch",
                    eps=eps,
                    eps_step=step,
                    max_iter=20,
                    num_random_init=1,
                ),
            },
        )
    _check_speed(report, f"{case.name} PGD-20 Linf 4/255", found, ("torchattacks", "foolbox"))
    compare(
        report,
        case,
        "PGD-20 L2 0.3",
        L2(0.3),
        {
            "vidcsl": ours(L2(0.3), PGD(steps=20, step_size=0.075)),
            "torchattacks": of_torchattacks("PGDL2", eps=0.3, alpha=0.075, steps=20),
            "foolbox": of_foolbox("L2PGD", 0.3, abs_stepsize=0.075, steps=20),
            "ART": of_art(
                "ProjectedGradientDescentPyTorch", norm=2, eps=0.3, eps_step=0.075, max_iter=20
            ),
        },
    )
    compare(
        report,
        case,
        "PGD-20 L1 8",
        L1(8.0),
        {
            "vidcsl": ours(L1(8.0), PGD(steps=20)),
            "foolbox": of_foolbox("SparseL1DescentAttack", 8.0, rel_stepsize=0.25, steps=20),
            "ART": of_art(
                "ProjectedGradientDescentPyTorch", norm=1, eps=8.0, eps_step=2.0, max_iter=20
            ),
        },
    )
    compare(
        report,
        case,
        "FGSM Linf 0.5/255",
        Linf(0.5 / 255),
        {
            "vidcsl": ours(Linf(0.5 / 255), FGSM()),
            "torchattacks": of_torchattacks("FGSM", eps=0.5 / 255),
            "foolbox": of_foolbox("LinfFastGradientAttack", 0.5 / 255),
        },
    )
    compare(
        report,
        case,
        "MI-FGSM-10 Linf 0.5/255",
        Linf(0.5 / 255),
        {
            "vidcsl": ours(Linf(0.5 / 255), MomentumPGD(steps=10)),
            "torchattacks": of_torchattacks("MIFGSM", eps=0.5 / 255, alpha=0.05 / 255, steps=10),
        },
    )
    compare(
        report,
        case,
        "APGD-20 Linf 0.5/255",
        Linf(0.5 / 255),
        {
            "vidcsl": ours(Linf(0.5 / 255), APGD(steps=20)),
            "torchattacks": of_torchattacks("APGD", eps=0.5 / 255, steps=20),
        },
    )


def on_images(report: Report, case: Case, queries: int) -> None:
    """What several peers run on images alone."""
    with torch.no_grad():
        right = case.model(case.clips).argmax(1) == case.labels
    report.row(on=case.name, clean=float(right.float().mean()), images=len(right))
    eps = 4 / 255
    threat = Linf(eps)
    compare(
        report,
        case,
        "MI-FGSM-10 Linf 4/255",
        threat,
        {
            "vidcsl": ours(threat, MomentumPGD(steps=10)),
            "torchattacks": of_torchattacks("MIFGSM", eps=eps, alpha=eps / 10, steps=10),
            "foolbox": of_foolbox(
                "LinfMomentumIterativeFastGradientMethod", eps, abs_stepsize=eps / 10, steps=10
            ),
        },
    )
    for goal in ("cross_entropy", "dlr"):
        loss = {"cross_entropy": "ce", "dlr": "dlr"}[goal]
        compare(
            report,
            case,
            f"APGD-100 {loss} Linf 4/255",
            threat,
            {
                "vidcsl": ours(threat, APGD(), goal),
                "torchattacks": of_torchattacks("APGD", eps=eps, steps=100, loss=loss),
            },
        )
    compare(
        report,
        case,
        "APGD-100 ce L2 0.5",
        L2(0.5),
        {
            "vidcsl": ours(L2(0.5), APGD()),
            "torchattacks": of_torchattacks("APGD", norm="L2", eps=0.5, steps=100),
        },
    )
    compare(
        report,
        case,
        f"Square-{queries} Linf 4/255",
        threat,
        {
            "vidcsl": ours(threat, Square(queries=queries), "margin"),
            "torchattacks": of_torchattacks("Square", eps=eps, n_queries=queries),
            "ART": of_art("SquareAttack", eps=eps, max_iter=queries, nb_restarts=1),
        },
    )


def autoattack(report: Report, case: Case) -> None:
    """The standard version, as far as torchattacks runs it: on images."""
    classes = int(case.labels.max()) + 1
    for norm, budget in (("Linf", Linf(8 / 255)), ("L2", L2(1.0))):
        found = compare(
            report,
            case,
            f"AutoAttack {norm} {'8/255' if norm == 'Linf' else '1'}",
            budget,
            {
                "vidcsl": ours(budget, AutoAttack()),
                "torchattacks": of_torchattacks(
                    "AutoAttack", norm=norm, eps=budget.eps, n_classes=classes
                ),
            },
        )
        _check_speed(report, f"AutoAttack {norm} on images", found, ("torchattacks",))


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
        with torch.no_grad():
            right = case.model(case.clips).argmax(1) == case.labels
        report.row(on=case.name, clean=float(right.float().mean()), clips=len(right))
    if "steps" in args.parts:
        step_cost(report, cases[0])
    for case in cases if "clips" in args.parts else ():
        on_clips(report, case.take(args.clips))
    if {"images", "autoattack"} & set(args.parts):
        images = image_case(cases[0]).take(args.images)
    if "autoattack" in args.parts:
        autoattack(report, images)
    if "images" in args.parts:
        on_images(report, images, args.queries)
    report.finish(args.json)


if __name__ == "__main__":
    main()
