import numpy as np
import pytest
import torch

from tests.tiny_job import arguments, results_of, show_again
from vidcsl.cli import main
from vidcsl.data.lists import read_list
from vidcsl.data.synthetic import generate
from vidcsl.methods.false_negatives import LabelOracle, Samples
from vidcsl.methods.false_negatives.detector import FlaggedPair, RecordingDetector
from vidcsl.pipelines.flagged_pairs import choose

WORDS = ("METHOD.NAME", "moco_v2", "METHOD.QUEUE", 16, "TRAIN.EPOCHS", 1, "TRAIN.WARMUP_EPOCHS", 0)
WORDS += ("FALSE_NEGATIVES.DETECTOR", "adaptive", "FALSE_NEGATIVES.CEILING", 0.5)
WORDS += ("FALSE_NEGATIVES.START", 0, "FALSE_NEGATIVES.RAMP", 0, "FALSE_NEGATIVES.EXAMPLES", 2)
WORDS += ("EVALUATE.TRAIN_VIEWS", 1, "EVALUATE.TEST_VIEWS", 1, "ATTACK.RUNS", "[]")
WORDS += ("CORRUPT.NAMES", "[P/gaussian_noise, C/contrast, P/jpeg]", "CORRUPT.EXAMPLES", 2)


def test_recording_flags_what_the_detector_flags_and_records_pairs_of_known_classes():
    ids, labels = torch.arange(4), torch.tensor([0, 0, 1, -1])
    samples = Samples(videos=ids, groups=ids, labels=labels, views=torch.zeros_like(ids))
    scores, negatives = torch.arange(16.0).view(4, 4), ~torch.eye(4, dtype=torch.bool)

    class Everything(LabelOracle):
        def forward(self, scores, negatives, anchors, candidates, progress):
            return negatives

    recording = RecordingDetector(Everything())
    flagged = recording(scores, negatives, samples, samples, 1.0)
    assert torch.equal(flagged, negatives)
    assert FlaggedPair(0, 1, 1.0, True) in recording.found
    assert FlaggedPair(2, 0, 8.0, False) in recording.found
    assert len(recording.found) == 6  # none of video 3, whose class nobody knows


def test_the_most_similar_pairs_are_chosen_and_no_video_twice():
    found = [
        FlaggedPair(0, 1, 0.9, True),
        FlaggedPair(1, 0, 0.9, True),
        FlaggedPair(1, 2, 0.8, True),
        FlaggedPair(3, 4, 0.7, True),
        FlaggedPair(5, 6, 0.6, False),
        FlaggedPair(5, 9, 0.99, False),
    ]
    chosen = choose(found, known=set(range(9)), most=2)
    assert chosen == [found[0], found[3], found[4]]


@pytest.fixture(scope="module")
def finished(config, tmp_path_factory):
    root = tmp_path_factory.mktemp("run")
    generate(
        root, classes=("sway", "bob"), sources_per_class=8, clips_per_source=1, frames=12, size=32
    )
    show_again(root)
    assert main(["train", *arguments(root, config, root / "run", *WORDS)]) == 0
    return root


def test_a_run_keeps_flagged_pairs_with_their_classes(finished):
    stored = np.load(finished / "run" / "artifacts" / "pairs.npz")
    count = len(stored["right"])
    assert count > 0
    assert (stored["correct"] == stored["right"]).all()  # the older name
    assert stored["anchors"].shape == stored["candidates"].shape == (count, 3, 24, 24, 3)
    # The same frames as they are in the file, square ones with grey at both sides.
    originals = stored["originals"]
    assert originals.shape == (count, 2, 3, 96, 128, 3)
    assert (originals[..., :16, :] == 128).all()
    assert (originals[..., 16:112, :].std(axis=(-2, -3)) > 0).all()
    assert ((stored["classes"][:, 0] == stored["classes"][:, 1]) == stored["right"]).all()
    train = read_list(finished / "train.csv", root=finished)
    classes = {video.path.name: train.classes[video.label] for video in train.videos}
    for videos, names in zip(stored["videos"], stored["classes"], strict=True):
        assert [classes[video] for video in videos] == list(names)


def test_a_run_keeps_clips_of_the_corruptions_that_hurt_most(finished):
    results = results_of(finished / "run")["corruptions"]
    means = {f"{s}/{n}": np.mean(v) for s in ("P", "C") for n, v in results[s].items()}
    files = sorted((finished / "run" / "artifacts").glob("corruption_*.npz"))
    kept = [path.stem.removeprefix("corruption_").replace(".", "/") for path in files]
    assert len(kept) == 2
    assert max(means[name] for name in kept) <= min(v for k, v in means.items() if k not in kept)
    stored = np.load(files[0])
    assert stored["frames"].shape == (3, 4, 24, 24, 3)
    assert stored["predictions"][0] == stored["label"]
    assert (stored["frames"][0] != stored["frames"][2]).any()


def test_neighbours_are_other_videos(finished):
    stored = np.load(finished / "run" / "artifacts" / "projection.npz")
    near = stored["neighbours"]
    assert near.shape == (len(stored["labels"]), 3)  # of four test videos
    assert all(row not in others for row, others in enumerate(near.tolist()))
