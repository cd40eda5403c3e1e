import pytest
import torch

from vidcsl.evaluation.finetune import FineTuned, layer_decayed_groups
from vidcsl.methods import ClipBatch
from vidcsl.models import ENCODERS


def method(name="r3d_18", **options):
    shape = {"width": 4} if name == "r3d_18" else {"width": 24, "depth": 3}
    encoder = ENCODERS[name](clip_frames=4, frame_size=32, **shape)
    return FineTuned(encoder, feature_dim=encoder.feature_dim, classes=3, **options)


def batch(progress=0.0):
    generator = torch.Generator().manual_seed(0)
    clips = torch.rand(4, 1, 3, 4, 32, 32, generator=generator)
    ids = torch.arange(4)
    return ClipBatch(clips, ids % 3, ids, ids, progress)


@pytest.mark.parametrize(("name", "blocks"), [("r3d_18", 8), ("video_vit_s", 3)])
def test_learning_rates_shrink_block_by_block(name, blocks):
    tuned = method(name)
    groups = layer_decayed_groups(tuned, weight_decay=0.1, layer_decay=0.5)
    held = [id(p) for group in groups for p in group["params"]]
    assert sorted(held) == sorted(id(p) for p in tuned.parameters())
    scales = {group["lr_scale"] for group in groups}
    assert scales == {0.5**depth for depth in range(blocks + 2)}
    of = {id(p): group for group in groups for p in group["params"]}
    assert of[id(tuned.head.weight)]["lr_scale"] == 1
    first = next(tuned.encoder.parameters())
    assert of[id(first)]["lr_scale"] == 0.5 ** (blocks + 1)
    assert of[id(tuned.head.bias)]["weight_decay"] == 0
    assert of[id(tuned.head.weight)]["weight_decay"] == 0.1


def test_dropout_and_mixup_draw_from_the_batch_alone():
    plain, dropped, mixed = (
        method(**options) for options in ({}, {"dropout": 0.5}, {"mixup": 1.0})
    )
    for other in (dropped, mixed):
        other.load_state_dict(plain.state_dict())
        other.train()
        first = other(batch())["loss"]
        torch.rand(7)  # the global generator does not matter
        torch.testing.assert_close(other(batch())["loss"], first)
        assert not torch.allclose(other(batch(progress=0.5))["loss"], first)
        assert not torch.allclose(first, plain.train()(batch())["loss"])
        other.eval(), plain.eval()
        plain.load_state_dict(other.state_dict())
        torch.testing.assert_close(other(batch())["loss"], plain(batch())["loss"])


def test_the_mixed_loss_is_that_of_both_labels():
    tuned = method(mixup=1.0).train()
    made = batch()
    share, partners = tuned._partners(4, (0, 0, 0))
    clips = made.clips[:, 0]
    logits = tuned.head(tuned.encoder(share * clips + (1 - share) * clips[partners]))
    own, other = (
        torch.nn.functional.cross_entropy(logits, labels)
        for labels in (made.labels, made.labels[partners])
    )
    torch.testing.assert_close(tuned(made)["loss"], share * own + (1 - share) * other)
