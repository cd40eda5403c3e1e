"""State dicts in the layouts of others, and the features that must come of them."""

import argparse
from collections import OrderedDict
from functools import partial

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import nn
from torchvision.models.video import mvit_v2_s, r3d_18
from torchvision.models.video.s3d import S3D

from tests.models.made import clips_for, randomised, slim
from vidcsl.errors import UserError
from vidcsl.models import ENCODERS
from vidcsl.models.encoder import NORMALISATIONS, Encoder
from vidcsl.models.layouts import norm_eps
from vidcsl.models.pretrained import LAYOUTS, load_pretrained, parse_weights


def load(encoder, form, path, name, **options):
    return load_pretrained(encoder, parse_weights(f"{form}:{path}"), name=name, **options)


def normalised(clips, name):
    mean, std = (torch.tensor(each).view(3, 1, 1, 1) for each in NORMALISATIONS[name])
    return (clips - mean) / std


def saved(path, document):
    torch.save(document, path)
    return path


def test_every_format_names_encoders_that_are_there():
    for layout in LAYOUTS.values():
        assert set(layout.encoders) <= set(ENCODERS)


def test_torchvision(tmp_path):
    theirs = randomised(r3d_18(num_classes=7))
    path = saved(tmp_path / "r3d.pth", theirs.state_dict())
    encoder = ENCODERS["r3d_18"](clip_frames=4, frame_size=32).eval()
    (note,) = load(encoder, "torchvision", path, "r3d_18")
    assert note.endswith("left out, the classifier: fc.weight, fc.bias")
    theirs.fc = nn.Identity()
    clips = clips_for(encoder)
    with torch.no_grad():
        wanted = theirs(normalised(clips, "kinetics"))
        torch.testing.assert_close(encoder(clips), wanted, rtol=1e-4, atol=1e-4)
    held = {key: tensor.contiguous() for key, tensor in theirs.state_dict().items()}
    save_file(held, tmp_path / "r3d.safetensors")
    again = ENCODERS["r3d_18"](clip_frames=4, frame_size=32).eval()
    assert load(again, "torchvision", tmp_path / "r3d.safetensors", "r3d_18") == []
    assert torch.equal(again(clips), encoder(clips))


def test_relative_positions_for_other_clips_are_interpolated_and_said(tmp_path):
    path = saved(tmp_path / "mvit.pth", mvit_v2_s().state_dict())
    encoder = ENCODERS["mvit_v2_s"](clip_frames=8, frame_size=96)
    notes = load(encoder, "torchvision", path, "mvit_v2_s")
    assert any("48 tables of relative positions interpolated" in note for note in notes)


def pyslowfast_state(width=4, blocks=(1, 1, 1, 1)):
    """Names and shapes of Slow-R50 as PySlowFast makes it."""
    state = OrderedDict()

    def conv(name, out, into, *kernel):
        state[f"{name}.weight"] = torch.randn(out, into, *kernel) * 0.1

    def norm(name, size):
        for part in ("weight", "bias", "running_mean", "running_var"):
            state[f"{name}.{part}"] = torch.rand(size) + 0.5
        state[f"{name}.num_batches_tracked"] = torch.tensor(3)

    conv("s1.pathway0_stem.conv", width, 3, 1, 7, 7)
    norm("s1.pathway0_stem.bn", width)
    before = width
    for stage, (inner, kernel) in enumerate(zip((1, 2, 4, 8), (1, 1, 3, 3), strict=True), start=2):
        inner, after = inner * width, 4 * inner * width
        for number in range(blocks[stage - 2]):
            block = f"s{stage}.pathway0_res{number}"
            if number == 0:
                conv(f"{block}.branch1", after, before, 1, 1, 1)
                norm(f"{block}.branch1_bn", after)
            conv(f"{block}.branch2.a", inner, before, kernel, 1, 1)
            norm(f"{block}.branch2.a_bn", inner)
            conv(f"{block}.branch2.b", inner, inner, 1, 3, 3)
            norm(f"{block}.branch2.b_bn", inner)
            conv(f"{block}.branch2.c", after, inner, 1, 1, 1)
            norm(f"{block}.branch2.c_bn", after)
            before = after
    return state


def slow_reference(state, clips):
    """What such a network computes, by its names."""

    def conv(name, maps, **options):
        return nn.functional.conv3d(maps, state[f"{name}.weight"], **options)

    def norm(name, maps):
        parts = ("running_mean", "running_var", "weight", "bias")
        return nn.functional.batch_norm(maps, *(state[f"{name}.{part}"] for part in parts))

    maps = conv("s1.pathway0_stem.conv", clips, stride=(1, 2, 2), padding=(0, 3, 3))
    maps = norm("s1.pathway0_stem.bn", maps).relu()
    maps = nn.functional.max_pool3d(maps, (1, 3, 3), (1, 2, 2), (0, 1, 1))
    for stage, kernel in zip((2, 3, 4, 5), (1, 1, 3, 3), strict=True):
        block, stride = f"s{stage}.pathway0_res0", 1 if stage == 2 else 2
        inner = conv(f"{block}.branch2.a", maps, padding=(kernel // 2, 0, 0))
        inner = norm(f"{block}.branch2.a_bn", inner).relu()
        inner = conv(f"{block}.branch2.b", inner, stride=(1, stride, stride), padding=(0, 1, 1))
        inner = conv(f"{block}.branch2.c", norm(f"{block}.branch2.b_bn", inner).relu())
        shortcut = conv(f"{block}.branch1", maps, stride=(1, stride, stride))
        shortcut = norm(f"{block}.branch1_bn", shortcut)
        maps = (norm(f"{block}.branch2.c_bn", inner) + shortcut).relu()
    return maps.mean(dim=(2, 3, 4))


@pytest.mark.parametrize("start", ["", "backbone.", "module.backbone."])
def test_pyslowfast_supervised_and_contrastive(tmp_path, start):
    state = pyslowfast_state()
    document = {f"{start}{key}": tensor for key, tensor in state.items()}
    document[f"{start}head.projection.weight"] = torch.zeros(3, 3)
    if start:
        hist = start.replace("backbone", "backbone_hist")
        document |= {f"{hist}{key}": tensor for key, tensor in state.items()}
        document[start.replace("backbone.", "queue_x")] = torch.zeros(8, 8)
    path = saved(tmp_path / "slow.pyth", {"epoch": 3, "model_state": document, "cfg": "A: 1"})
    encoder = slim("slow_r50", WIDTH=4, DEPTH=1)
    notes = " ".join(load(encoder, "pyslowfast", path, "slow_r50"))
    assert "left out, the head" in notes
    assert ("the momentum encoder" in notes) == bool(start)
    clips = clips_for(encoder)
    wanted = slow_reference(state, normalised(clips, "pyslowfast"))
    torch.testing.assert_close(encoder(clips), wanted, rtol=1e-4, atol=1e-4)


def test_mmaction2(tmp_path):
    encoder = randomised(slim("r2plus1d_34_mmaction2"))
    outer, inner = ("conv1", "conv2", "downsample"), {"0": "conv_s", "1": "bn_s", "3": "conv_t"}
    theirs = {"cls_head.fc_cls.weight": torch.zeros(2, 2)}
    for key, tensor in encoder.backbone.state_dict().items():
        words = key.split(".")
        if words[0] == "stem":
            name = f"conv1.conv.{inner[words[1]]}" if words[1] in inner else "conv1.bn"
        else:
            place = words.index(next(word for word in words if word in outer))
            end = words[place + 1 :]
            last = f"conv.{inner[end[1]]}" if end[0] == "0" else "bn"
            name = ".".join([*words[: place + 1], last])
        theirs[f"backbone.{name}.{words[-1]}"] = tensor.clone()
    assert "backbone.layer2.0.downsample.conv.conv_s.weight" in theirs
    path = saved(tmp_path / "r34.pth", {"meta": {"epoch": 1}, "state_dict": theirs})
    other = slim("r2plus1d_34_mmaction2")
    load(other, "mmaction2", path, "r2plus1d_34_mmaction2")
    for module in encoder.backbone.modules():  # the outer norms as mmaction2's configs have them
        if isinstance(module, nn.Sequential) and isinstance(module[-1], nn.BatchNorm3d):
            module[-1].eps = 1e-3
    for module in encoder.backbone.modules():
        if type(module).__name__ == "BasicBlock":
            module.conv1[1].eps = 1e-3
    encoder.backbone.stem[4].eps = 1e-3
    clips = clips_for(encoder)
    torch.testing.assert_close(other(clips), encoder(clips), rtol=1e-4, atol=1e-5)


def test_another_eps_by_other_weights():
    theirs, ours = randomised(nn.BatchNorm1d(5, eps=0.3)), nn.BatchNorm1d(5, eps=1e-5).eval()
    state = {f"bn.{key}": tensor for key, tensor in theirs.state_dict().items()}
    changed = norm_eps("bn", theirs=0.3, ours=1e-5)(state)
    ours.load_state_dict({key[3:]: tensor for key, tensor in changed.items()})
    rows = torch.randn(4, 5)
    torch.testing.assert_close(ours(rows), theirs(rows))


def test_tclr_is_dilated_takes_raw_pixels_and_was_bgr(tmp_path):
    theirs = r3d_18().eval()
    theirs.layer4[0].conv1[0] = nn.Conv3d(
        *(256, 512, 3), stride=(1, 2, 2), padding=(2, 1, 1), dilation=(2, 1, 1), bias=False
    )
    theirs.layer4[0].downsample[0].stride = (1, 2, 2)
    theirs = randomised(theirs)
    theirs.fc = nn.Identity()
    document = {f"module.0.{key}": tensor for key, tensor in theirs.state_dict().items()}
    document["module.1.fc1.weight"] = torch.zeros(2, 2)
    path = saved(tmp_path / "tclr.pth", {"state_dict": document, "epoch": 151})
    encoder = ENCODERS["r3d_18_tclr"](clip_frames=8, frame_size=32).eval()
    assert LAYOUTS["tclr"].bgr
    assert "BGR" in " ".join(load(encoder, "tclr", path, "r3d_18_tclr", bgr=True))
    clips = clips_for(encoder)
    with torch.no_grad():
        wanted = theirs(clips.flip(1))
        torch.testing.assert_close(encoder(clips), wanted, rtol=1e-4, atol=1e-4)
        load(encoder, "tclr", path, "r3d_18_tclr")
        torch.testing.assert_close(encoder(clips), theirs(clips), rtol=1e-4, atol=1e-4)


def coclr_names():
    """Modules of CoCLR's S3D in the order in which torchvision registers the same ones."""
    split = ("conv1", "bn1", "conv2", "bn2")
    names = [f"block1.0.{each}" for each in split]
    names += [f"block2.1.{each}" for each in ("conv", "bn")]
    names += [f"block2.2.{each}" for each in split]
    for block, count in ((3, 2), (4, 5), (5, 2)):
        for number in range(1, count + 1):
            start = f"block{block}.{number}"
            names += [f"{start}.branch0.0.{each}" for each in ("conv", "bn")]
            for branch in (1, 2):
                names += [f"{start}.branch{branch}.0.{each}" for each in ("conv", "bn")]
                names += [f"{start}.branch{branch}.1.{each}" for each in split]
            names += [f"{start}.branch3.1.{each}" for each in ("conv", "bn")]
    return names


def test_coclr(tmp_path):
    theirs = randomised(S3D(norm_layer=partial(nn.BatchNorm3d, eps=1e-5)))
    modules = [
        each for each in theirs.features.modules() if isinstance(each, nn.Conv3d | nn.BatchNorm3d)
    ]
    state = {
        f"encoder_q.0.{name}.{key}": tensor
        for name, module in zip(coclr_names(), modules, strict=True)
        for key, tensor in module.state_dict().items()
    }
    state["encoder_q.0.Conv_1a.conv1.weight"] = state["encoder_q.0.block1.0.conv1.weight"]
    state["encoder_q.2.weight"] = state["queue"] = torch.zeros(2, 2)
    best = np.float64(0.5)  # NumPy's numbers are what such files hold
    path = saved(tmp_path / "coclr.tar", {"state_dict": state, "best_acc": best})
    encoder = ENCODERS["s3d"](clip_frames=16, frame_size=64).eval()
    encoder.normalise_by("imagenet")
    assert "second names" in " ".join(load(encoder, "coclr", path, "s3d"))
    clips = clips_for(encoder, count=1)
    with torch.no_grad():
        wanted = theirs.features(normalised(clips, "imagenet")).mean(dim=(2, 3, 4))
        torch.testing.assert_close(encoder(clips), wanted, rtol=1e-3, atol=1e-5)


SHAPE = {"hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}


def test_videomae_of_transformers(tmp_path):
    transformers = pytest.importorskip("transformers")
    config = transformers.VideoMAEConfig(
        image_size=224, num_frames=16, intermediate_size=192, num_labels=5, **SHAPE
    )
    theirs = randomised(transformers.VideoMAEForVideoClassification(config))
    theirs.classifier = nn.Identity()
    for name, parameter in theirs.named_parameters():
        if name.endswith("key.bias"):  # transformers' own: the released code has none
            parameter.data.zero_()
    state = theirs.state_dict()
    path = saved(tmp_path / "videomae.bin", state)
    shape = {"WIDTH": 48, "DEPTH": 2, "HEADS": 2, "FRAME_SIZE": 224}
    encoder = vit(**shape, frames=16)
    load(encoder, "videomae_hf", path, "video_vit_b")
    clips = clips_for(encoder, count=1)
    with torch.no_grad():
        wanted = theirs(normalised(clips, "imagenet").transpose(1, 2)).logits
        torch.testing.assert_close(encoder(clips), wanted, rtol=1e-3, atol=1e-4)
    original = original_videomae(state)
    document = {"model": original, "args": argparse.Namespace(lr=1.0), "epoch": 1}
    released = saved(tmp_path / "videomae.pth", document)
    other = vit(**shape, frames=16)
    load(other, "videomae", released, "video_vit_b")
    assert torch.equal(other(clips), encoder(clips))
    with pytest.raises(UserError, match=r"2 missing: norm\.weight, norm\.bias.*POOLING"):
        load(vit(**shape, POOLING="tokens", frames=16), "videomae", released, "video_vit_b")
    smaller = vit(**shape | {"FRAME_SIZE": 112}, frames=16)
    notes = " ".join(load(smaller, "videomae", released, "video_vit_b"))
    assert "positions of clips of 16 x 224 interpolated" in notes
    for bad in (None, torch.zeros(48, 24)):  # missing, or of another width
        state["videomae.encoder.layer.1.attention.attention.key.weight"] = bad
        kept = {key: each for key, each in state.items() if each is not None}
        path = saved(tmp_path / "bad.pth", kept)
        with pytest.raises(UserError, match=r"unknown: blocks\.1\.attn\.q\.weight"):
            load(vit(**shape, frames=16), "videomae_hf", path, "video_vit_b")


def original_videomae(state):
    """The same tensors under the names of the released code."""
    names = {
        "videomae.embeddings.patch_embeddings.projection": "patch_embed.proj",
        "videomae.encoder.layer": "blocks",
        "attention.output.dense": "attn.proj",
        "layernorm_before": "norm1",
        "layernorm_after": "norm2",
        "intermediate.dense": "mlp.fc1",
        "output.dense": "mlp.fc2",
    }
    found = {"head.weight": torch.zeros(5, 48)}
    for key, tensor in state.items():
        for theirs, released in names.items():
            key = key.replace(theirs, released)
        found[key] = tensor
    for block in range(2):
        start = f"blocks.{block}.attention.attention."
        parts = [found.pop(f"{start}{part}.weight") for part in ("query", "key", "value")]
        found[f"blocks.{block}.attn.qkv.weight"] = torch.cat(parts)
        found[f"blocks.{block}.attn.q_bias"] = found.pop(f"{start}query.bias")
        found[f"blocks.{block}.attn.v_bias"] = found.pop(f"{start}value.bias")
        found.pop(f"{start}key.bias", None)
    return found


def vit(*, frames=4, **options):
    encoder_options = {"WIDTH": 24, "DEPTH": 2, **options}
    size = encoder_options.pop("FRAME_SIZE", 32)
    names = {key.lower(): value for key, value in encoder_options.items()}
    return ENCODERS["video_vit_b"](clip_frames=frames, frame_size=size, **names).eval()


def test_vjepa2(tmp_path):
    transformers = pytest.importorskip("transformers")
    config = transformers.VJEPA2Config(
        crop_size=48, frames_per_clip=6, mlp_ratio=4, pred_hidden_size=24, **SHAPE
    )
    theirs = randomised(transformers.VJEPA2Model(config))
    path = saved(tmp_path / "vjepa2.bin", theirs.state_dict())
    shape = {"WIDTH": 48, "HEADS": 2, "FRAME_SIZE": 48, "POSITIONS": "rotary", "POOLING": "tokens"}
    encoder = vit(**shape, frames=6)
    assert "the predictor" in " ".join(load(encoder, "vjepa2", path, "video_vit_b"))
    clips = clips_for(encoder)
    with torch.no_grad():
        pixels = normalised(clips, "imagenet").transpose(1, 2)
        wanted = theirs(pixels, skip_predictor=True).last_hidden_state
        torch.testing.assert_close(encoder.tokens(clips), wanted, rtol=1e-3, atol=1e-4)
    own = {f"module.backbone.{key}": t for key, t in encoder.backbone.state_dict().items()}
    own["module.backbone.pos_embed"] = torch.zeros(1, 27, 48)
    released = saved(tmp_path / "vitl.pt", {"target_encoder": own, "encoder": {}, "epoch": 1})
    other = vit(**shape, frames=6)
    load(other, "vjepa2", released, "video_vit_b")
    assert torch.equal(other(clips), encoder(clips))


@pytest.mark.parametrize("container", ["teacher", "model", ""])
def test_image_transformers_inflated_or_per_frame(tmp_path, container):
    theirs = timm.create_model("vit_tiny_patch16_224", img_size=32, num_classes=0)
    theirs = randomised(theirs)
    start = "backbone." if container == "teacher" else ""
    state = {f"{start}{key}": tensor for key, tensor in theirs.state_dict().items()}
    state[f"{start}head.last_layer.weight"] = torch.zeros(2, 2)
    path = saved(tmp_path / "dino.pth", {container: state} if container else state)
    still = torch.rand(1, 3, 1, 32, 32).expand(-1, -1, 4, -1, -1)
    with torch.no_grad():
        wanted = theirs(normalised(still, "imagenet")[:, :, 0])
        shape = {"WIDTH": 192, "DEPTH": 12, "POSITIONS": "learned", "POOLING": "class"}
        inflated = vit(**shape, frames=2)  # of more, a class token sees every patch several times
        notes = " ".join(load(inflated, "image_vit", path, "video_vit_b"))
        assert "spread over 2 frames" in notes
        torch.testing.assert_close(inflated(still[:, :, :2]), wanted, rtol=1e-3, atol=1e-4)
        divided = vit(**shape, ATTENTION="divided")
        load(divided, "image_vit", path, "video_vit_b")
        torch.testing.assert_close(divided(still), wanted, rtol=1e-3, atol=1e-4)
        per_frame = slim("frames", IMAGE="vit_tiny_patch16_224", NORMALISE="imagenet")
        notes = " ".join(load(per_frame, "image", path, "frames"))
        assert "assumed to be trained on pixels imagenet (MODEL.NORMALISE)" in notes
        torch.testing.assert_close(per_frame(still), wanted, rtol=1e-3, atol=1e-4)
    halved = saved(tmp_path / "half.pth", {key: each.half() for key, each in state.items()})
    load(vit(**shape, FRAME_SIZE=48), "image_vit", halved, "video_vit_b")
    flat = {**state, f"{start}patch_embed.proj.weight": torch.zeros(192, 768)}
    linear = saved(tmp_path / "linear.pth", flat)
    with pytest.raises(UserError, match=r"1 of another shape: patch_embed\.proj\.weight"):
        load(vit(**shape), "image_vit", linear, "video_vit_b")
    larger = vit(**shape, FRAME_SIZE=48)
    notes = " ".join(load(larger, "image_vit", path, "video_vit_b"))
    assert "positions interpolated from 1 x 2 x 2 to 2 x 3 x 3 (time x height x width)" in notes
    per_frame = slim("frames", IMAGE="vit_tiny_patch16_224", FRAME_SIZE=48)
    notes = " ".join(load(per_frame, "image", path, "frames"))
    assert "positions interpolated from 2 x 2 to 3 x 3" in notes
    assert per_frame(torch.rand(1, 3, 2, 48, 48)).shape == (1, 192)


@pytest.mark.parametrize(
    ("name", "head"), [("mobilenetv3_small_050", "classifier"), ("convnext_atto", "head.fc")]
)
def test_the_head_of_an_image_backbone_is_left_out_and_nothing_else(tmp_path, name, head):
    theirs = randomised(timm.create_model(name))
    path = saved(tmp_path / "image.pt", theirs.state_dict())
    encoder = slim("frames", IMAGE=name, NORMALISE="imagenet")
    notes = " ".join(load(encoder, "image", path, "frames"))
    assert f"left out, the head: {head}.weight, {head}.bias" in notes
    own = encoder.backbone.image.state_dict()
    assert all(torch.equal(own[key], theirs.state_dict()[key]) for key in own)


@pytest.mark.parametrize("pooling", ["mean", "class"])
def test_learned_positions_of_other_clips_are_interpolated_and_said(tmp_path, pooling):
    shape = {"POSITIONS": "learned", "POOLING": pooling}
    made = randomised(vit(**shape, frames=6, FRAME_SIZE=48))
    path = saved(tmp_path / "ours.pt", {"method": state_of(made), "config": "", "position": {}})
    same = vit(**shape, frames=6, FRAME_SIZE=48)
    assert load(same, "vidcsl", path, "video_vit_b") == []
    assert torch.equal(same(clips_for(made)), made(clips_for(made)))
    other = vit(**shape, frames=8, FRAME_SIZE=32)
    (note,) = load(other, "vidcsl", path, "video_vit_b")
    assert "positions interpolated from 3 x 3 x 3 to 4 x 2 x 2 (time x height x width)" in note
    before, after = (each.backbone.pos_embed[0].permute(3, 0, 1, 2) for each in (made, other))
    frames = [
        nn.functional.interpolate(frame[None], (2, 2), mode="bicubic", antialias=True)[0]
        for frame in before.unbind(1)
    ]
    rows = torch.stack(frames, dim=-1).flatten(0, 2)  # [C * places, T]
    wanted = nn.functional.interpolate(rows[None], 4, mode="linear")[0].unflatten(0, (24, 2, 2))
    torch.testing.assert_close(after, wanted.permute(0, 3, 1, 2))
    # Clips that it was not made for are seen by the same positions without loading.
    torch.testing.assert_close(other(clips_for(other)), made(clips_for(other)))


def test_learned_times_of_other_clips_are_interpolated_and_said(tmp_path):
    made = slim("frames", TEMPORAL="transformer")
    path = saved(tmp_path / "ours.pt", {"method": state_of(made)})
    other = ENCODERS["frames"](
        clip_frames=6, frame_size=32, image="resnet10t", temporal="transformer"
    ).eval()
    (note,) = load(other, "vidcsl", path, "frames")
    assert note.endswith("positions interpolated from 4 to 6 frames")
    clips = clips_for(other)
    torch.testing.assert_close(other(clips), made(clips), rtol=1e-4, atol=1e-5)


def state_of(encoder):
    """As a checkpoint holds it."""
    return {f"encoder.{key}": tensor for key, tensor in encoder.state_dict().items()}


def test_our_own_checkpoints_give_their_encoder(tmp_path):
    encoder = randomised(slim("r3d_18"))
    state = state_of(encoder)
    state["projector.0.weight"] = torch.zeros(2, 2)
    path = saved(tmp_path / "ours.pt", {"method": state, "config": "", "position": {}})
    dual = slim("r3d_18", DUAL_NORM=True)
    notes = " ".join(load(dual, "vidcsl", path, "r3d_18"))
    assert "projector.0.weight" in notes
    assert "BatchNorms copied" in notes
    clips = clips_for(encoder)
    assert torch.equal(dual(clips), encoder(clips))


class Twice(nn.Module):
    """A backbone that sees its pixels twice, through three channels or through twelve."""

    def __init__(self, rearranged=False):
        super().__init__()
        self.first = nn.Conv2d(12 if rearranged else 3, 8, 3)
        self.second = nn.Conv2d(12 if rearranged else 3, 8, 3)
        self.rearranged = rearranged

    def forward(self, clips):
        frames = clips.mean(dim=2)
        frames = nn.functional.pixel_unshuffle(frames, 2) if self.rearranged else frames
        return (self.first(frames) + self.second(frames).relu()).mean(dim=(2, 3))


def test_every_convolution_of_the_pixels_is_turned_or_none(tmp_path):
    theirs = randomised(Twice())
    state = {f"backbone.{key}": tensor for key, tensor in theirs.state_dict().items()}
    path = saved(tmp_path / "twice.pt", {"method": state})
    encoder = Encoder(Twice(), feature_dim=8, clip_frames=2, frame_size=16).train()
    load(encoder, "vidcsl", path, "r3d_18", bgr=True)
    assert encoder.training
    clips = torch.rand(2, 3, 2, 16, 16, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(encoder.backbone(clips), theirs(clips.flip(1)))
    rearranged = Encoder(Twice(rearranged=True), feature_dim=8, clip_frames=2, frame_size=16)
    path = saved(tmp_path / "other.pt", {"method": state_of(rearranged)})
    with pytest.raises(UserError, match="learned on BGR pixels cannot be flipped"):
        load(rearranged, "vidcsl", path, "r3d_18", bgr=True)


class Evil:
    def __reduce__(self):
        return (print, ("the pickle ran",))


@pytest.mark.parametrize(
    "prefix", ["module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module."]
)
@pytest.mark.parametrize("format", ["torchvision", "vidcsl"])
def test_prefixes_of_wrapped_models_are_ignored(tmp_path, prefix, format):
    encoder = ENCODERS["r3d_18"](clip_frames=4, frame_size=32, width=4)
    state = encoder.backbone.state_dict()
    within = "" if format == "torchvision" else "encoder.backbone."
    document = {f"{prefix}{within}{key}": tensor for key, tensor in state.items()}
    torch.save({"method": document} if within else document, tmp_path / "wrapped.pt")
    other = ENCODERS["r3d_18"](clip_frames=4, frame_size=32, width=4)
    load_pretrained(other, parse_weights(f"{format}:{tmp_path}/wrapped.pt"), name="r3d_18")
    for key, tensor in other.backbone.state_dict().items():
        assert torch.equal(tensor, state[key]), key


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused(tmp_path, value):
    encoder = ENCODERS["r3d_18"](clip_frames=4, frame_size=32, width=4)
    state = encoder.backbone.state_dict()
    state["layer2.0.conv1.0.weight"][0] = value
    torch.save(state, tmp_path / "diverged.pt")
    with pytest.raises(
        UserError, match=r"layer2\.0\.conv1\.0\.weight holds NaN or infinite values"
    ):
        load_pretrained(
            encoder, parse_weights(f"torchvision:{tmp_path}/diverged.pt"), name="r3d_18"
        )


def test_bad_files_are_one_line(tmp_path, capsys):
    encoder = slim("slow_r50", WIDTH=4, DEPTH=1)
    evil = saved(tmp_path / "evil.pth", {"model_state": Evil()})
    damaged = tmp_path / "damaged.pth"
    damaged.write_bytes(b"nothing" * 50)
    text = tmp_path / "text.pth"
    text.write_text("hello")
    cut = tmp_path / "cut.pth"
    cut.write_bytes(saved(tmp_path / "whole.pth", {"w": torch.zeros(999)}).read_bytes()[:2000])
    broken = tmp_path / "broken.safetensors"
    broken.write_bytes(b"nothing" * 50)
    empty = saved(tmp_path / "empty.pth", {"model_state": {}, "epoch": 1})
    short = pyslowfast_state()
    del short["s1.pathway0_stem.bn.bias"]
    short["s2.pathway0_res7.branch2.a.weight"] = torch.zeros(2)
    short["surprise.weight"] = torch.zeros(2)
    short["s1.pathway0_stem.conv.weight"] = torch.zeros(8, 3, 1, 7, 7)
    missing = saved(tmp_path / "missing.pth", {"model_state": short})
    cases = {
        evil: ["would run code", "print"],
        damaged: ["damaged"],
        text: ["cannot read", "or not a torch checkpoint"],
        cut: ["cannot read", "it is damaged, or"],
        broken: ["cannot read"],
        empty: ["has no tensors"],
        tmp_path / "none.pth": ["no weights at"],
        missing: [
            "1 missing: stem.1.bias",
            "2 unknown: surprise.weight, layer1.7.conv1.weight",
            "stem.0.weight [8, 3, 1, 7, 7] instead of [4, 3, 1, 7, 7]",
        ],
    }
    for path, words in cases.items():
        with pytest.raises(UserError) as error:
            load(encoder, "pyslowfast", path, "slow_r50")
        assert "\n" not in str(error.value)
        assert all(word in str(error.value) for word in words), str(error.value)
    assert "the pickle ran" not in capsys.readouterr().out
    notes = " ".join(load(encoder, "pyslowfast", missing, "slow_r50", strict=False))
    assert "surprise.weight" in notes
    with pytest.raises(UserError, match=r"fit slow_r50, not MODEL\.NAME r3d_18"):
        load(slim("r3d_18"), "pyslowfast", missing, "r3d_18")
    for text in ("pyslowfast", "other:file.pth", "pyslowfast:"):
        with pytest.raises(UserError, match="give FORMAT:PATH"):
            parse_weights(text)
