"""torchvision's video models: our names are theirs."""

from vidcsl.models.pretrained.layout import Layout

LAYOUT = Layout(
    meaning="state dicts of torchvision.models.video",
    encoders=(
        *("r2plus1d_18", "r3d_18", "mc3_18", "s3d"),
        *("mvit_v2_s", "swin3d_t", "swin3d_s", "swin3d_b"),
    ),
    containers=("state_dict", "model"),
    left_out=((r"(fc|head|classifier)\..+", "the classifier"),),
    renames=(
        (
            r"(?:module\.)?((?:stem|layer\d|features|blocks|norm|patch_embed|conv_proj"
            r"|pos_encoding)\..+)",
            r"\1",
        ),
    ),
)
