"""An encoder as files that other programs can load: tensors and a config, or a torch program."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import yaml
from fvcore.common.config import CfgNode
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from vidcsl import __version__
from vidcsl.config import load_config
from vidcsl.errors import UserError
from vidcsl.models import Encoder
from vidcsl.models.batchnorm import use_batchnorm
from vidcsl.models.encoder import cost_of
from vidcsl.models.pretrained import read_tensors
from vidcsl.pipelines.model import build_encoder, check_batchnorm_name, is_bgr

TENSORS, CONFIG, CARD = "encoder.safetensors", "encoder.yaml", "README.md"
PROGRAM, SCRIPT = "encoder.pt2", "encoder.torchscript.pt"
TOLERANCE = 1e-4  # of features, against those of the encoder that was written


def export_encoder(
    encoder: Encoder, cfg: CfgNode, folder: Path, *, programs: Sequence[str] = ()
) -> list[Path]:
    """Write an encoder to a folder. Each file is loaded back and must give the same features.

    Args:
        encoder: as `build_encoder(cfg)` makes it, with its weights.
        cfg: the config that it was built from; EVALUATE.NORMS selects its BatchNorms.
        folder: created if missing.
        programs: names in `PROGRAMS`, written beside tensors and config.

    Raises:
        UserError: the folder cannot be written, or a file gives other features.
    """
    check_batchnorm_name(cfg)
    encoder = encoder.cpu().eval()
    use_batchnorm(encoder, cfg.EVALUATE.NORMS)
    # Each tensor in contiguous memory of its own: the format has neither ties nor strides.
    layout = torch.contiguous_format
    tensors = {key: held.clone(memory_format=layout) for key, held in encoder.state_dict().items()}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        save_file(tensors, folder / TENSORS, {"format": "pt", "vidcsl": __version__})
        (folder / CONFIG).write_text(_config(encoder, cfg), encoding="utf-8")
        (folder / CARD).write_text(_card(encoder, cfg), encoding="utf-8")
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"cannot write to {folder}: {reason}") from error
    shape = (2, 3, encoder.clip_frames, encoder.frame_size, encoder.frame_size)
    clips = torch.rand(shape, generator=torch.Generator().manual_seed(0))
    _check(load_encoder(folder), encoder, clips, folder / TENSORS)
    written = [folder / name for name in (TENSORS, CONFIG, CARD)]
    for name in programs:
        file, write, read = PROGRAMS[name]
        write(encoder, clips, folder / file)
        _check(read(folder / file), encoder, clips, folder / file)
        written.append(folder / file)
    return written


def load_encoder(source: str | Path) -> Encoder:
    """The encoder in a folder that `export_encoder` wrote, or of a repository on the Hugging Face
    hub, in eval mode.

    Args:
        source: the folder, or `owner/name`.

    Raises:
        UserError: it does not exist, or its tensors do not fit its config.
    """
    folder = Path(source)
    if not folder.exists() and str(source).count("/") == 1:
        hub = _hub()
        try:
            folder = Path(hub.snapshot_download(str(source)))
        except Exception as error:  # no network, no right, no such repository
            raise UserError(
                f"no folder {source}, and no such repository: {_first_line(error)}"
            ) from error
    if not (folder / CONFIG).is_file():
        raise UserError(f"no exported encoder in {folder}: it lacks {CONFIG}")
    cfg = load_config(folder / CONFIG)
    encoder = build_encoder(cfg)
    use_batchnorm(encoder, cfg.EVALUATE.NORMS)
    tensors = read_tensors(folder / TENSORS)
    try:
        encoder.load_state_dict(tensors, strict=True)
    except RuntimeError as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{folder / TENSORS} does not fit {CONFIG}: {reason}") from error
    return encoder.eval()


def push(folder: Path, repository: str, *, private: bool = False) -> str:
    """Upload a folder that `export_encoder` wrote to `owner/name` on the Hugging Face hub.

    Returns:
        The address of the upload.

    Raises:
        UserError: huggingface_hub is not installed, or the hub refuses.
    """
    hub = _hub()
    api = hub.HfApi()
    try:
        api.create_repo(repository, private=private, exist_ok=True)
        return str(api.upload_folder(repo_id=repository, folder_path=str(folder)))
    except Exception as error:  # no token, no network, no right: the hub's message says which
        raise UserError(f"cannot push to {repository}: {_first_line(error)}") from error


def _write_program(encoder: Encoder, clips: Tensor, path: Path) -> None:
    # torch takes sizes 0 and 1 for constants, unless the range says that 1 is one of many.
    shapes = ({0: torch.export.Dim("batch", min=1, max=1024)},)
    torch.export.save(torch.export.export(encoder, (clips,), dynamic_shapes=shapes), path)


PROGRAMS: dict[str, tuple[str, Callable[..., None], Callable[[Path], Any]]] = {
    "torch_export": (PROGRAM, _write_program, lambda path: torch.export.load(path).module()),
    "torchscript": (
        SCRIPT,
        # Unchecked: `_check` compares what is read back, with our tolerance.
        lambda encoder, clips, path: torch.jit.trace(encoder, clips, check_trace=False).save(path),
        torch.jit.load,
    ),
}


@torch.no_grad()
def _check(loaded: Callable[[Tensor], Tensor], encoder: Encoder, clips: Tensor, path: Path) -> None:
    wanted = encoder(clips)
    error = float((loaded(clips) - wanted).abs().max() / wanted.abs().max().clamp(min=1e-6))
    if not error <= TOLERANCE:  # so that NaN does not pass
        raise UserError(f"{path} gives features that differ from the encoder's by {error:.2g}")


def _config(encoder: Encoder, cfg: CfgNode) -> str:
    """A vidcsl config with the options that build the encoder, and none of its training."""
    model = {key: value for key, value in cfg.MODEL.items() if key != "WEIGHTS"}
    model["NORMALISE"] = encoder.normalisation
    model["CHANNELS"] = "bgr" if is_bgr(cfg) else "rgb"
    text: str = yaml.safe_dump(
        {
            "MODEL": model,
            "METHOD": {"NAME": cfg.METHOD.NAME},  # it decides which sets of BatchNorms there are
            "EVALUATE": {"NORMS": cfg.EVALUATE.NORMS},
            "DATA": {"FRAMES": cfg.DATA.FRAMES, "STRIDE": cfg.DATA.STRIDE},
        }
    )
    return text


def _card(encoder: Encoder, cfg: CfgNode) -> str:
    cost, size = cost_of(encoder), encoder.frame_size
    about = {
        "encoder": cfg.MODEL.NAME,
        "clip": f"{encoder.clip_frames} frames, stride {cfg.DATA.STRIDE}, {size} x {size} pixels",
        "features": encoder.feature_dim,
        "parameters": cost.parameters,
        "trained with": cfg.MODEL.WEIGHTS.partition(":")[0] or cfg.METHOD.NAME,
    }
    rows = "\n".join(f"| {key} | {value} |" for key, value in about.items())
    tags = json.dumps(["video", "self-supervised"])
    return (
        f"---\nlibrary_name: vidcsl\ntags: {tags}\n---\n\n# A video encoder\n\n| | |\n|---|---|\n"
        f"{rows}\n\n```python\nfrom vidcsl.hub import load_encoder\n\n"
        'encoder = load_encoder("FOLDER OR OWNER/NAME")\n'
        "features = encoder(clips)  # [N, 3, T, S, S] in [0, 1]\n```\n"
    )


def _hub() -> Any:
    try:
        import huggingface_hub
    except ImportError as error:
        raise UserError("the Hugging Face hub needs: pip install 'vidcsl[hub]'") from error
    return huggingface_hub


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
