"""False negatives: candidates of the anchor's content that the loss would push away.

A detector flags them, a treatment says what they are to the loss instead. Both are registered by
name beside their code; a new detector is one file, imported here.
"""

# ruff: noqa: I001  # names are listed in the order in which these modules are imported
from vidcsl.methods.false_negatives.detector import (
    AGGREGATES,
    DETECTORS,
    AdaptiveSimilarity,
    Detector,
    NearestFew,
    NoDetector,
    Observation,
    Samples,
    SupportScores,
    pooled,
)
from vidcsl.methods.false_negatives.known import KnownGroups, LabelOracle
from vidcsl.methods.false_negatives.clusters import Clusters
from vidcsl.methods.false_negatives.glofnd import LearntThresholds
from vidcsl.methods.false_negatives.memory import MemoryBank
from vidcsl.methods.false_negatives.teacher import TeacherNeighbours
from vidcsl.methods.false_negatives.treatments import (
    TREATMENTS,
    FalseNegatives,
    Treatment,
    detection_counts,
)

__all__ = [
    "AGGREGATES",
    "DETECTORS",
    "TREATMENTS",
    "AdaptiveSimilarity",
    "Clusters",
    "Detector",
    "FalseNegatives",
    "KnownGroups",
    "LabelOracle",
    "LearntThresholds",
    "MemoryBank",
    "NearestFew",
    "NoDetector",
    "Observation",
    "Samples",
    "SupportScores",
    "TeacherNeighbours",
    "Treatment",
    "detection_counts",
    "pooled",
]
