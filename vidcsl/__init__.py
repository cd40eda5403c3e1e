"""vidcsl: contrastive self-supervised learning on video, and how robust the result is."""

__version__ = "0.1.0"
