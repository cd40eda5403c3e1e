"""What a detector is."""

from dataclasses import dataclass

from torch import Tensor, nn

from vidcsl.objectives.false_negatives.samples import Samples


@dataclass(frozen=True)
class Observation:
    """One step as a detector sees it, without gradients, the rows of this process.

    Args:
        videos: int64 `[B]`, the batch's videos.
        embeddings: `[B, S, P]`, the unit embeddings of all views of each.
        progress: share of the training that is done, from 0 to 1.
    """

    videos: Tensor
    embeddings: Tensor
    progress: float


class Detector(nn.Module):
    """Points out false negatives: same content as the anchor, yet about to be pushed away.

    What is then done with them is the treatment. State is kept in buffers, which checkpoints hold,
    the same on all processes.

    Attributes:
        aggregate: the published way to score a candidate by the views of the anchor's video, see
            `scores.AGGREGATES`.
    """

    aggregate = "own"

    def learn(self, observation: Observation) -> None:
        """Update the state, on all processes alike; once a step, after its last block."""

    def forward(
        self,
        scores: Tensor,
        negatives: Tensor,
        anchors: Samples,
        candidates: Samples,
        progress: float,
    ) -> Tensor:
        """Which negatives are false.

        Args:
            scores: `[b, M]`, how alike anchor and candidate are, in [-1, 1].
            negatives: bool `[b, M]`, what the loss would push away; views of the anchor's own video
                never are.
            anchors, candidates: their samples, b and M of them.
            progress: share of the training that is done, from 0 to 1.

        Returns:
            Bool `[b, M]`, some of the negatives. A video depends on its own rows alone, which are
            all in one block.
        """
        raise NotImplementedError
