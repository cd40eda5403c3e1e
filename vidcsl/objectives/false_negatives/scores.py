"""How alike anchor and candidate are: what a detector looks at, block by block."""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

# By how many views of the anchor's video, and how, a candidate is scored.
AGGREGATES: dict[str, Callable[[Tensor], Tensor]] = {
    "own": lambda scores: scores,  # the anchor alone
    "mean": lambda scores: scores.mean(dim=1, keepdim=True),
    "max": lambda scores: scores.amax(dim=1, keepdim=True),
}


def pooled(similarities: Tensor, *, views: int, aggregate: str) -> Tensor:
    """Scores `[b, M]` of anchors whose similarities are given, `views` neighbours being a video.

    Each row is replaced by the mean or maximum over the rows of its video.
    """
    if aggregate == "own" or views == 1:
        return similarities
    by_video = similarities.unflatten(0, (-1, views))  # [b / V, V, M]
    return AGGREGATES[aggregate](by_video).expand_as(by_video).flatten(0, 1)


@dataclass(frozen=True)
class SupportScores:
    """Scores from a support set: other embeddings than those that the loss compares.

    Args:
        support: unit embeddings `[B, S, P]`: all views of each anchor video that vote, the
            anchors' own first.
        candidates: unit embeddings `[M, P]`, from the same network as the support.
        views: anchors of each video: its first views.
        aggregate: one of AGGREGATES.
    """

    support: Tensor
    candidates: Tensor
    views: int
    aggregate: str

    def __call__(self, rows: slice) -> Tensor:
        """`[b, M]`, for a block of whole videos."""
        videos = self.support[rows.start // self.views : -(-rows.stop // self.views)]
        if self.aggregate == "own":
            return videos[:, : self.views].flatten(0, 1) @ self.candidates.T
        if self.aggregate == "mean":  # the mean of cosines is the cosine with the mean
            scores = videos.mean(dim=1) @ self.candidates.T
        else:
            scores = videos[:, 0] @ self.candidates.T
            for view in range(1, videos.shape[1]):
                scores = scores.maximum(videos[:, view] @ self.candidates.T)
        return scores.repeat_interleave(self.views, dim=0)
