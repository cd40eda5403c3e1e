"""Which candidates are false negatives: same content as the anchor, yet about to be pushed away.

A detector only points them out; what is then done with them is the treatment. Detectors by name; a
new one is one class in the file of its family, and one line here.
"""

from vidcsl.objectives.false_negatives.clusters import Clusters
from vidcsl.objectives.false_negatives.counts import detection_counts
from vidcsl.objectives.false_negatives.detector import Detector, Observation
from vidcsl.objectives.false_negatives.glofnd import LearntThresholds
from vidcsl.objectives.false_negatives.known import KnownGroups, LabelOracle, NoDetector
from vidcsl.objectives.false_negatives.memory import RememberedViews
from vidcsl.objectives.false_negatives.samples import Samples
from vidcsl.objectives.false_negatives.scores import AGGREGATES, SupportScores, pooled
from vidcsl.objectives.false_negatives.similarity import AdaptiveSimilarity, NearestFew
from vidcsl.objectives.false_negatives.treatments import TREATMENTS, Treatment

DETECTORS: dict[str, type[Detector]] = {
    "none": NoDetector,
    "labels": LabelOracle,
    "known_groups": KnownGroups,
    "adaptive": AdaptiveSimilarity,
    "fnc": NearestFew,
    "clusters": Clusters,
    "glofnd": LearntThresholds,
    "memory": RememberedViews,
}

__all__ = [
    "AGGREGATES",
    "DETECTORS",
    "TREATMENTS",
    "Detector",
    "Observation",
    "Samples",
    "SupportScores",
    "Treatment",
    "detection_counts",
    "pooled",
]
