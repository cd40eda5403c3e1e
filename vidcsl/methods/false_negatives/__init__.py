"""Which candidates are false negatives: same content as the anchor, yet about to be pushed away.

A detector only points them out; what is then done with them is the treatment. Detectors by name; a
new one is one class in the file of its family, and one line here.
"""

from vidcsl.methods.false_negatives.clusters import Clusters
from vidcsl.methods.false_negatives.detector import (
    AGGREGATES,
    TREATMENTS,
    Detector,
    Observation,
    Samples,
    SupportScores,
    Treatment,
    detection_counts,
    pooled,
)
from vidcsl.methods.false_negatives.glofnd import LearntThresholds
from vidcsl.methods.false_negatives.known import KnownGroups, LabelOracle, NoDetector
from vidcsl.methods.false_negatives.memory import MemoryBank
from vidcsl.methods.false_negatives.similarity import AdaptiveSimilarity, NearestFew
from vidcsl.methods.false_negatives.teacher import TeacherNeighbours

__all__ = [
    "AGGREGATES",
    "DETECTORS",
    "TREATMENTS",
    "Detector",
    "Observation",
    "Samples",
    "SupportScores",
    "TeacherNeighbours",
    "Treatment",
    "detection_counts",
    "pooled",
]

DETECTORS: dict[str, type[Detector]] = {
    "none": NoDetector,
    "labels": LabelOracle,
    "known_groups": KnownGroups,
    "adaptive": AdaptiveSimilarity,
    "fnc": NearestFew,
    "clusters": Clusters,
    "glofnd": LearntThresholds,
    "memory": MemoryBank,
    "teacher": TeacherNeighbours,
}
