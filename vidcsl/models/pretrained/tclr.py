"""TCLR's R3D-18, trained on BGR pixels that are not normalised."""

from vidcsl.models.pretrained.layout import Layout

LAYOUT = Layout(
    meaning="TCLR's R3D-18, pretraining or linear evaluation",
    encoders=("r3d_18_tclr",),
    containers=("state_dict", "bb_state_dict"),
    left_out=(
        (r"(module\.)?1\..+", "the projector"),
        (r"(module\.)?(0\.)?fc\..+", "the classifier"),
    ),
    renames=((r"(?:module\.)?(?:0\.)?((?:stem|layer\d)\..+)", r"\1"),),
    normalisation="none",
    bgr=True,  # its frames come straight from OpenCV
)
