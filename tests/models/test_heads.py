import pytest
import torch
from torch import nn

from vidcsl.models.encoder import Classifier, projector
from vidcsl.models.resnet3d import r2plus1d_18


@pytest.mark.parametrize(("layers", "linear"), [(1, 1), (2, 2), (3, 3)])
def test_projector_has_that_many_linear_layers(layers, linear):
    head = projector(in_dim=6, hidden_dim=8, out_dim=4, layers=layers)
    assert sum(isinstance(module, nn.Linear) for module in head.modules()) == linear
    assert head(torch.rand(5, 6)).shape == (5, 4)


def test_embeddings_of_a_batch_are_centred():
    embeddings = projector(in_dim=6, hidden_dim=8, out_dim=4, layers=2)(torch.rand(50, 6) + 3)
    torch.testing.assert_close(embeddings.mean(dim=0), torch.zeros(4), atol=1e-5, rtol=0)
    assert embeddings.std(dim=0).min() > 0.9


def test_no_layers_passes_features_through():
    features = torch.rand(5, 6)
    assert projector(in_dim=6, hidden_dim=8, out_dim=4, layers=0)(features) is features


def test_classifier_is_the_head_on_the_features():
    encoder = r2plus1d_18(clip_frames=4, frame_size=16, width=4).eval()
    head = nn.Linear(encoder.feature_dim, 3)
    clips = torch.rand(2, 3, 4, 16, 16)
    torch.testing.assert_close(Classifier(encoder, head)(clips), head(encoder(clips)))
