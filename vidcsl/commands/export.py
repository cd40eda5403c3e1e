"""`vidcsl export`: an encoder as files that others can load."""

import argparse
from pathlib import Path

from fvcore.common.config import CfgNode

from vidcsl.commands.arguments import add_config, add_weights, with_weights
from vidcsl.config import load_config
from vidcsl.errors import UserError
from vidcsl.hub import PROGRAMS, export_encoder, push
from vidcsl.pipelines.model import build_encoder, load_weights_of
from vidcsl.pipelines.training import output_dir
from vidcsl.run_folder import RunFolder
from vidcsl.training.checkpoint import list_checkpoints

HELP = "write an encoder as safetensors and config, also as a torch.export or TorchScript program"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Which encoder, where to, and in what forms."""
    add_config(parser)
    add_weights(parser)
    parser.add_argument("--checkpoint", type=Path, help="default: the newest in OUTPUT_DIR")
    parser.add_argument("--out", type=Path, required=True, help="the folder to write")
    parser.add_argument(
        "--program", action="append", choices=list(PROGRAMS), default=[], help="as a program too"
    )
    parser.add_argument("--push", metavar="OWNER/NAME", help="upload to the Hugging Face hub")
    parser.add_argument("--private", action="store_true", help="as a private repository")


def run(args: argparse.Namespace) -> None:
    """Write the files and print their names."""
    cfg = load_config(args.cfg, with_weights(args))
    encoder = build_encoder(cfg)
    source = args.weights or f"vidcsl:{args.checkpoint or _newest(cfg)}"
    for note in load_weights_of(cfg, encoder, source=source):
        print(note)
    for path in export_encoder(encoder, cfg, args.out, programs=args.program):
        print(path)
    if args.push:
        print(push(args.out, args.push, private=args.private))


def _newest(cfg: CfgNode) -> Path:
    folder = RunFolder(output_dir(cfg)).checkpoints
    found = list_checkpoints(folder)
    if not found:
        raise UserError(
            f"no checkpoint in {folder}: train first, or give --checkpoint or --weights"
        )
    return found[-1]
