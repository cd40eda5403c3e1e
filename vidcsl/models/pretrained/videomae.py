"""VideoMAE, as released and as transformers holds it."""

from vidcsl.models.pretrained.layout import Layout, joined_bias, joined_qkv
from vidcsl.models.vit import PUBLISHED_CLIP

_WHY = (
    "Fine-tuned weights need MODEL.POOLING mean, pretrained ones MODEL.POOLING tokens; both "
    "MODEL.POSITIONS sine"
)
_ENCODERS = ("video_vit_s", "video_vit_b", "video_vit_l")

_HF = r"(?:videomae\.)?"
_HF_BLOCK = _HF + r"encoder\.layer\.(\d+)\."

ORIGINAL = Layout(
    meaning="VideoMAE as released: pretraining (its encoder) or fine-tuned",
    encoders=_ENCODERS,
    containers=("model", "module", "state_dict"),
    left_out=(
        (r"(decoder|encoder_to_decoder)(\..+)?|mask_token", "the decoder"),
        (r"head\..+", "the classifier"),
    ),
    renames=(
        (r"(?:encoder\.)?(patch_embed\.proj\..+)", r"\1"),
        (r"(?:encoder\.)?(blocks\.\d+\.attn\.)([qv])_bias", r"\1\2.bias"),
        (r"(?:encoder\.)?(blocks\.\d+\.(?:norm1|norm2|attn|mlp)\..+)", r"\1"),
        (r"(?:encoder\.)?((?:norm|fc_norm)\..+)", r"\1"),
    ),
    changes=(joined_bias,),
    normalisation="imagenet",
    clip=PUBLISHED_CLIP,
    note=_WHY,
)

TRANSFORMERS = Layout(
    meaning="VideoMAE of transformers: its model, pretraining or classification class",
    encoders=_ENCODERS,
    containers=("state_dict",),
    left_out=(
        (r"decoder\..+|encoder_to_decoder\..+|mask_token|position_embeddings", "the decoder"),
        (r"classifier\..+", "the classifier"),
    ),
    renames=(
        (_HF + r"embeddings\.patch_embeddings\.projection\.(.+)", r"patch_embed.proj.\1"),
        (_HF_BLOCK + r"attention\.attention\.([qv])_bias", r"blocks.\1.attn.\2.bias"),
        *(
            (_HF_BLOCK + rf"attention\.attention\.{name}\.(.+)", rf"blocks.\1.attn.{name[0]}.\2")
            for name in ("query", "key", "value")
        ),
        (_HF_BLOCK + r"attention\.output\.dense\.(.+)", r"blocks.\1.attn.proj.\2"),
        (_HF_BLOCK + r"layernorm_before\.(.+)", r"blocks.\1.norm1.\2"),
        (_HF_BLOCK + r"layernorm_after\.(.+)", r"blocks.\1.norm2.\2"),
        (_HF_BLOCK + r"intermediate\.dense\.(.+)", r"blocks.\1.mlp.fc1.\2"),
        (_HF_BLOCK + r"output\.dense\.(.+)", r"blocks.\1.mlp.fc2.\2"),
        (_HF + r"(?:encoder\.)?layernorm\.(.+)", r"norm.\1"),
        (r"fc_norm\.(.+)", r"fc_norm.\1"),
    ),
    changes=(joined_qkv,),
    normalisation="imagenet",
    clip=PUBLISHED_CLIP,
    note=_WHY,
)
