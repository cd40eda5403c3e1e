"""Every strategy learns what plain training learns."""

from functools import partial

import pytest
import torch
from torch import nn
from torch.distributed.tensor import DTensor

from tests.methods.made import inner, make_method
from tests.processes import run_in_processes
from tests.training.trainers import ALONE, STEPS, log_lines, losses, make_trainer
from vidcsl.distributed import DistributedContext
from vidcsl.errors import UserError
from vidcsl.methods import METHODS
from vidcsl.models import Encoder as Contract
from vidcsl.models.pretrained import read_tensors
from vidcsl.models.resnet3d import r2plus1d_18
from vidcsl.training.checkpoint import list_checkpoints, load_checkpoint, load_newest
from vidcsl.training.parallel import COMPILED, Strategy

FSDP = Strategy(parallel="fsdp")


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm, self.linear = nn.LayerNorm(9), nn.Linear(9, 9)

    def forward(self, rows):
        return rows + self.linear(self.norm(rows)).relu()


class Encoder(nn.Module):
    """Blocks as a transformer has them, of a width that two processes cannot share evenly."""

    feature_dim = 9

    def __init__(self):
        super().__init__()
        self.stem, self.blocks = nn.Linear(96, 9), nn.Sequential(Block(), Block())

    def forward(self, clips):
        return self.blocks(self.stem(clips.flatten(1)))


def run(folder, *, encoder=Encoder, epochs=2, resume=None, **options):
    """Losses by step, and the weights in the end."""
    trainer = make_trainer(folder, encoder=encoder, epochs=epochs, double=True, **options)
    if resume:
        trainer.restore(load_checkpoint(resume))
    trainer.run()
    return losses(folder), trainer.learner.method.state_dict()


def assert_close(one, other):
    """Two training runs: the same but for the order of sums."""
    assert one[0] == pytest.approx({step: other[0][step] for step in one[0]}, rel=1e-6)
    for name, wanted in other[1].items():
        torch.testing.assert_close(one[1][name], wanted, rtol=1e-4, atol=1e-6)


def real(folder, **options):
    """One epoch of a slim R(2+1)D with its BatchNorms."""
    return run(folder, encoder=slim, epochs=1, **options)


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    return real(tmp_path_factory.mktemp("plain"))


@pytest.mark.parametrize(
    "options",
    [
        {"strategy": Strategy(recompute=True)},
        {"strategy": Strategy(channels_last=False)},
        {"strategy": Strategy(parallel="fsdp")},  # with one process nothing is sharded
        {"optimiser": partial(torch.optim.AdamW, fused=True)},
    ],
)
def test_a_strategy_changes_nothing_that_is_learned(tmp_path, plain, options):
    assert_close(real(tmp_path, **options), plain)


def test_recomputed_blocks_hold_no_activations():
    def held(strategy):
        torch.manual_seed(0)
        encoder, sizes = Encoder(), []
        strategy.prepare(nn.ModuleDict({"encoder": encoder}), ALONE)

        def pack(tensor):
            sizes.append(tensor.numel())
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            encoder(torch.rand(50, 96))
        return [size for size in sizes if size >= 50 * 9]

    assert held(Strategy(recompute=True)) == [50 * 96, 50 * 9, 50 * 9]  # what each was given
    assert len(held(Strategy())) > 5


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_half_precision_stays_near(tmp_path, precision):
    options = {"encoder": Encoder, "optimiser": torch.optim.SGD}
    make_trainer(tmp_path, precision=precision, **options).run()
    make_trainer(tmp_path / "exact", **options).run()
    assert losses(tmp_path) == pytest.approx(losses(tmp_path / "exact"), rel=0.1)
    assert losses(tmp_path) != losses(tmp_path / "exact")
    saved = load_newest(tmp_path / "checkpoints")["precision"]
    assert bool(saved) == (precision == "float16")


def test_an_overflow_of_float16_is_left_out_and_the_scale_lowered(tmp_path):
    trainer = make_trainer(tmp_path, encoder=Encoder, precision="float16", epochs=1)
    trainer.learner.precision.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**40)
    before = trainer.learner.method.encoder.stem.weight.clone()
    trainer.run()
    assert "gradient_norm" not in log_lines(tmp_path)[0]
    assert torch.equal(trainer.learner.method.encoder.stem.weight, before)
    scale = load_newest(tmp_path / "checkpoints")["precision"]["scale"]
    assert scale == 2.0 ** (40 - STEPS)
    again = make_trainer(tmp_path, encoder=Encoder, precision="float16")
    again.restore(load_newest(tmp_path / "checkpoints"))
    assert again.learner.precision.scaler.get_scale() == scale


@pytest.mark.parametrize("name", METHODS)
def test_chunks_are_the_whole_batch(tmp_path, name):
    """Accumulation: all embeddings, then the loss, then gradients chunk by chunk, then one step."""

    def encoder(chunk):
        made = Contract(Encoder(), feature_dim=9, clip_frames=2, frame_size=4)
        made.chunk = chunk
        return made

    whole = run(tmp_path / "whole", encoder=partial(encoder, 0), method=name, epochs=1)
    assert_close(run(tmp_path / "in", encoder=partial(encoder, 3), method=name, epochs=1), whole)


def test_a_compiled_encoder_trains_as_a_plain_one(tmp_path, monkeypatch):
    """Traced, and differentiated ahead; the last part, code for a GPU, is tried where there is one.

    On a CPU that part, Inductor's C++, takes a minute.
    """
    compiled = torch.compile
    monkeypatch.setattr(torch, "compile", lambda f, mode: compiled(f, backend="aot_eager"))
    for method, strategy in [
        ("moco_v2", Strategy(compiled="default")),
        ("simclr", Strategy(compiled="default", recompute=True)),
    ]:
        exact = run(tmp_path / method, epochs=1, method=method)
        traced = run(tmp_path / f"{method}_traced", epochs=1, method=method, strategy=strategy)
        assert_close(traced, exact)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="CUDA graphs need a GPU")
@pytest.mark.parametrize("mode", COMPILED)
def test_compiled_on_a_gpu(tmp_path, mode):
    distributed = DistributedContext(rank=0, size=1, device=torch.device("cuda", 0))
    for method in ("simclr", "moco_v2"):
        found = [
            run(
                tmp_path / f"{method}{compiled}",
                distributed=distributed,
                method=method,
                strategy=Strategy(compiled=compiled),
            )
            for compiled in ("", mode)
        ]
        assert_close(*found)


def first_epoch(folder):
    return next(path for path in list_checkpoints(folder / "checkpoints") if "00001" in path.name)


def slim():
    return r2plus1d_18(clip_frames=2, frame_size=4, width=4)


def train_sharded(distributed, folder):
    convolved = make_method(
        "moco_v2", encoder=slim, distributed=distributed
    )  # its weights lie channels last
    FSDP.prepare(convolved, distributed)
    assert all(isinstance(parameter, DTensor) for parameter in convolved.parameters())
    run(folder / "moco_v2", distributed=distributed, method="moco_v2", strategy=FSDP)
    run(folder / "swav", distributed=distributed, method="swav", strategy=FSDP, epochs=1)
    from_one = first_epoch(folder / "plain")
    run(
        folder / "from_one",
        distributed=distributed,
        method="moco_v2",
        strategy=FSDP,
        resume=from_one,
    )


def test_fsdp_does_not_go_with_an_attack_in_each_step():
    distributed = DistributedContext(rank=0, size=2, device=torch.device("cpu"))
    with pytest.raises(UserError, match=r"fsdp does not go with an attack in each step"):
        FSDP.prepare(make_method("acl", attack=inner()), distributed)


def test_fsdp_trains_as_one_process_and_its_checkpoints_fit_any_number(tmp_path, capsys):
    plain = run(tmp_path / "plain", method="moco_v2")
    run_in_processes(train_sharded, 2, tmp_path)
    for name in ("moco_v2", "from_one"):
        newest = tmp_path / name / "checkpoints/epoch00002_step000000.sharded"
        assert_close((losses(tmp_path / name), load_checkpoint(newest)["method"]), plain)
    wanted = run(tmp_path / "swav_alone", method="swav", epochs=1)
    found = load_newest(tmp_path / "swav/checkpoints")["method"]
    assert_close((losses(tmp_path / "swav"), found), wanted)

    first = first_epoch(tmp_path / "moco_v2")
    assert len(list(first.glob("*.distcp"))) == 2
    for name, weight in read_tensors(first, containers=("method",)).items():
        assert torch.equal(weight, load_checkpoint(first)["method"][name])
    resumed = run(tmp_path / "to_one", method="moco_v2", resume=first)
    assert min(resumed[0]) == STEPS + 1
    assert_close(resumed, plain)

    newest = tmp_path / "moco_v2/checkpoints/epoch00002_step000000.sharded"
    older_name = newest.rename(newest.with_suffix(".pieces"))  # of checkpoints of earlier versions
    assert load_newest(newest.parent)["position"] == {"epoch": 2, "step": 0}
    older_name.rename(newest)
    damaged = next(newest.glob("__1_*.distcp"))
    content = bytearray(damaged.read_bytes())
    content[len(content) // 2] ^= 1
    damaged.write_bytes(content)
    capsys.readouterr()
    assert load_newest(newest.parent)["position"] == {"epoch": 1, "step": 0}
    said = capsys.readouterr().err
    assert f"{damaged.name} is damaged" in said
    assert f"the one before is used: {first.name}" in said
