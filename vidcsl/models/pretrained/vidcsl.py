"""Our own checkpoints and exports: the encoder alone, whatever it was trained with."""

from vidcsl.models.pretrained.layout import Layout

LAYOUT = Layout(
    meaning="checkpoints of this project (the encoder alone), and `vidcsl export`'s files",
    encoders=(),
    containers=("method",),
    left_out=((r"(?!(encoder\.)?backbone\.).+", "heads and what else was trained beside it"),),
    renames=((r"(?:encoder\.)?backbone\.(.+)", r"\1"),),
)
