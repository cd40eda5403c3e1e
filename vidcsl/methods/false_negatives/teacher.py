"""Ours: a teacher that knew the videos before the training points out the false negatives."""

import torch
from torch import Tensor

from vidcsl.methods.false_negatives.detector import DETECTORS, Detector, Samples
from vidcsl.registry import Option
from vidcsl.teachers.neighbours import RULES, Teacher, flagged, thresholds

# A pair of the nearest stands exactly on its video's threshold, which was computed by a product of
# other matrices: without this, rounding would decide.
_ROUNDING = 1e-4
_SURE = 0.2  # of what may be eliminated, so much may be attracted


@DETECTORS.register(
    "teacher",
    "the videos that a teacher finds alike, from the first step on (ours)",
    TEACHER=Option(
        "motion",
        "teacher: what says which videos are alike: motion, a descriptor of optical flow that is "
        "computed once; a file of features (.npz, .npy, .safetensors); the checkpoint of a run "
        "with the detector memory; FORMAT:PATH of an encoder; or several, joined by +",
        path=True,
    ),
    RULE=Option(
        "auto",
        "teacher: which videos are alike: auto, those that stand out from the other similarities "
        "of a video; share, its nearest CEILING of the list; mutual, videos that are among the "
        "nearest CEILING of each other",
        RULES,
    ),
    FALSE_DISCOVERY_RATE=Option(
        0.5,
        "teacher, rule auto: expected fraction of wrong pairs among the flagged; a fifth of it "
        "among those that are attracted",
        minimum=0.01,
        maximum=1,
    ),
)
class TeacherNeighbours(Detector):
    """Flags the candidates that a teacher takes for false negatives, from the first step on.

    Nothing is learned: which pairs are flagged depends on the two videos alone, so that it can be
    looked at before training. Clips of the anchor's source video are flagged too where groups are
    known: they are free, and right.

    Args:
        rule: see `thresholds`. With "share" the anchor's threshold decides, with "mutual" both have
            to be passed. With "auto" either is enough.
        ceiling: "share", "mutual": the share of the training list that is near each video.
        false_discovery_rate: "auto": expected share of wrong pairs.
        treatment: what becomes of the pairs. A negative that is left out by mistake is hardly
            missed, but a wrong positive does harm: with "attract" the rule "auto" aims at a fifth
            of the rate, and both thresholds are to be passed. With "attract_sure" more is flagged
            than attracted: the surest pairs are those that each of the two videos would flag by a
            fifth of the rate or ceiling.
    """

    least: Tensor
    least_sure: Tensor

    def __init__(
        self,
        *,
        rule: str = "auto",
        ceiling: float = 0.1,
        false_discovery_rate: float = 0.5,
        treatment: str = "eliminate",
    ) -> None:
        super().__init__()
        self.rule, self.ceiling, self.rate = rule, ceiling, false_discovery_rate
        self.agreement = {"share": "anchor", "mutual": "both", "auto": "either"}[rule]
        self.splits = treatment == "attract_sure"
        if rule == "auto" and treatment == "attract":
            self.agreement, self.rate = "both", self.rate * _SURE
        self.teacher: Teacher | None = None
        # Not persistent: they follow from the teacher, and a checkpoint fits without it.
        self.register_buffer("least", torch.empty(0), persistent=False)
        self.register_buffer("least_sure", torch.empty(0), persistent=False)

    def attach(self, teacher: Teacher) -> None:
        """Learn from a teacher of the training list; a method that is only evaluated has none."""
        device = self.least.device
        found = [
            thresholds(
                teacher,
                rule=self.rule,
                share=self.ceiling * part,
                rate=self.rate * part,
                device=device,
            )
            for part in ((1.0, _SURE) if self.splits else (1.0,))
        ]
        self.teacher = teacher
        self.least, self.least_sure = (
            (each - _ROUNDING).to(device) for each in (found[0], found[-1])
        )

    def forward(
        self,
        scores: Tensor,
        negatives: Tensor,
        anchors: Samples,
        candidates: Samples,
        progress: float,
    ) -> Tensor:
        """Bool `[b, M]`; videos of which the teacher knows nothing are flagged by group alone."""
        pairs = self._alike(anchors, candidates, self.least, self.agreement)
        return (pairs | anchors.same(candidates, "groups")) & negatives

    def sure(self, flagged: Tensor, anchors: Samples, candidates: Samples) -> Tensor:
        """Bool `[b, M]`: those that pass the stricter thresholds; known groups always do."""
        if not self.splits:
            return flagged
        pairs = self._alike(anchors, candidates, self.least_sure, "both")
        return flagged & (pairs | anchors.same(candidates, "groups"))

    @torch.compiler.disable  # a memory-mapped file is read
    def _alike(
        self, anchors: Samples, candidates: Samples, least: Tensor, agreement: str
    ) -> Tensor:
        if self.teacher is None:
            raise RuntimeError("attach a teacher before the first step")
        rows, row_least, rows_known = self._of(anchors.videos, least)
        columns, column_least, columns_known = self._of(candidates.videos, least)
        alike = flagged(rows @ columns.T, row_least, column_least, agreement=agreement)
        return alike & rows_known[:, None] & columns_known[None]

    def _of(self, videos: Tensor, least: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Vectors, thresholds, and whether there are any, of rows that may be of one video."""
        assert self.teacher is not None
        distinct, place = videos.unique(return_inverse=True)
        vectors = self.teacher.rows(distinct)
        return vectors[place], least[distinct.clamp(min=0)][place], vectors.any(dim=1)[place]
