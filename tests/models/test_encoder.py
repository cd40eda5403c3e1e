import weakref
from copy import deepcopy

import numpy as np
import pytest
import torch
from torch import nn

from vidcsl.models.batchnorm import ADVERSARIAL, add_auxiliary_batchnorm, batchnorm_in_use
from vidcsl.models.encoder import Classifier, in_chunks, projector
from vidcsl.models.resnet3d import r2plus1d_18


class Spy(nn.Module):
    """A small network with dropout that remembers its calls and what of them is still held."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(5, 32).double(), nn.Linear(32, 3).double()
        self.rows, self.saved = [], []

    def forward(self, inputs):
        ones = np.ones(32)  # saved for the gradient of the product, as an activation is
        self.rows.append(len(inputs))
        self.saved.append(weakref.ref(ones))
        hidden = self.first(inputs).tanh() * torch.from_numpy(ones)
        return self.second(nn.functional.dropout(hidden, 0.5, training=self.training))


def loss_of(outputs):
    return (outputs @ outputs.T).logsumexp(dim=1).sum()  # needs all rows at once


def step(module, inputs, size):
    module.zero_grad()
    inputs = inputs.clone().requires_grad_()
    outputs = in_chunks(module, inputs, size=size)
    loss = loss_of(outputs)
    loss.backward()
    return [loss.detach(), inputs.grad, *(p.grad for p in module.parameters())]


def test_a_step_in_chunks_equals_the_plain_step():
    torch.manual_seed(0)
    module, inputs = Spy().eval(), torch.rand(10, 5, dtype=torch.float64)
    for one, other in zip(step(module, inputs, 3), step(module, inputs, 10), strict=True):
        torch.testing.assert_close(one, other)


def test_dropout_is_replayed():
    torch.manual_seed(0)
    module, inputs = Spy().train(), torch.rand(10, 5, dtype=torch.float64)
    torch.manual_seed(1)
    found = step(module, inputs, 3)
    torch.manual_seed(1)
    module.zero_grad()
    loss = loss_of(torch.cat([module(chunk) for chunk in inputs.split(3)]))
    loss.backward()
    wanted = [loss, *(p.grad for p in module.parameters())]
    for one, other in zip([found[0], *found[2:]], wanted, strict=True):
        torch.testing.assert_close(one, other)


def test_holds_no_activation_between_forward_and_backward():
    module, inputs = Spy(), torch.rand(10, 5, dtype=torch.float64)
    outputs = in_chunks(module, inputs, size=3)
    assert module.rows == [3, 3, 3, 1]
    assert all(reference() is None for reference in module.saved)
    loss_of(outputs).backward()
    assert sorted(module.rows) == [1, 1, 3, 3, 3, 3, 3, 3]


def test_the_check_above_can_fail():
    module = Spy()
    outputs = module(torch.rand(10, 5, dtype=torch.float64))
    assert module.saved[0]() is not None
    del outputs
    assert module.saved[0]() is None


def test_without_gradient_every_chunk_passes_once():
    module = Spy()
    with torch.no_grad():
        in_chunks(module, torch.rand(7, 5, dtype=torch.float64), size=2)
    assert module.rows == [2, 2, 2, 1]


def encoder(*, chunk=0):
    torch.manual_seed(0)
    made = r2plus1d_18(clip_frames=4, frame_size=16, width=4).double()
    made.chunk = chunk
    return made


def gradients(made, clips):
    loss_of(made(clips)).backward()
    return {name: p.grad for name, p in made.named_parameters()}


@pytest.fixture(scope="module")
def clips():
    return torch.rand(6, 3, 4, 16, 16, dtype=torch.float64, generator=torch.Generator())


def test_encoder_with_frozen_norms_is_exact(clips):
    plain, chunked = encoder(), encoder(chunk=4)
    for made in (plain, chunked):
        made.train()
        for module in made.modules():
            if isinstance(module, nn.BatchNorm3d):
                module.eval()
    wanted = gradients(plain, clips)
    for name, gradient in gradients(chunked, clips).items():
        torch.testing.assert_close(gradient, wanted[name], rtol=1e-9, atol=1e-9)


def test_encoder_normalises_each_chunk_and_counts_it_once(clips):
    plain, chunked = encoder().train(), encoder(chunk=4).train()
    loss_of(torch.cat([plain(chunk) for chunk in clips.split(4)])).backward()
    found = gradients(chunked, clips)
    for name, parameter in plain.named_parameters():
        torch.testing.assert_close(found[name], parameter.grad, rtol=1e-9, atol=1e-9)
    for (name, one), other in zip(chunked.named_buffers(), plain.buffers(), strict=True):
        torch.testing.assert_close(one, other, msg=lambda text, name=name: f"{name}: {text}")


def test_recomputation_uses_the_same_batchnorm(clips):
    plain, chunked = (
        add_auxiliary_batchnorm(encoder().train()),
        add_auxiliary_batchnorm(encoder(chunk=4).train()),
    )
    for made in (plain, chunked):
        for name, parameter in made.named_parameters():
            if name.endswith(f"norms.{ADVERSARIAL}.weight"):
                nn.init.constant_(parameter, 0.5)  # else both sets would compute the same
    with batchnorm_in_use(plain, ADVERSARIAL):
        loss_of(torch.cat([plain(chunk) for chunk in clips.split(4)])).backward()
    with batchnorm_in_use(chunked, ADVERSARIAL):
        loss = loss_of(chunked(clips))
    loss.backward()  # the clean norms are in use by now
    for (name, one), other in zip(chunked.named_parameters(), plain.parameters(), strict=True):
        assert (one.grad is None) == (other.grad is None), name
        if one.grad is not None:
            torch.testing.assert_close(one.grad, other.grad, rtol=1e-9, atol=1e-9)


def test_evaluation_and_copies(clips):
    made = encoder(chunk=4)
    assert deepcopy(made).chunk == 4  # a momentum encoder passes chunks as well
    assert set(made.state_dict()) == set(encoder().state_dict())
    torch.testing.assert_close(made.eval()(clips), encoder().eval()(clips))


# Heads


@pytest.mark.parametrize(("layers", "linear"), [(1, 1), (2, 2), (3, 3)])
def test_projector_has_that_many_linear_layers(layers, linear):
    head = projector(in_dim=6, hidden_dim=8, out_dim=4, layers=layers)
    assert sum(isinstance(module, nn.Linear) for module in head.modules()) == linear
    assert head(torch.rand(5, 6)).shape == (5, 4)


def test_embeddings_of_a_batch_are_centred():
    embeddings = projector(in_dim=6, hidden_dim=8, out_dim=4, layers=2)(torch.rand(50, 6) + 3)
    torch.testing.assert_close(embeddings.mean(dim=0), torch.zeros(4), atol=1e-5, rtol=0)
    assert embeddings.std(dim=0).min() > 0.9


def test_a_projector_without_layers_returns_the_features():
    features = torch.rand(5, 6)
    assert projector(in_dim=6, hidden_dim=8, out_dim=4, layers=0)(features) is features


def test_classifier_is_the_head_on_the_features():
    encoder = r2plus1d_18(clip_frames=4, frame_size=16, width=4).eval()
    head = nn.Linear(encoder.feature_dim, 3)
    clips = torch.rand(2, 3, 4, 16, 16)
    torch.testing.assert_close(Classifier(encoder, head)(clips), head(encoder(clips)))
