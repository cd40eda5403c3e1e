"""The encoder."""

from vidcsl.options.option import Option

MODELS: dict[str, Option] = {
    "MODEL.NAME": Option("r2plus1d_18", "encoder", ("r2plus1d_18", "r2plus1d_34")),
    "MODEL.WIDTH": Option(64, "channels of the first stage; 64 is the published size", minimum=4),
    "MODEL.FRAME_SIZE": Option(112, "side of the square frames that the encoder sees", minimum=16),
}
