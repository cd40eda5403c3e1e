"""The encoder of V-JEPA 2, as released and as transformers holds it."""

from vidcsl.models.pretrained.layout import Layout, joined_qkv

_HF = r"(?:vjepa2\.)?encoder\."
_ORIGINAL = r"(?:module\.)?(?:backbone\.)?"

LAYOUT = Layout(
    meaning="V-JEPA 2's encoder, as released (`target_encoder`) or of transformers",
    encoders=("video_vit_s", "video_vit_b", "video_vit_l"),
    containers=("target_encoder", "encoder", "state_dict"),
    left_out=(
        (r"(vjepa2\.)?predictor\..+", "the predictor"),
        (r"(pooler|classifier)\..+", "the probe"),
        (_ORIGINAL + r"pos_embed", "positions that rotary ones replace"),
    ),
    renames=(
        (_HF + r"embeddings\.patch_embeddings\.proj\.(.+)", r"patch_embed.proj.\1"),
        *(
            (_HF + rf"layer\.(\d+)\.attention\.{name}\.(.+)", rf"blocks.\1.attn.{name[0]}.\2")
            for name in ("query", "key", "value")
        ),
        (_HF + r"layer\.(\d+)\.attention\.proj\.(.+)", r"blocks.\1.attn.proj.\2"),
        (_HF + r"layer\.(\d+)\.((?:norm1|norm2|mlp)\..+)", r"blocks.\1.\2"),
        (_HF + r"layernorm\.(.+)", r"norm.\1"),
        (_ORIGINAL + r"(patch_embed\.proj\..+)", r"\1"),
        (_ORIGINAL + r"(blocks\.\d+\.(?:norm1|norm2|attn|mlp)\..+)", r"\1"),
        (_ORIGINAL + r"(norm\..+)", r"\1"),
    ),
    changes=(joined_qkv,),
    normalisation="imagenet",
    note="Needs MODEL.POSITIONS rotary and MODEL.POOLING tokens",
)
