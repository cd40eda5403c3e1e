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
        ceiling: "share", "mutual": the fraction of the training list that is near each video.
        false_discovery_rate: "auto": expected fraction of wrong pairs.
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
        return self.flagged_and_sure(scores, negatives, anchors, candidates, progress)[0]

    def flagged_and_sure(
        self,
        scores: Tensor,
        negatives: Tensor,
        anchors: Samples,
        candidates: Samples,
        progress: float,
    ) -> tuple[Tensor, Tensor]:
        """Bool `[b, M]`; the surest pass the stricter thresholds, and known groups always do."""
        pairs, core = self._alike(anchors, candidates)
        of_group = anchors.same(candidates, "groups")
        flagged = (pairs | of_group) & negatives
        return flagged, flagged & (core | of_group) if self.splits else flagged

    @torch.compiler.disable  # a memory-mapped file is read
    def _alike(self, anchors: Samples, candidates: Samples) -> tuple[Tensor, Tensor]:
        """Bool `[b, M]`: what passes the thresholds, and what passes the stricter ones."""
        if self.teacher is None:
            raise RuntimeError("attach a teacher before the first step")
        rows, row_videos, row_place = self._of(anchors.videos)
        columns, column_videos, column_place = self._of(candidates.videos)
        similarities = rows @ columns.T
        known = rows.any(dim=1)[:, None] & columns.any(dim=1)

        def passing(least: Tensor, agreement: str) -> Tensor:
            mine, theirs = (least[videos.clamp(min=0)] for videos in (row_videos, column_videos))
            alike = flagged(similarities, mine, theirs, agreement=agreement) & known
            return alike[row_place][:, column_place]

        pairs = passing(self.least, self.agreement)
        return pairs, passing(self.least_sure, "both") if self.splits else pairs

    def _of(self, videos: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Vectors of the videos of rows, each video once; the videos; and each row's place."""
        assert self.teacher is not None
        distinct, place = videos.unique(return_inverse=True)
        return self.teacher.rows(distinct), distinct, place
