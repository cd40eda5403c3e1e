"""Videos to clips, side by side with what else can be installed: milliseconds of processor time.

    python benchmarks/data.py --videos FOLDER [--peers FOLDER] [--parts PART ...] [--json FILE]

FOLDER holds original files, such as UCF101's. A training sample is two views of 16 frames, stride
2, a random crop resized to 112 x 112 and flipped with probability one half; a test sample is 10
clips of 16 frames x 3 crops. Both end as float32 in [0, 1], ready for the model. `--peers` is a
folder that `pip install --target` filled, put at the end of the path.

mmaction2 refuses mmcv-lite 2.2, the only one with a wheel; here that claims to be 2.1, which its
video pipelines do not notice. PyTorchVideo's release imports a module that torchvision has renamed;
it is given under its old name.
"""

import random
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import av
import numpy as np
import torch
from common import Report, Times, arguments, interleaved, peer
from torchvision.transforms import v2

from vidcsl.augment.pipeline import EvalCrop, TrainAugmentation
from vidcsl.augment.transforms import RandomColour, RandomResizedCrop
from vidcsl.data import sampling
from vidcsl.data.dataset import ClipDataset
from vidcsl.data.lists import Video, VideoList
from vidcsl.data.loader import build_loader, collate
from vidcsl.data.prepare.transcode import Settings, encode
from vidcsl.data.readers import open_reader

PARTS = ("training", "testing", "decoding", "loading")
SIZE, FRAMES, STRIDE, SHORT_SIDE = 112, 16, 2, 128
AREA, ASPECT = (0.3, 1.0), (0.5, 2.0)
SHAPE = {"frames": FRAMES, "stride": STRIDE}
Run = Callable[[Path], Any]


def main() -> None:
    parser = arguments(__doc__.partition("\n")[0])
    parser.add_argument("--videos", type=Path, required=True)
    parser.add_argument("--peers", type=Path, help="folder of `pip install --target`")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    args = parser.parse_args()
    if args.peers:
        sys.path.append(str(args.peers))
    torch.set_num_threads(1)
    report = Report("data", ("torchvision", "av", "decord", "torchcodec", "mmaction2"))
    originals = sorted(args.videos.rglob("*.avi")) or sorted(args.videos.rglob("*.mp4"))
    if "training" in args.parts:
        with tempfile.TemporaryDirectory() as folder:
            small = transcoded(originals, Path(folder))
            training(report, originals, small, args.repeats)
    for name, part in (("testing", testing), ("decoding", decoding), ("loading", loading)):
        if name in args.parts:
            part(report, originals, args.repeats)
    report.finish(args.json)


def transcoded(originals: Sequence[Path], folder: Path) -> list[Path]:
    """Small copies with short groups of pictures, as `vidcsl prepare transcode` makes them."""
    settings = Settings(short_side=SHORT_SIDE, gop=12)
    scratch = folder / "scratch"
    scratch.mkdir()
    for k, path in enumerate(originals):
        encode(path, f"{k:04d}.mp4", out_root=folder, scratch=scratch, settings=settings)
    return sorted(folder.glob("*.mp4"))


def training(report: Report, originals: list[Path], small: list[Path], repeats: int) -> None:
    """Two random views of every video, cropped and flipped."""
    peers = training_peers()
    runs = {f"{name}, originals": over(run, originals) for name, run in peers.items()}
    runs["vidcsl, originals"] = over(ours_training(originals), originals)
    runs["vidcsl, transcoded"] = over(ours_training(small), small)
    runs |= {f"{name}, transcoded": over(run, small) for name, run in peers.items()}
    times = shown(report, "training sample", runs, len(originals), repeats)
    for rival in peers:
        for name, wanted in (("originals", 1.5), ("transcoded", 4.0)):
            ratio = times[f"{rival}, originals"].median / times[f"vidcsl, {name}"].median
            what = f"training sample from {name}, times faster than {rival} from originals"
            report.target(what, measured=ratio, wanted=f">= {wanted}", met=ratio >= wanted)


def testing(report: Report, originals: list[Path], repeats: int) -> None:
    """Ten clips of every video, three crops each."""
    runs = {"vidcsl, 10x3": over(ours_testing(originals), originals)}
    if mmaction := mmaction_transforms():
        runs["mmaction2, 10x3"] = over(mmaction_testing(mmaction), originals)
    times = shown(report, "test sample", runs, len(originals), repeats)
    if mmaction:
        ratio = times["mmaction2, 10x3"].median / times["vidcsl, 10x3"].median
        what = "10x3 test views, times faster than mmaction2"
        report.target(what, measured=ratio, wanted=">= 2", met=ratio >= 2)


def decoding(report: Report, originals: list[Path], repeats: int) -> None:
    """One clip as frames, by the reader and by the bare calls of its library."""
    starts = {path: centre(path) for path in originals}
    runs = {
        "bare PyAV": over(lambda path: bare(path, starts[path]), originals),
        "reader": over(lambda path: read(path, starts[path]), originals),
    }
    times = shown(report, "decode", runs, len(originals), repeats)
    ratio = times["reader"].median / times["bare PyAV"].median
    what = "decode, times the bare library call"
    report.target(what, measured=ratio, wanted="<= 1.1", met=ratio <= 1.1)


def loading(report: Report, originals: list[Path], repeats: int) -> None:
    """An epoch of batches, and the same samples fetched and joined one batch after another."""
    dataset = training_set(originals)
    loader = build_loader(dataset, batch_size=10, shuffle=True, drop_last=True)
    keys = [[(0, k) for k in order] for order in loader_order(loader)]
    runs = {
        "samples": lambda: [collate([dataset[key] for key in batch]) for batch in keys],
        "loader": lambda: list(loader.epoch(0)),
    }
    times = shown(report, "loader", runs, len(keys) * 10, repeats)
    share = times["loader"].median / times["samples"].median - 1
    what = "loader's own overhead, share"
    report.target(what, measured=share, wanted="< 0.05", met=share < 0.05)


def over(run: Run, paths: Sequence[Path]) -> Callable[[], None]:
    def all_of_them() -> None:
        for path in paths:
            run(path)

    return all_of_them


def shown(
    report: Report, what: str, runs: dict[str, Callable[[], Any]], videos: int, repeats: int
) -> dict[str, Times]:
    times = interleaved(runs, repeats=repeats, clock=time.process_time)
    for name, each in times.items():
        report.row(what=what, of=name, ms=1000 * each.median / videos, spread=each.spread)
    return times


# Ours ---------------------------------------------------------------------------------------------


def training_set(paths: Sequence[Path]) -> ClipDataset:
    videos = VideoList(tuple(map(Video, paths)), classes=(), source="benchmark")
    return ClipDataset(
        videos=videos,
        sampler=two_random_clips,
        short_side=SHORT_SIDE,
        seed=0,
        cropper=augmentation(),
        timeout=60,
    )


def two_random_clips(frames: int, _: float, rng: np.random.Generator) -> np.ndarray:
    return sampling.fit_length(
        sampling.random_clips(frames, clips=2, rng=rng, **SHAPE), frames, policy="loop"
    )


def augmentation() -> TrainAugmentation:
    return TrainAugmentation(
        size=SIZE,
        cropped=True,
        crop=RandomResizedCrop(area=AREA, aspect=ASPECT),
        colour=RandomColour(jitter_probability=0.0, gray_probability=0.0),
    )


def ours_training(paths: Sequence[Path]) -> Run:
    dataset, augment = training_set(paths), augmentation()
    number = {path: k for k, path in enumerate(paths)}
    epochs = iter(range(10**9))

    def run(path: Path) -> torch.Tensor:
        batch = collate([dataset[(next(epochs), number[path])]])
        return augment(batch.frames, batch.sizes, batch.indices)

    return run


def ours_testing(paths: Sequence[Path]) -> Run:
    videos = VideoList(tuple(map(Video, paths)), classes=(), source="benchmark")
    dataset = ClipDataset(videos=videos, sampler=ten_clips, short_side=SIZE, seed=0, timeout=60)
    number = {path: k for k, path in enumerate(paths)}
    crop = EvalCrop(size=SIZE, crops=3)

    def run(path: Path) -> torch.Tensor:
        batch = collate([dataset[(0, number[path])]])
        return crop(batch.frames, batch.sizes)

    return run


def ten_clips(frames: int, *_: object) -> np.ndarray:
    return sampling.fit_length(
        sampling.uniform_clips(frames, clips=10, **SHAPE), frames, policy="loop"
    )


def loader_order(loader: Any) -> list[list[int]]:
    return [batch.indices.tolist() for batch in loader.epoch(0)]


def centre(path: Path) -> np.ndarray:
    with open_reader(path) as reader:
        clip = sampling.uniform_clips(reader.num_frames, clips=1, **SHAPE)[0]
        return sampling.fit_length(clip, reader.num_frames, policy="repeat_last")


def read(path: Path, clip: np.ndarray) -> np.ndarray:
    with open_reader(path, short_side=SHORT_SIDE) as reader:
        return reader.read(clip)


def bare(path: Path, clip: np.ndarray) -> np.ndarray:
    """Seek by time, decode, scale, copy: what a reader cannot do without."""
    wanted, frames = set(clip.tolist()), []
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        stream.thread_type = "NONE"
        scaler = av.video.reformatter.VideoReformatter()
        tick = 1 / (stream.average_rate * stream.time_base)  # of the clock, from frame to frame
        # Files whose frames have no time stamps in order can only be walked through.
        jump = not (container.format.name == "avi" and stream.codec_context.has_b_frames)
        if jump:
            container.seek(int(clip[0] * tick), stream=stream)
        for count, frame in enumerate(container.decode(stream)):
            number = round(frame.pts / tick) if jump else count
            if number in wanted:
                width = round(frame.width * SHORT_SIDE / frame.height)
                small = scaler.reformat(frame, width, SHORT_SIDE, "gbrp", interpolation="BILINEAR")
                frames.append(small.to_ndarray())
            if number >= clip[-1]:
                break
    return np.stack(frames)


# Others -------------------------------------------------------------------------------------------


def training_peers() -> dict[str, Run]:
    """Every peer that can be imported, with what its own pipeline does for the same sample."""
    found: dict[str, Run] = {}
    if decord := peer("decord"):
        found["decord + torchvision"] = partial(plain_training, partial(by_decord, decord))
    if decoders := peer("torchcodec.decoders", package="torchcodec"):
        found["torchcodec + torchvision"] = partial(
            plain_training, partial(by_torchcodec, decoders)
        )
    if mmaction := mmaction_transforms():
        found["mmaction2"] = mmaction_training(mmaction)
    if videos := pytorchvideo():
        found["PyTorchVideo"] = partial(plain_training, partial(by_pytorchvideo, videos))
    return found


def plain_training(decode: Callable[[Path], list[torch.Tensor]], path: Path) -> torch.Tensor:
    """Frames of two clips [T, 3, H, W], each cropped and flipped by torchvision."""
    crop = v2.Compose(
        [v2.RandomResizedCrop(SIZE, AREA, ASPECT, antialias=True), v2.RandomHorizontalFlip()]
    )
    views = [crop(clip).transpose(0, 1) for clip in decode(path)]
    return torch.stack(views).float().div_(255)


def by_decord(decord: Any, path: Path) -> list[torch.Tensor]:
    reader = decord.VideoReader(str(path), num_threads=1)
    clips = two_random_clips(len(reader), 25.0, np.random.default_rng(random.getrandbits(32)))
    frames = torch.from_numpy(reader.get_batch(clips.reshape(-1)).asnumpy())
    return list(frames.permute(0, 3, 1, 2).unflatten(0, clips.shape))


def by_torchcodec(decoders: Any, path: Path) -> list[torch.Tensor]:
    reader = decoders.VideoDecoder(str(path), num_ffmpeg_threads=1)
    clips = two_random_clips(len(reader), 25.0, np.random.default_rng(random.getrandbits(32)))
    return list(reader.get_frames_at(clips.reshape(-1).tolist()).data.unflatten(0, clips.shape))


def pytorchvideo() -> Any:
    renamed = peer("torchvision.transforms._functional_tensor")
    sys.modules.setdefault("torchvision.transforms.functional_tensor", renamed)  # type: ignore[arg-type]
    return peer("pytorchvideo.data.encoded_video", package="pytorchvideo")


def by_pytorchvideo(videos: Any, path: Path) -> list[torch.Tensor]:
    video = videos.EncodedVideo.from_path(str(path), decode_audio=False)
    clips = []
    for _ in range(2):
        length = FRAMES * STRIDE / 25
        start = random.uniform(0, max(0.0, float(video.duration) - length))
        frames = video.get_clip(start, start + length)["video"]  # float [3, T', H, W]
        places = torch.linspace(0, frames.shape[1] - 1, FRAMES).long()
        clips.append(frames[:, places].transpose(0, 1).byte())
    video.close()
    return clips


def mmaction_transforms() -> Any:
    if mmcv := peer("mmcv"):
        mmcv.__version__ = "2.1.0"
    return mmcv and peer("mmaction.datasets.transforms", package="mmaction2")


def mmaction_training(transforms: Any) -> Run:
    steps = [
        transforms.DecordInit(num_threads=1),
        transforms.SampleFrames(clip_len=FRAMES, frame_interval=STRIDE, num_clips=2),
        transforms.DecordDecode(),
        transforms.RandomResizedCrop(area_range=AREA, aspect_ratio_range=ASPECT),
        transforms.Resize(scale=(SIZE, SIZE), keep_ratio=False),
        transforms.Flip(flip_ratio=0.5),
        transforms.FormatShape(input_format="NCTHW"),
    ]
    return partial(run_mmaction, steps)


def mmaction_testing(transforms: Any) -> Run:
    steps = [
        transforms.DecordInit(num_threads=1),
        transforms.SampleFrames(
            clip_len=FRAMES, frame_interval=STRIDE, num_clips=10, test_mode=True
        ),
        transforms.DecordDecode(),
        transforms.Resize(scale=(-1, SIZE)),
        transforms.ThreeCrop(crop_size=SIZE),
        transforms.FormatShape(input_format="NCTHW"),
    ]
    return partial(run_mmaction, steps)


def run_mmaction(steps: Sequence[Any], path: Path) -> torch.Tensor:
    sample = {"filename": str(path), "start_index": 0, "modality": "RGB"}
    for step in steps:
        sample = step(sample)
    return torch.from_numpy(sample["imgs"]).float().div_(255)


if __name__ == "__main__":
    main()
