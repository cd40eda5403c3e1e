"""`vidcsl show` and `vidcsl doctor`: what there is to choose from, and whether it will work."""

import argparse
import json
import os
import textwrap
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from vidcsl.commands.arguments import add_config, config_of
from vidcsl.errors import UserError

if TYPE_CHECKING:
    from fvcore.common.config import CfgNode

PREFETCHED = 2  # batches that a worker of the loader holds

# The clips (frames, side) that the weights of these encoders are published for; others: 16 x 112.
PUBLISHED_CLIPS = {
    "r2plus1d_34_mmaction2": (8, 224),
    "s3d": (16, 224),
    "slow_r50": (8, 224),
    "swin3d_t": (32, 224),
    "swin3d_s": (32, 224),
    "swin3d_b": (32, 224),
    "frames": (8, 224),
    **dict.fromkeys(("mvit_v2_s", "video_vit_s", "video_vit_b", "video_vit_l"), (16, 224)),
}


def show(parser: argparse.ArgumentParser) -> None:
    """Sub-commands of `vidcsl show`."""
    things = parser.add_subparsers(metavar="THING", required=True)
    meaning = "pictures of a config's clips, before and after augmentation"
    clips = things.add_parser("clips", help=meaning, description=meaning)
    add_config(clips)
    clips.add_argument(
        "--part", choices=("train", "test"), default="train", help="which list (%(default)s)"
    )
    clips.add_argument("--epoch", type=int, default=0, help="epoch of training (%(default)s)")
    clips.add_argument("--samples", type=int, default=4, help="number of videos (%(default)s)")
    clips.add_argument("--out", type=Path, help="folder; default: clips in OUTPUT_DIR")
    clips.set_defaults(run=_show_clips)

    meaning = "encoders, their parameters and the FLOPs of one clip"
    models = things.add_parser("models", help=meaning, description=meaning)
    models.add_argument("names", nargs="*", help="encoders; default: all")
    models.add_argument("--cfg", help="show the encoder of this config")
    models.set_defaults(run=_show_models)

    meaning = "config keys: default, allowed values, meaning, and which shipped configs set them"
    options = things.add_parser("options", help=meaning, description=meaning)
    options.add_argument(
        "words", nargs="*", metavar="WORD", help="keys whose name or meaning has all these words"
    )
    options.set_defaults(run=_show_options)

    meaning = "a config as a whole, with all that it inherits; without NAME: which there are"
    config = things.add_parser("config", help=meaning, description=meaning)
    config.add_argument("cfg", nargs="?", metavar="NAME", help="a shipped config, or a file")
    config.add_argument(
        "overrides", nargs="*", metavar="KEY VALUE", help="options that override it"
    )
    config.set_defaults(run=_show_config)


def _show_clips(args: argparse.Namespace) -> None:
    from vidcsl.distributed import distributed_context
    from vidcsl.pipelines.preview import show as show_pictures
    from vidcsl.pipelines.training import output_dir

    cfg = config_of(args)
    with distributed_context("cpu") as distributed:
        paths = show_pictures(
            cfg,
            distributed,
            part=args.part,
            epoch=args.epoch,
            samples=args.samples,
            folder=args.out or output_dir(cfg) / "clips",
        )
    print("\n".join(str(path) for path in paths))


def _show_options(args: argparse.Namespace) -> None:
    from vidcsl.config import users_of
    from vidcsl.data.lists import shorten
    from vidcsl.options import OPTIONS
    from vidcsl.registry import allowed_values

    words = [word.lower() for word in args.words]
    exact = [key for key in OPTIONS if [key.lower()] == words]
    found = {
        key: option
        for key, option in OPTIONS.items()
        if key in exact
        or (not exact and all(word in f"{key} {option.meaning}".lower() for word in words))
    }
    if not found:
        raise UserError(f"no config key has {' and '.join(args.words)} in its name or meaning")
    users = users_of(found)
    for key, option in found.items():
        default = option.default if option.default != "" else "''"
        print(f"{key}  default {default}  ({allowed_values(option)})")
        print(textwrap.fill(option.meaning, 100, initial_indent="    ", subsequent_indent="    "))
        if users[key]:
            print(f"    set by: {shorten(users[key])}")


def _show_config(args: argparse.Namespace) -> None:
    from vidcsl.config import dump_config, shipped_configs

    if args.cfg:
        print(dump_config(config_of(args)), end="")
    else:
        print("\n".join(shipped_configs()))


def _show_models(args: argparse.Namespace) -> None:
    import torch

    from vidcsl import __version__
    from vidcsl.config import default_config, load_config
    from vidcsl.io import write_atomically
    from vidcsl.models import ENCODERS
    from vidcsl.models.encoder import cost_of
    from vidcsl.pipelines.model import build_encoder
    from vidcsl.run_folder import digest

    if unknown := [name for name in args.names if name not in ENCODERS]:
        raise UserError(f"no encoder is named {unknown[0]!r}; choose from {', '.join(ENCODERS)}")
    print(f"{'encoder':24} {'clip':>12} {'features':>8} {'parameters':>11} {'FLOPs':>9}")
    configs = [load_config(args.cfg)] if args.cfg else []
    for name in args.names or ([] if args.cfg else ENCODERS):
        cfg = default_config()
        cfg.MODEL.NAME = name
        cfg.DATA.FRAMES, cfg.MODEL.FRAME_SIZE = PUBLISHED_CLIPS.get(name, (16, 112))
        configs.append(cfg)
    # Counting all of them takes a minute, so what was counted once is kept.
    kept = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache"), "vidcsl", "costs.json")
    try:
        known = json.loads(kept.read_text())
    except (OSError, ValueError):
        known = {}
    for cfg in configs:
        of = {"model": str(cfg.MODEL), "frames": cfg.DATA.FRAMES, "vidcsl": __version__}
        key = digest({**of, "torch": torch.__version__})
        if key not in known:
            encoder = build_encoder(cfg)
            cost = cost_of(encoder)
            known[key] = [encoder.feature_dim, cost.parameters, cost.flops]
            with suppress(OSError):  # a home that cannot be written to costs time alone
                write_atomically(kept, json.dumps(known))
        features, parameters, flops = known[key]
        clip = f"{cfg.DATA.FRAMES}x{cfg.MODEL.FRAME_SIZE}x{cfg.MODEL.FRAME_SIZE}"
        print(
            f"{cfg.MODEL.NAME:24} {clip:>12} {features:8} {parameters / 1e6:9.2f} M "
            f"{flops / 1e9:7.2f} G",
            flush=True,
        )


def doctor(parser: argparse.ArgumentParser) -> None:
    """Arguments of `vidcsl doctor`."""
    add_config(parser, required=False)
    parser.set_defaults(run=_doctor)


def _doctor(args: argparse.Namespace) -> None:
    from vidcsl.doctor import (
        examine,
        examine_lists,
        examine_storage,
        examine_training,
        report,
    )

    if args.cfg:
        from vidcsl.pipelines.data import build_train_sampler
        from vidcsl.pipelines.training import output_dir

        cfg = config_of(args)
        findings = [*examine(), *examine_storage(output_dir(cfg), batches=_loader_bytes(cfg))]
        if not cfg.SYNTHETIC.ENABLED:  # rendered videos may not exist yet
            findings += examine_lists(
                root=cfg.DATA.ROOT,
                train=cfg.DATA.TRAIN_LIST,
                test=cfg.DATA.TEST_LIST,
                reader=cfg.DATA.READER,
                tolerated=cfg.DATA.DAMAGED_LIMIT,
                tolerated_test=float(cfg.DATA.ALLOW_DAMAGED_TEST),
                sampler=build_train_sampler(cfg),
                frames=cfg.DATA.FRAMES,
            )
            if cfg.TRAIN.ENABLED and (videos := _listed(cfg)):
                findings += examine_training(cfg, videos=videos)
    else:
        findings = [*examine(), *examine_storage(Path("runs"))]
    print(report(findings))
    broken = [finding.name for finding in findings if finding.broken and not finding.there]
    if broken:
        raise UserError(f"broken: {', '.join(broken)}")


def _listed(cfg: "CfgNode") -> int:
    """Videos of the training list; 0 if it cannot be read."""
    from vidcsl.data.lists import read_rows

    try:
        return len(read_rows(cfg.DATA.TRAIN_LIST)) if cfg.DATA.TRAIN_LIST else 0
    except UserError:
        return 0


def _loader_bytes(cfg: "CfgNode") -> int:
    """The most shared memory that the loaders of this machine hold: one process a GPU, 16:9."""
    import torch

    processes = max(1, torch.cuda.device_count())
    whole = cfg.DATA.SHORT_SIDE**2 * 16 // 9
    fed = cfg.MODEL.FRAME_SIZE**2 if cfg.AUGMENT.CROP_BY == "decoder" else whole
    trained = -(-cfg.TRAIN.BATCH // processes) * (cfg.DATA.CLIPS + cfg.FALSE_NEGATIVES.VOTERS) * fed
    views = max(cfg.EVALUATE.TRAIN_VIEWS, cfg.EVALUATE.TEST_VIEWS)
    tested = cfg.DATA.TEST_LIST or cfg.SYNTHETIC.ENABLED
    evaluated = cfg.EVALUATE.BATCH * views * whole if tested else 0
    batches = processes * cfg.DATA.WORKERS * PREFETCHED
    return int(batches * max(trained, evaluated) * 3 * cfg.DATA.FRAMES)
