"""How right a teacher is where labels are known: before any training."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from vidcsl.data.lists import VideoList
from vidcsl.seeding import torch_generator
from vidcsl.teachers.neighbours import Teacher, expected_by_chance, flagged

SHARES = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.3)
MOST_ANCHORS = 4096  # of a longer list a sample is measured, against all of it
_BLOCK = 256


@dataclass(frozen=True)
class Quality:
    """Pairs of one source video are left out: they are known without a teacher.

    Attributes:
        flagged: fraction of the pairs that are flagged.
        chance, precision, recall: of all pairs, of the flagged (of both those of known labels), of
            the false negatives; None where no labels are known.
        curve: (share, precision, recall) of each video's nearest fraction of the list.
        by_class: flagged fraction, precision and recall of each class.
        counts: how many videos of the list each anchor flags, by its place in the list.
        expected_wrong: which fraction of the videos that pass an anchor's threshold would do so by
            chance, see `expected_by_chance`; by its place in the list, those that flag any.
        examples: (anchor, candidate, similarity, right) of flagged pairs, the surest first.
    """

    flagged: float
    chance: float | None
    precision: float | None
    recall: float | None
    curve: list[tuple[float, float, float]]
    by_class: dict[str, dict[str, float | None]]
    counts: dict[int, int]
    expected_wrong: dict[int, float]
    examples: list[tuple[int, int, float, bool]] = field(repr=False)

    def summary(self) -> dict[str, Any]:
        """What a JSON file holds of it."""
        names = ("share", "precision", "recall")
        return {
            "flagged": self.flagged,
            "chance": self.chance,
            "precision": self.precision,
            "recall": self.recall,
            "curve": [dict(zip(names, point, strict=True)) for point in self.curve],
            "by_class": self.by_class,
        }


def measure(
    teacher: Teacher,
    least: Tensor,
    videos: VideoList,
    *,
    agreement: str,
    examples: int = 6,
    device: torch.device | str = "cpu",
) -> Quality:
    """Precision and recall of what is flagged, and of each video's nearest fraction.

    Args:
        teacher: of the list.
        least: the thresholds `[N]`, see `thresholds`.
        videos: the list.
        agreement: see `flagged`.
        examples: right pairs and as many wrong ones that are kept; a video is in one of a kind.
        device: where to compute.
    """
    count = len(videos)
    labels = torch.tensor([video.label for video in videos.videos])
    groups = torch.tensor([video.group for video in videos.videos])
    anchors = torch.arange(count)
    if count > MOST_ANCHORS:
        drawn = torch.randperm(count, generator=torch_generator("anchors"))[:MOST_ANCHORS]
        anchors = drawn.sort().values
    everyone = teacher.rows(torch.arange(count).to(device))
    known = everyone.any(dim=1).cpu()
    names = ("pairs", "judged", "found", "labelled", "right", "false")
    sums = {name: torch.zeros(count) for name in names}
    nearest = torch.zeros(len(SHARES), 2)  # flagged with two labels, right
    expected_wrong: dict[int, float] = {}
    best: dict[bool, list[tuple[int, int, float, bool]]] = {True: [], False: []}
    for block in anchors.split(_BLOCK):
        similarities = (everyone[block.to(device)] @ everyone.T).cpu()
        of_group = (groups[block, None] == groups[None]) & (groups[block, None] >= 0)
        pairs = ~of_group & (block[:, None] != torch.arange(count)[None])
        judged = pairs & (labels[block, None] >= 0) & (labels[None] >= 0)
        same = judged & (labels[block, None] == labels[None])
        heard = pairs & known[block, None] & known[None]
        found = heard & flagged(similarities, least[block], least, agreement=agreement)
        for name, mask in zip(
            sums, (pairs, judged, found, found & judged, found & same, same), strict=True
        ):
            sums[name][block] = mask.sum(dim=1).float()
        falling, order = similarities.masked_fill(~heard, -torch.inf).sort(dim=1, descending=True)
        silent = ~heard.any(dim=1)
        by_chance = expected_by_chance(
            falling.masked_fill(silent[:, None], 0),
            heard.sum(dim=1).clamp(min=1),
            least[block, None],
        )
        passing = (falling >= least[block, None]).sum(dim=1)
        for anchor, chances, reached in zip(block.tolist(), by_chance[:, 0], passing, strict=True):
            if reached:
                expected_wrong[anchor] = min(1.0, float(chances / reached))
        ranked, right = ((mask & heard).gather(1, order).cumsum(1) for mask in (judged, same))
        for place, share in enumerate(SHARES):
            last = (share * pairs.sum(dim=1)).round().long().clamp(min=1) - 1
            for column, totals in enumerate((ranked, right)):
                nearest[place, column] += totals.gather(1, last[:, None]).sum()
        # Without labels nobody knows which are right: then all are of the second kind.
        wrong = found & (judged & ~same if (labels >= 0).any() else True)
        for kind, mask in ((True, found & same), (False, wrong)):
            best[kind] = _surest(best[kind], similarities, mask, block, kind, most=examples)
    return Quality(
        flagged=_ratio(sums["found"], sums["pairs"]) or 0.0,
        chance=_ratio(sums["false"], sums["judged"]),
        precision=_ratio(sums["right"], sums["labelled"]),
        recall=_ratio(sums["right"], sums["false"]),
        curve=[
            (share, float(right / total), float(right / sums["false"].sum()))
            for share, (total, right) in zip(SHARES, nearest, strict=True)
            if total and sums["false"].any()
        ],
        by_class={
            name: {
                "flagged": _ratio(sums["found"][labels == label], sums["pairs"][labels == label]),
                "precision": _ratio(
                    sums["right"][labels == label], sums["labelled"][labels == label]
                ),
                "recall": _ratio(sums["right"][labels == label], sums["false"][labels == label]),
            }
            for label, name in enumerate(videos.classes)
        },
        counts={int(anchor): int(sums["found"][anchor]) for anchor in anchors},
        expected_wrong=expected_wrong,
        examples=[*best[True], *best[False]],
    )


def _ratio(part: Tensor, whole: Tensor) -> float | None:
    return float(part.sum() / whole.sum()) if whole.sum() else None


def _surest(
    before: Sequence[tuple[int, int, float, bool]],
    similarities: Tensor,
    mask: Tensor,
    block: Tensor,
    right: bool,
    *,
    most: int,
) -> list[tuple[int, int, float, bool]]:
    """The most alike of what was kept before and of this block, a video in one pair alone."""
    rows, columns = mask.nonzero(as_tuple=True)
    values = similarities[rows, columns]
    # More than are shown, as one video may be in many of them.
    top = values.argsort(descending=True)[: 50 * most].tolist()
    pairs = [(int(block[rows[k]]), int(columns[k]), float(values[k]), right) for k in top]
    kept: list[tuple[int, int, float, bool]] = []
    seen: set[int] = set()
    for pair in sorted([*before, *pairs], key=lambda p: (-p[2], p[0], p[1])):
        if len(kept) < most and not seen & {pair[0], pair[1]}:
            kept.append(pair)
            seen |= {pair[0], pair[1]}
    return kept
