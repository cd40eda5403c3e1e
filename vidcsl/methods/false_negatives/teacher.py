"""Ours: a teacher that knew the videos before the training points out the false negatives."""

import torch
from torch import Tensor

from vidcsl.methods.false_negatives.detector import DETECTORS, Detector, Samples
from vidcsl.registry import Option
from vidcsl.teachers.neighbours import RULES, Teacher, flagged, thresholds

# A pair of the nearest stands exactly on its video's threshold, which was computed by a product of
# other matrices: without this, rounding would decide.
_ROUNDING = 1e-4
# A wrong positive does harm, a negative that is left out by mistake hardly does: what is attracted
# has to be so much rarer among the other similarities, or nearer, than what is eliminated.
_SURE_RATE, _SURE_SHARE = 0.04, 0.2


@DETECTORS.register(
    "teacher",
    "the videos that a teacher finds alike, from the first step on (ours)",
    TEACHER=Option(
        "motion",
        "teacher: what says which videos are alike: motion, a descriptor of optical flow that is "
        "computed once; a file of features (.npz, .npy, .safetensors); the checkpoint of a run "
        "with the detector memory; FORMAT:PATH of an encoder, or a config (.yaml) of one with "
        "MODEL.WEIGHTS; or several, joined by +, such as "
        "motion + 2*audio.npz",
        path=True,
    ),
    RULE=Option(
        "auto",
        "teacher: which videos are alike: auto, those that stand out from the other similarities "
        "of a video; share, its nearest CEILING of the list; mutual, videos that are among the "
        "nearest CEILING of each other",
        RULES,
    ),
    SMOOTHING=Option(
        5, "teacher: nearest videos that each vector is averaged with; 0: none", minimum=0
    ),
    FALSE_DISCOVERY_RATE=Option(
        0.5,
        "teacher, rule auto: expected fraction of wrong pairs among the flagged; a 25th of "
        "it among those that are attracted",
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
        rule: see `thresholds`. With "share" a pair has to pass the anchor's threshold, with the
            others those of both videos.
        ceiling: "share", "mutual": the share of the training list that is near each video.
        false_discovery_rate: "auto": expected share of wrong pairs.
        treatment: what becomes of the pairs. With "attract" the rule "auto" flags the surest pairs
            alone: those of a 25th of the rate. With "attract_sure" it flags all, and `sure` knows
            the surest: with the other rules the mutual neighbours by a fifth of the ceiling.
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
        self.agreement = "anchor" if rule == "share" else "both"
        self.splits = treatment == "attract_sure"
        if treatment == "attract":
            self.rate *= _SURE_RATE
        self.teacher: Teacher | None = None
        # Not persistent: they follow from the teacher, and a checkpoint fits without it.
        self.register_buffer("least", torch.empty(0), persistent=False)
        self.register_buffer("least_sure", torch.empty(0), persistent=False)

    def attach(self, teacher: Teacher) -> None:
        """Learn from a teacher of the training list; a method that is only evaluated has none."""
        self.teacher, self.least = teacher, self._thresholds(teacher, self.ceiling, self.rate)
        if self.splits:
            self.least_sure = self._thresholds(
                teacher, self.ceiling * _SURE_SHARE, self.rate * _SURE_RATE
            )

    def _thresholds(self, teacher: Teacher, share: float, rate: float) -> Tensor:
        device = self.least.device
        least = thresholds(teacher, rule=self.rule, share=share, rate=rate, device=device)
        return (least - _ROUNDING).to(device)

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
