"""torch.hub: `torch.hub.load(REPOSITORY, "r3d_18", clip_frames=16, frame_size=112)` for a fresh
encoder, `torch.hub.load(REPOSITORY, "encoder", "FOLDER OR OWNER/NAME")` for an exported one.
"""

from vidcsl.hub import load_encoder as encoder  # noqa: F401
from vidcsl.models import ENCODERS

dependencies = ["torch", "torchvision", "timm", "einops", "fvcore", "safetensors", "yaml"]

globals().update(ENCODERS)
