import pytest
import torch

from vidcsl.config import default_config
from vidcsl.data.lists import VideoList
from vidcsl.distributed import DistributedContext
from vidcsl.errors import UserError
from vidcsl.methods import Method
from vidcsl.methods.method import MomentumEncoder
from vidcsl.pipelines.context import (
    EvaluationContext,
    blocks_of_process,
    fitted_weights,
    load_for_evaluation,
    subset,
)
from vidcsl.pipelines.model import build_encoder


@pytest.mark.parametrize("processes", [1, 2, 3, 5])
@pytest.mark.parametrize("done", [set(), {0, 1, 2, 3}, {0, 8, 9, 10, 11, 25}, set(range(13))])
def test_blocks_are_the_same_for_any_processes_and_whatever_is_done(processes, done):
    chosen = list(range(27))
    whole = [chosen[start : start + 4] for start in range(0, 27, 4)]
    seen = []
    for rank in range(processes):
        blocks = blocks_of_process(chosen, size=4, done=done, rank=rank, processes=processes)
        assert all(len(block) == 4 for block in blocks[:-1])  # a loader cuts them in the same way
        seen += blocks
    assert sorted(seen) == [block for block in whole if not done >= set(block)]


def test_a_subset_is_evenly_spread():
    assert subset(range(10), 0) == subset(range(10), 10) == subset(range(10), 99) == list(range(10))
    assert subset(range(10), 4) == [0, 3, 6, 9]


@pytest.mark.parametrize(
    ("key", "value"), [("HEADS", 4), ("POSITIONS", "rotary"), ("POOLING", "cls"), ("NAME", "x")]
)
def test_results_of_another_network_with_the_same_weights_have_other_settings(key, value):
    cfg = default_config()
    distributed = DistributedContext(rank=0, size=1, device=torch.device("cpu"))
    videos = VideoList((), ("a",), "list.csv")
    context = EvaluationContext(cfg, Method(torch.nn.Identity()), videos, distributed, None)
    before = context.settings(videos, "digest")
    assert context.settings(videos, "digest") == before
    cfg.MODEL[key] = value
    assert context.settings(videos, "digest") != before


def method(frames, **options):
    cfg = default_config()
    cfg.MODEL.NAME, cfg.DATA.FRAMES, cfg.MODEL.FRAME_SIZE = "video_vit_s", frames, 32
    shape = {"WIDTH": 24, "DEPTH": 1, "POSITIONS": "learned", **options}
    for key, value in shape.items():
        setattr(cfg.MODEL, key, value)
    return Method(build_encoder(cfg)).eval()


def test_a_checkpoint_is_fitted_to_clips_of_another_length_with_a_note():
    made, same, other = method(4), method(4), method(8)
    torch.nn.init.normal_(made.encoder.backbone.pos_embed)
    state = {**made.state_dict(), "projector.0.weight": torch.zeros(2)}
    assert load_for_evaluation(same, state, source="a.pt") == []
    clips = torch.rand(2, 3, 8, 32, 32)
    assert torch.equal(same.encoder(clips[:, :, :4]), made.encoder(clips[:, :, :4]))
    (note,) = load_for_evaluation(other, state, source="a.pt")
    assert note.startswith("a.pt: positions interpolated from 2 x 2 x 2 to 4 x 2 x 2")
    torch.testing.assert_close(other.encoder(clips), made.encoder(clips))
    with pytest.raises(UserError, match=r"a\.pt, encoder, holds another architecture"):
        load_for_evaluation(method(4, DEPTH=2), state, source="a.pt")


def test_a_momentum_encoder_is_fitted_with_its_encoder_and_noted_once():
    def followed(frames):
        made = method(frames)
        made.momentum_encoder = MomentumEncoder(made.encoder, torch.nn.Identity(), momentum=0.9)
        return made

    made, other = followed(4), followed(8)
    weights, notes = fitted_weights(other, made.state_dict())
    (note,) = notes
    assert note.startswith("positions interpolated")
    other.load_state_dict(weights)
    key = "encoder.backbone.pos_embed"
    assert torch.equal(weights[key], weights[f"momentum_encoder.{key}"])
