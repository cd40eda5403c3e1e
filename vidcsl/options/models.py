"""The encoder. `docs/models.md` lists which encoder takes which of its options."""

from vidcsl.options.option import Option

NAMES = (
    *("r2plus1d_18", "r2plus1d_34", "r2plus1d_34_mmaction2", "r3d_18", "r3d_18_tclr", "mc3_18"),
    *("s3d", "slow_r50", "mvit_v2_s", "swin3d_t", "swin3d_s", "swin3d_b"),
    *("video_vit_s", "video_vit_b", "video_vit_l", "frames"),
)

_CHANNELS = ("auto", "rgb", "bgr")

MODELS: dict[str, Option] = {
    "MODEL.NAME": Option("r2plus1d_18", "encoder", NAMES),
    "MODEL.WIDTH": Option(0, "channels of the first stage; 0: the published number", minimum=0),
    "MODEL.DEPTH": Option(
        0,
        "most blocks of a stage (of a video ViT: all its blocks); 0: the published number",
        minimum=0,
    ),
    "MODEL.FRAME_SIZE": Option(112, "side of the square frames that the encoder sees", minimum=16),
    "MODEL.HEADS": Option(0, "video ViT: attention heads; 0: one for 64 channels", minimum=0),
    "MODEL.TUBELET": Option([2, 16], "video ViT: frames and pixels of a token"),
    "MODEL.ATTENTION": Option(
        "joint", "video ViT: over all tokens, or over time, then over space", ("joint", "divided")
    ),
    "MODEL.POSITIONS": Option(
        "sine", "video ViT: where a token lies", ("learned", "sine", "rotary")
    ),
    "MODEL.POOLING": Option(
        "mean",
        "video ViT: mean of the tokens, normalised; mean of normalised tokens; a class token",
        ("mean", "tokens", "class"),
    ),
    "MODEL.IMAGE": Option("resnet18", "frames: the image backbone, a name of timm's"),
    "MODEL.TEMPORAL": Option("mean", "frames: what joins them", ("mean", "transformer")),
    "MODEL.DUAL_NORM": Option(False, "every BatchNorm twice, for clean and for adversarial clips"),
    "MODEL.NORMALISE": Option(
        "auto",
        "pixel statistics; auto: those of MODEL.WEIGHTS' format, else those of the encoder",
        ("auto", "kinetics", "imagenet", "pyslowfast", "clip", "dpn", "symmetric", "none"),
    ),
    "MODEL.WEIGHTS": Option(
        "",
        "FORMAT:PATH of pretrained weights, where training or an evaluation without checkpoint "
        "starts; docs/models.md lists the formats",
    ),
    "MODEL.WEIGHTS_STRICT": Option(
        True, "weights that do not fit wholly are an error, else a note"
    ),
    "MODEL.CHANNELS": Option(
        "auto", "pixels that the weights were learned on; auto: as the format says", _CHANNELS
    ),
}
