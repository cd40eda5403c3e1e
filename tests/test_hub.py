import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch.nn import BatchNorm3d

from tests.models.made import clips_for, randomised
from vidcsl.cli import main
from vidcsl.config import default_config
from vidcsl.errors import UserError
from vidcsl.hub import export_encoder, load_encoder, push
from vidcsl.pipelines.model import build_encoder, load_weights_of
from vidcsl.training.checkpoint import Position, save_checkpoint

ROOT = Path(__file__).parents[1]


def made(**options):
    cfg = default_config()
    cfg.DATA.FRAMES, cfg.MODEL.FRAME_SIZE = 4, 32
    for key, value in {"NAME": "r3d_18", "WIDTH": 4, "DEPTH": 1, **options}.items():
        setattr(cfg.MODEL, key, value)
    return cfg, randomised(build_encoder(cfg))


@pytest.mark.parametrize(
    "options",
    [
        {"DUAL_NORM": True, "NORMALISE": "imagenet"},
        {"NAME": "r2plus1d_18"},
        {"NAME": "video_vit_s", "WIDTH": 24, "POSITIONS": "rotary", "ATTENTION": "divided"},
    ],
)
def test_every_form_gives_the_same_features_back(tmp_path, options):
    cfg, encoder = made(**options)
    written = export_encoder(encoder, cfg, tmp_path, programs=["torch_export", "torchscript"])
    assert all(path.is_file() for path in written)
    clips = clips_for(encoder, count=3)
    wanted = encoder(clips)
    loaded = load_encoder(tmp_path)
    assert torch.equal(loaded(clips), wanted)
    assert loaded.normalisation == encoder.normalisation
    program = torch.export.load(tmp_path / "encoder.pt2").module()
    torch.testing.assert_close(program(clips), wanted, rtol=1e-4, atol=1e-5)
    script = torch.jit.load(tmp_path / "encoder.torchscript.pt")
    torch.testing.assert_close(script(clips), wanted, rtol=1e-4, atol=1e-5)


def test_channels_of_foreign_weights_are_kept(tmp_path):
    cfg, _ = made()
    cfg.MODEL.CHANNELS, cfg.MODEL.NORMALISE = "bgr", "imagenet"
    encoder = build_encoder(cfg)
    export_encoder(encoder, cfg, tmp_path)
    assert torch.equal(load_encoder(tmp_path).mean, encoder.mean)
    assert encoder.mean.flatten()[0] == pytest.approx(0.406)  # red got the mean listed last


def test_our_own_weights_of_bgr_are_turned_once(tmp_path):
    cfg, _ = made()
    cfg.MODEL.CHANNELS = "bgr"
    encoder = build_encoder(cfg).eval()
    export_encoder(encoder, cfg, tmp_path)
    cfg.MODEL.WEIGHTS = f"vidcsl:{tmp_path / 'encoder.safetensors'}"
    again = build_encoder(cfg).eval()
    load_weights_of(cfg, again)
    clips = clips_for(encoder)
    assert torch.equal(again(clips), encoder(clips))


def test_other_pixels_than_those_of_the_training_are_told(tmp_path):
    cfg, encoder = made(NORMALISE="imagenet")
    export_encoder(encoder, cfg, tmp_path)
    weights = f"vidcsl:{tmp_path / 'encoder.safetensors'}"
    assert load_weights_of(cfg, encoder, source=weights) == []
    cfg.MODEL.NORMALISE = "auto"
    (note,) = load_weights_of(cfg, build_encoder(cfg), source=weights)
    assert "has pixels imagenet, this config has kinetics" in note


def test_the_batchnorms_that_are_judged_are_exported(tmp_path):
    cfg, encoder = made(DUAL_NORM=True)
    clips = clips_for(encoder)
    clean = encoder(clips)
    cfg.EVALUATE.NORMS = "adversarial"
    export_encoder(encoder, cfg, tmp_path)
    assert torch.equal(load_encoder(tmp_path)(clips), encoder(clips))
    assert not torch.allclose(encoder(clips), clean)
    cfg.MODEL.DUAL_NORM = False
    with pytest.raises(UserError, match=r"EVALUATE\.NORMS"):
        export_encoder(build_encoder(cfg), cfg, tmp_path)


def test_an_encoder_of_nan_is_not_exported(tmp_path):
    cfg, encoder = made()
    next(encoder.parameters()).data.fill_(torch.nan)
    with pytest.raises(UserError, match="holds NaN or infinite values"):
        export_encoder(encoder, cfg, tmp_path)


def test_tied_tensors_are_exported(tmp_path):
    cfg, encoder = made()
    first, second = [each for each in encoder.modules() if isinstance(each, BatchNorm3d)][:2]
    second.bias = first.bias
    export_encoder(encoder, cfg, tmp_path)
    clips = clips_for(encoder)
    assert torch.equal(load_encoder(tmp_path)(clips), encoder(clips))


def test_the_command_takes_a_checkpoint(tmp_path, capsys):
    encoder = made()[1]
    state = {f"encoder.{key}": tensor for key, tensor in encoder.state_dict().items()}
    state["projector.0.weight"] = torch.zeros(2, 2)
    document = {"config": "", "method": state}
    path = save_checkpoint(tmp_path / "run/checkpoints", document, Position(1, 0), keep=1)
    file = tmp_path / "tiny.yaml"
    file.write_text(
        f"OUTPUT_DIR: {tmp_path / 'run'}\nDATA: {{FRAMES: 4}}\n"
        "MODEL: {NAME: r3d_18, WIDTH: 4, DEPTH: 1, FRAME_SIZE: 32}\n"
    )
    words = ["export", "--cfg", str(file), "--out", str(tmp_path / "out")]
    for extra in ([], ["--checkpoint", str(path)], ["--weights", f"vidcsl:{path}"]):
        assert main([*words, *extra]) == 0
        assert "projector.0.weight" in capsys.readouterr().out
        clips = clips_for(encoder)
        assert torch.equal(load_encoder(tmp_path / "out")(clips), encoder(clips))
    assert main([*words, "--checkpoint", "a", "--weights", "vidcsl:a"]) == 2
    assert main([*words, "OUTPUT_DIR", str(tmp_path / "none")]) == 2
    assert "no checkpoint in" in capsys.readouterr().err


def test_user_errors_say_what_is_wrong(tmp_path):
    with pytest.raises(UserError, match=r"lacks encoder\.yaml"):
        load_encoder(tmp_path)
    cfg, encoder = made()
    export_encoder(encoder, cfg, tmp_path)
    text = (tmp_path / "encoder.yaml").read_text().replace("WIDTH: 4", "WIDTH: 8")
    (tmp_path / "encoder.yaml").write_text(text)
    with pytest.raises(UserError, match="does not fit"):
        load_encoder(tmp_path)


def test_pushing_and_loading_by_name(tmp_path, monkeypatch):
    """What is asked of the hub, by an API that keeps repositories in a folder of this machine."""
    cfg, encoder = made()
    export_encoder(encoder, cfg, tmp_path / "out")
    calls = []

    class Api:
        def create_repo(self, name, *, private, exist_ok):
            calls.append((name, private, exist_ok))

        def upload_folder(self, *, repo_id, folder_path):
            (tmp_path / "hub").mkdir()
            for path in Path(folder_path).iterdir():
                (tmp_path / "hub" / path.name).write_bytes(path.read_bytes())
            return f"hub/{repo_id}"

    def download(name):
        if name != "someone/encoder":
            raise OSError(f"404: {name}\nmore")
        return str(tmp_path / "hub")

    fake = SimpleNamespace(HfApi=Api, snapshot_download=download)
    monkeypatch.setitem(sys.modules, "huggingface_hub", fake)
    assert push(tmp_path / "out", "someone/encoder", private=True) == "hub/someone/encoder"
    assert calls == [("someone/encoder", True, True)]
    clips = clips_for(encoder)
    assert torch.equal(load_encoder("someone/encoder")(clips), encoder(clips))
    with pytest.raises(UserError, match=r"404: someone/else$"):
        load_encoder("someone/else")
    with pytest.raises(UserError, match="cannot push"):  # the folder already exists
        push(tmp_path / "out", "someone/encoder")


def test_torch_hub(tmp_path):
    hub = str(ROOT)
    fresh = torch.hub.load(hub, "r3d_18", source="local", clip_frames=4, frame_size=24, width=4)
    assert fresh.feature_dim == 32
    cfg, encoder = made()
    export_encoder(encoder, cfg, tmp_path)
    loaded = torch.hub.load(hub, "encoder", str(tmp_path), source="local")
    clips = clips_for(encoder)
    assert torch.equal(loaded(clips), encoder(clips))
