import pytest
import torch
from torch import nn

from tests.processes import run_in_processes
from vidcsl.errors import UserError
from vidcsl.models.batchnorm import (
    AuxiliaryBatchNorm,
    add_auxiliary_batchnorm,
    batchnorm_in_use,
    idle_parameters,
)
from vidcsl.models.resnet3d import r3d_18
from vidcsl.training.parallel import synchronise_batchnorm


def dual():
    return add_auxiliary_batchnorm(r3d_18(clip_frames=4, frame_size=24, width=4, depth=1)).eval()


def test_each_set_has_its_own_statistics_and_weights():
    encoder = dual()
    clips = torch.rand(2, 3, 4, 24, 24)
    clean = encoder(clips)
    with batchnorm_in_use(encoder, "adversarial"):
        torch.testing.assert_close(encoder(clips), clean)  # copies, at the start
        encoder.train()
        encoder(clips * 3)
        encoder.eval()
        assert not torch.allclose(encoder(clips), clean, atol=1e-4)
    torch.testing.assert_close(encoder(clips), clean)
    keys = encoder.state_dict()
    assert "backbone.stem.1.norms.clean.running_mean" in keys
    assert "backbone.stem.1.norms.adversarial.weight" in keys


def test_checkpoints_hold_all_sets():
    one, other = dual(), dual()
    nn.init.normal_(one.backbone.layer4[0].conv1[0].weight)
    clips = torch.rand(2, 3, 4, 24, 24)
    with batchnorm_in_use(one, "adversarial"):
        one.train()
        one(clips)
        one.eval()
        wanted = one(clips)
    other.load_state_dict(one.state_dict(), strict=True)
    with batchnorm_in_use(other, "adversarial"):
        torch.testing.assert_close(other(clips), wanted)


def test_blocks_nest_and_end_also_after_an_error():
    norm = add_auxiliary_batchnorm(nn.Sequential(nn.BatchNorm1d(3)), ("a", "b", "c"))
    with batchnorm_in_use(norm, "b"):
        with pytest.raises(RuntimeError), batchnorm_in_use(norm, "c"):
            raise RuntimeError
        assert norm[0].active == "b"
    assert norm[0].active == "a"
    with pytest.raises(UserError, match="a, b, c"), batchnorm_in_use(norm, "d"):
        pass


def test_the_parameters_of_norms_that_are_not_in_use():
    norm = add_auxiliary_batchnorm(nn.Sequential(nn.BatchNorm1d(3)), ("a", "b", "c"))
    with batchnorm_in_use(norm, "b"):
        found = idle_parameters(norm)
    assert {id(each) for each in found} == {
        id(each) for name in "ac" for each in norm[0].norms[name].parameters()
    }


def trained(distributed):
    generator = torch.Generator().manual_seed(0)
    batch = torch.randn(8, 3, generator=generator)
    share = batch if distributed.size == 1 else batch[4 * distributed.rank :][:4]
    network = add_auxiliary_batchnorm(nn.Sequential(nn.BatchNorm1d(3)))
    network = synchronise_batchnorm(network, distributed)
    with batchnorm_in_use(network, "adversarial"):
        network(share)
    norms = network[0].norms
    return norms["adversarial"].running_mean, norms["clean"].running_mean


def test_two_processes_normalise_each_set_over_the_joined_batch():
    adversarial, clean = run_in_processes(trained, 2)[0]
    wanted = 0.1 * torch.randn(8, 3, generator=torch.Generator().manual_seed(0)).mean(dim=0)
    torch.testing.assert_close(adversarial, wanted)
    assert torch.equal(clean, torch.zeros(3))
    assert isinstance(
        add_auxiliary_batchnorm(nn.Sequential(nn.BatchNorm1d(3)))[0], AuxiliaryBatchNorm
    )
