"""Every pair of solver and threat on a linear model, whose best perturbation is known.

`python -m tests.robustness.attacks.test_pairs` prints the table of docs/attacks.md.
"""

from pathlib import Path

import pytest
import torch
from torch import nn

from tests.robustness.attacks.models import Linear, predict, random_clips, seeded
from vidcsl.errors import UserError
from vidcsl.robustness.attacks import APGD, FAB, SOLVERS, AutoAttack, attack
from vidcsl.robustness.attacks.goals import margin
from vidcsl.robustness.attacks.specs import parse_attack
from vidcsl.robustness.threats import L1, L2, THREATS, Flicker, FrameSparse, Linf

# By gradients.
MADE = {
    "fgsm": {},
    "pgd": {"steps": 60},
    "mifgsm": {"steps": 20},
    "apgd": {"steps": 100},
    "adam": {},
}
# By outputs alone, as they are by default. They promise no more than to beat noise.
SEARCHES = {"square": {}, "random_search": {}, "random_noise": {}}
PAGE = Path(__file__).parents[3] / "docs" / "attacks.md"
THREATS_TRIED = {
    "linf": Linf(0.05),
    "l2": L2(0.3),
    "l2 a frame": L2(0.2, over="frame"),
    "l1": L1(4.0),
    "l1 a frame": L1(1.0, over="frame"),
    "l21": FrameSparse(0.4),
    "flicker": Flicker(0.1),
    "two frames": L2(0.3, frames="first:2"),
}


def given():
    """Six clips of which 30 % of the pixels stand at black or white, and the margin's slope."""
    generator = torch.Generator().manual_seed(0)
    clips = 0.2 + 0.6 * random_clips()
    held = torch.rand(clips.shape, generator=generator)
    clips = torch.where(held < 0.15, 0.0, torch.where(held > 0.85, 1.0, clips))
    model = seeded(Linear, clips[0].numel(), 2)
    labels = predict(model, clips)
    weights = model.head.weight.detach()
    return model, clips, labels, (weights[1 - labels] - weights[labels]).view_as(clips)


def by_the_largest(slope, room, eps):
    """The most that rows `[G, n]` gain where the numbers with the largest slopes go all the way."""
    felt, order = slope.abs().sort(dim=1, descending=True)
    room = room.gather(1, order)
    taken = torch.minimum(room, (eps - (room.cumsum(1) - room)).clamp_min(0))
    return (felt * taken).sum(1)


def best_gain(name, clips, slope):
    """The largest rise of the margin for each clip; the budgets leave the other pixels inside."""
    threat = THREATS_TRIED[name]
    room = torch.where(slope > 0, 1 - clips, clips)
    free = torch.where(room > 0, slope, 0.0)
    of_frames = free.transpose(1, 2).flatten(2)  # [N, T, n]
    if name == "linf":
        return threat.eps * free.abs().flatten(1).sum(1)
    if name == "l2":
        return threat.eps * free.flatten(1).norm(dim=1)
    if name == "two frames":
        return threat.eps * of_frames[:, :2].flatten(1).norm(dim=1)
    if name == "l2 a frame":
        return threat.eps * of_frames.norm(dim=2).sum(1)
    if name == "l21":
        return threat.eps * of_frames.norm(dim=2).amax(1)
    if name == "l1":
        return by_the_largest(slope.flatten(1), room.flatten(1), threat.eps)
    if name == "l1 a frame":
        rows = [each.transpose(1, 2).flatten(0, 1).flatten(1) for each in (slope, room)]
        return by_the_largest(*rows, threat.eps).view(len(clips), -1).sum(1)
    ends = [
        (slope * ((clips + end).clamp(0, 1) - clips)).sum((3, 4))
        for end in (threat.eps, 0, -threat.eps)
    ]
    return torch.stack(ends).amax(0).sum((1, 2))  # flicker


def share(solver, name):
    """Of the best rise of the margin, what an attack reaches on the worst clip; None: refused."""
    model, clips, labels, slope = given()
    options = {**MADE, **SEARCHES}[solver]
    if solver != "random_noise":
        options = {**options, "stop_when_fooled": False}
    made = SOLVERS[solver](**options)
    threat = THREATS_TRIED[name]
    try:
        found = attack(model, clips, labels, threat=threat, goal="margin", solver=made)
    except UserError:
        return None
    with torch.no_grad():
        gained = margin(model(found), labels) - margin(model(clips), labels)
    shares = gained / best_gain(name, clips, slope)
    assert (shares <= 1 + 1e-6).all()
    return float(shares.min())


def written(value):
    """A cell of the table, rounded down: .999 is no 1.00."""
    return "refused" if value is None else f"{int(100 * value) / 100:.2f}"


def table():
    """The table's rows, as lists of cells."""
    rows = [["", *THREATS_TRIED]]
    for solver in (*MADE, *SEARCHES):
        rows.append([f"`{solver}`", *(written(share(solver, name)) for name in THREATS_TRIED)])
    return rows


def in_the_docs():
    """The table as the page has it."""
    lines = PAGE.read_text().split("## Solvers")[1].splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith("| | linf |"))
    rows = lines[start : start + 2 + len(MADE) + len(SEARCHES)]
    cells = [[cell.strip() for cell in row.split("|")[1:-1]] for row in rows]
    return [cells[0], *cells[2:]]


@pytest.mark.parametrize("name", list(THREATS_TRIED))
@pytest.mark.parametrize("solver", list(MADE))
def test_a_solver_reaches_the_optimum_or_is_refused(solver, name):
    found = share(solver, name)
    assert (found is None) == (solver == "adam" and name not in ("linf", "flicker"))
    assert found is None or found >= 0.99


@pytest.mark.parametrize("solver", [*MADE, "random_search", "random_noise"])
def test_the_docs_have_the_share_of_every_pair(solver):
    """Those of square, which takes long, are as the table was printed."""
    head, *rows = in_the_docs()
    assert [row[0].strip("`") for row in rows] == [*MADE, *SEARCHES]
    (row,) = (row for row in rows if row[0] == f"`{solver}`")
    for name, cell in zip(head[1:], row[1:], strict=True):
        found = share(solver, name)
        assert (cell == "refused") == (found is None)
        assert found is None or float(cell) == pytest.approx(found, abs=0.011)


def shortest_way(kind, slope, room, needed):
    """The least eps that raises the margin of a clip by `needed`: by bisection."""
    felt = slope.abs()

    def moved(far):
        return torch.minimum(far * (felt if kind is L2 else torch.ones_like(felt)), room)

    def gain(far):
        if kind is L1:
            return by_the_largest(slope[None], room[None], far)[0]
        return (felt * moved(far)).sum()

    low, high = 0.0, 1e4
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (low, middle) if gain(middle) >= needed else (middle, high)
    return {Linf: high, L2: float(moved(high).norm()), L1: high}[kind]


@pytest.mark.parametrize("kind", [Linf, L2, L1])
def test_fab_crosses_within_a_hundredth_of_the_shortest_way(kind):
    model, clips, labels, slope = given()
    with torch.no_grad():
        needed = -margin(model(clips), labels)
    room = torch.where(slope > 0, 1 - clips, clips)
    for row in range(len(clips)):
        eps = shortest_way(kind, slope[row].flatten(), room[row].flatten(), needed[row])
        clip, label = clips[row : row + 1], labels[row : row + 1]
        for factor, fooled in ((1 / 0.99, True), (0.99, False)):
            solver = FAB(steps=40)
            found = attack(
                model, clip, label, threat=kind(eps * factor), goal="margin", solver=solver
            )
            assert bool(predict(model, found) != label) is fooled


def test_every_threat_is_tried_and_every_solver_is_tried_or_searches_by_outputs():
    tried = {type(threat) for threat in THREATS_TRIED.values()}
    assert tried == set(THREATS.values())
    elsewhere = {"fab", "autoattack", "square", "random_noise", "random_search"}
    assert {*MADE} | elsewhere == set(SOLVERS)


@pytest.mark.parametrize("spec", ["adam/l2", "adam/l1", "square/l21", "square/l2:over=frame"])
def test_a_refused_pair_is_refused_when_the_config_is_read(spec):
    with pytest.raises(UserError, match=f"attack '{spec}': {spec.partition('/')[0]} supports"):
        parse_attack(spec, budgets={"l2": [1.0], "l1": [1.0], "l21": [1.0]}, defaults={})


class Classes(nn.Module):
    """The second class has the larger logit, but the third's boundary is nearer."""

    def forward(self, clips):
        step = (clips - 0.5).flatten(1).mean(1)
        return torch.stack([0 * step, 0.1 * step - 0.01, 10 * step - 0.2], dim=1)


@pytest.mark.parametrize("kind", [Linf, L2, L1])
def test_fab_finds_the_nearest_boundary_not_that_of_the_largest_logit(kind):
    clips = torch.full((2, 3, 2, 3, 3), 0.5, dtype=torch.float64)
    numbers = clips[0].numel()
    # The third class wins from a mean change of 0.02 on.
    distance = {Linf: 0.02, L2: 0.02 * numbers**0.5, L1: 0.02 * numbers}[kind]
    for eps, fooled in ((1.1 * distance, True), (0.9 * distance, False)):
        labels = torch.zeros(2, dtype=torch.long)
        model, solver = Classes().eval(), FAB(steps=3)
        found = attack(model, clips, labels, threat=kind(eps), goal="margin", solver=solver)
        assert ((predict(model, found) != 0) == fooled).all()


def test_apgd_under_l1_narrows_its_ball_as_published():
    model, clips, labels, _ = given()
    sizes = []

    def watched(clip):
        sizes.append(float((clip.detach() - clips).abs().flatten(1).sum(1).max()))
        return model(clip)

    solver = APGD(steps=20, stop_when_fooled=False)
    attack(watched, clips, labels, threat=L1(4.0), goal="margin", solver=solver)
    assert max(sizes) == pytest.approx(12.0, rel=1e-3)
    assert max(sizes[-9:]) == pytest.approx(4.0, rel=1e-3)  # 40 per cent of the steps
    later = [size for size in sizes if size < 8.1]
    assert max(later) == pytest.approx(8.0, rel=1e-2)


def test_autoattack_under_l1_starts_five_times_and_aims_at_five_classes(monkeypatch):
    seen = []

    def watched(self, problem):
        seen.append((self.restarts, getattr(problem.goal, "rank", 0)))
        return problem.zero()

    monkeypatch.setattr(APGD, "__call__", watched)
    model, clips = seeded(Linear, 432, 12), random_clips()
    labels = predict(model, clips)
    for threat, targets in ((L1(0.01), 5), (L2(1e-4), 9)):
        seen.clear()
        solver = AutoAttack(steps=2, queries=1)
        attack(model, clips, labels, threat=threat, solver=solver)
        assert seen[0] == (5 if targets == 5 else 1, 0)
        assert len(seen) == 1 + targets


if __name__ == "__main__":
    head, *rows = table()
    for row in (head, ["---"] * len(head), *rows):
        print("| " + " | ".join(row).strip() + " |")
