"""Collect what the record holds from the package as it is."""

import ast
import hashlib
import importlib
import json
import re
from collections.abc import Iterator
from contextlib import redirect_stdout, suppress
from io import StringIO
from pathlib import Path
from unittest.mock import patch

import numpy as np
import torch
from PIL import Image

from vidcsl.cli import main
from vidcsl.config import flat_values, load_config
from vidcsl.data.lists import Video, VideoList
from vidcsl.distributed import DistributedContext
from vidcsl.options import OPTIONS
from vidcsl.pipelines.method import build_method
from vidcsl.pipelines.model import build_encoder

ROOT = Path(__file__).parents[2]
RECORD = Path(__file__).with_name("record.json")
MOVED = Path(__file__).with_name("moved.json")
CLASSES = ("left", "right", "up", "down")
# Plain SGD: the adaptive optimisers turn a rounding error of a small gradient into a whole step.
TINY = """
DEVICE: cpu
PRECISION: float32
DATA: {FRAMES: 4, STRIDE: 1, SHORT_SIDE: 32, WORKERS: 0, READER: pictures}
AUGMENT: {CROP_BY: device}
MODEL: {WIDTH: 4, DEPTH: 1, FRAME_SIZE: 24}
METHOD: {TEMPERATURE: 1.0, PROJECTOR_HIDDEN: 16, PROJECTOR_DIM: 8, QUEUE: 16}
FALSE_NEGATIVES: {EXAMPLES: 0}
TRAIN: {EPOCHS: 1, BATCH: 8, LOG_EVERY: 1, LR: 0.002, LR_BATCH: 0, WARMUP_EPOCHS: 0}
ADVERSARIAL: {CLUSTERS: [5, 2], STEPS: 2}
EVALUATE: {TRAIN_VIEWS: 1, TEST_VIEWS: 1, KNN_K: 3}
ATTACK: {RUNS: [pgd/linf], EPS_LINF: [8], STEPS: 2, CHECK_CLIPS: 4}
CORRUPT: {NAMES: [gaussian_noise], EXAMPLES: 0}
REPORT: {ENABLED: false}
LOG: {TRACKERS: []}
"""
# Without a projector, whose last BatchNorm would enlarge the rounding errors of embeddings that lie
# close together, as those of a new encoder do.
BARE = ("METHOD.PROJECTOR_LAYERS", "0")
RUNS = {
    "simclr": (*BARE, "FALSE_NEGATIVES.DETECTOR", "labels"),
    "supervised": ("METHOD.NAME", "supervised", "DATA.TEST_LIST", ""),
    "moco_v2": ("METHOD.NAME", "moco_v2", "DATA.TEST_LIST", ""),
    "rocl": (*BARE, "METHOD.NAME", "rocl", "DATA.TEST_LIST", ""),
}
# What the smallest encoder of a family needs beside TINY.
SLIM = {
    "video_vit": ("MODEL.WIDTH", "24", "MODEL.FRAME_SIZE", "32"),
    "frames": ("MODEL.WIDTH", "0", "MODEL.FRAME_SIZE", "32", "MODEL.DEPTH", "0"),
    "s3d": ("MODEL.WIDTH", "0", "MODEL.DEPTH", "0", "DATA.FRAMES", "16"),
    "mvit": ("MODEL.WIDTH", "24", "MODEL.FRAME_SIZE", "32"),
    "swin3d": ("MODEL.WIDTH", "24", "MODEL.FRAME_SIZE", "32"),
}


def collect(folder: Path) -> dict:
    """The whole record; tiny runs are made in the folder."""
    return {
        "commands": commands(),
        "options": options(),
        "configs": configs(),
        "names": sorted(set(public_names())),
        "states": states(folder),
        **runs(folder),
    }


def write(record: dict) -> None:
    """One line an entry, so that a difference reads as one."""
    sections = []
    for name, section in record.items():
        if isinstance(section, list):
            lines = [json.dumps(entry) for entry in section]
            sections.append(f'"{name}": [\n' + ",\n".join(lines) + "\n]")
        else:
            lines = [f"{json.dumps(key)}: {json.dumps(value)}" for key, value in section.items()]
            sections.append(f'"{name}": {{\n' + ",\n".join(lines) + "\n}")
    RECORD.write_text("{\n" + ",\n".join(sections) + "\n}\n")


def commands() -> dict[str, list[str]]:
    """By command and sub-command, its options; in brackets those that may be left out."""
    found, todo = {}, [()]
    while todo:
        words = todo.pop()
        text = _help_of(words)
        usage, _, rest = text.partition("\n\n")
        # Brackets and choices as argparse writes them: "[--device {auto,cpu,cuda}]", "--out".
        options = re.findall(r"\[?--[\w-]+(?: \{[^}]*\})?", usage)
        closed = [word + "]" if word.startswith("[") else word for word in options]
        found[" ".join(("vidcsl", *words))] = sorted(closed)
        positional = rest.partition("positional arguments:\n")[2].partition("\n\n")[0]
        todo += [(*words, name) for name in re.findall(r"^ {4}(\w+)(?: |$)", positional, re.M)]
    return dict(sorted(found.items()))


def _help_of(words: tuple[str, ...]) -> str:
    out = StringIO()
    # Wide enough that the usage is not broken inside an option.
    wide = patch.dict("os.environ", {"COLUMNS": "2000", "NO_COLOR": "1"})
    with wide, redirect_stdout(out), suppress(SystemExit):
        main([*words, "--help"])
    return out.getvalue()


def options() -> dict[str, dict]:
    """By config key: default, and allowed values or range where it has any."""
    return {
        key: {
            "default": option.default,
            **({"choices": list(option.choices)} if option.choices else {}),
            **({"minimum": option.minimum} if option.minimum is not None else {}),
            **({"maximum": option.maximum} if option.maximum is not None else {}),
        }
        for key, option in OPTIONS.items()
    }


def configs() -> dict[str, dict]:
    """By shipped config, the values that it changes, its base's among them."""
    return {
        path.stem: {
            key: value
            for key, value in flat_values(load_config(path)).items()
            if value != OPTIONS[key].default
        }
        for path in sorted((ROOT / "configs").glob("*.yaml"))
    }


def public_names() -> Iterator[str]:
    """The names of the package that README, docs and benchmarks import, with their modules."""
    pages = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
    blocks = [re.findall(r"^```python\n(.*?)^```", page.read_text(), re.S | re.M) for page in pages]
    programs = [code for found in blocks for code in found]
    for notebook in sorted((ROOT / "docs").glob("*.ipynb")):
        cells = json.loads(notebook.read_text())["cells"]
        programs += ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    scripts = [ROOT / "hubconf.py", *sorted((ROOT / "benchmarks").glob("*.py"))]
    programs += [script.read_text() for script in scripts]
    for program in programs:
        # A notebook's `!command` and `%magic` are no Python.
        python = "\n".join(line for line in program.splitlines() if not re.match(r"\s*[!%]", line))
        for node in ast.walk(ast.parse(python)):
            if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "vidcsl":
                yield from (f"{node.module}.{alias.name}" for alias in node.names)
            if isinstance(node, ast.Import):
                yield from (a.name for a in node.names if a.name.split(".")[0] == "vidcsl")


def moved(name: str, table: dict[str, str]) -> str:
    """Where the name is now: itself, or as the table says of it or of the module that holds it."""
    parts = name.split(".")
    for end in range(len(parts), 0, -1):
        old = ".".join(parts[:end])
        if old in table:
            return ".".join([table[old], *parts[end:]])
    return name


def find(name: str) -> object:
    """The module or the attribute of a module that has this dotted name; KeyError without one."""
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError:
        module, _, attribute = name.rpartition(".")
        try:
            return getattr(importlib.import_module(module), attribute)
        except (AttributeError, ModuleNotFoundError):
            raise KeyError(name) from None


def states(folder: Path) -> dict[str, dict[str, str]]:
    """By encoder and by method, what its state dict holds: by first names, a count and a digest."""
    torch.manual_seed(0)
    found = {}
    for name in OPTIONS["MODEL.NAME"].choices:
        slim = next((words for start, words in SLIM.items() if name.startswith(start)), ())
        encoder = build_encoder(_config(folder, "MODEL.NAME", name, *slim))
        found[f"encoder {name}"] = _summary(encoder.state_dict(), depth=2)
        if name == OPTIONS["MODEL.NAME"].default:
            torch.save(encoder.state_dict(), folder / "teacher.pt")
    teacher = ("ADVERSARIAL.TEACHER", f"vidcsl:{folder / 'teacher.pt'}")
    for name in OPTIONS["METHOD.NAME"].choices:
        found[f"method {name}"] = _method_state(folder, "METHOD.NAME", name, *teacher)
    for name in OPTIONS["FALSE_NEGATIVES.DETECTOR"].choices:
        state = _method_state(folder, "FALSE_NEGATIVES.DETECTOR", name)
        found[f"detector {name}"] = state
    judge = ("FALSE_NEGATIVES.DETECTOR", "fnc", "FALSE_NEGATIVES.JUDGE", "momentum")
    found["momentum judge"] = _method_state(folder, *judge)
    return found


def _method_state(folder: Path, *overrides: str) -> dict[str, str]:
    videos = tuple(Video(Path(f"{i}.mp4"), i % 2, i // 2) for i in range(20))
    alone = DistributedContext()
    cfg = _config(folder, *overrides)
    method = build_method(cfg, VideoList(videos, ("a", "b"), "list.csv"), alone)
    return _summary(method.state_dict(), depth=1)


def _summary(state: dict, *, depth: int) -> dict[str, str]:
    groups: dict[str, list[str]] = {}
    for key, value in state.items():
        line = f"{key} {value.dtype} {list(value.shape)}"
        groups.setdefault(".".join(key.split(".")[:depth]), []).append(line)
    return {
        name: f"{len(lines)} {hashlib.sha256(chr(10).join(sorted(lines)).encode()).hexdigest()[:8]}"
        for name, lines in groups.items()
    }


def _config(folder: Path, *overrides: str):
    path = folder / "tiny.yaml"
    path.write_text(TINY)
    return load_config(path, overrides)


def runs(folder: Path) -> dict[str, dict]:
    """Of tiny training runs: losses by step, the keys of their files."""
    _render(folder / "videos")
    (folder / "tiny.yaml").write_text(TINY)
    losses, files = {}, {}
    for name, overrides in RUNS.items():
        out = folder / name
        where = {
            "NAME": name,
            "DATA.ROOT": folder / "videos",
            "DATA.TRAIN_LIST": folder / "videos/train.csv",
            "DATA.TEST_LIST": folder / "videos/test.csv",
            "OUTPUT_DIR": out,
        }
        chosen = {**where, **dict(zip(overrides[::2], overrides[1::2], strict=True))}
        words = [str(word) for pair in chosen.items() for word in pair]
        assert main(["train", "--cfg", str(folder / "tiny.yaml"), *words]) == 0
        lines = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
        losses[name] = [line["loss"] for line in lines if line["kind"] == "train"]
        for line in lines:
            known = files.setdefault(f"{name}/log.jsonl {line['kind']}", [])
            known += sorted(set(line) - set(known))
        results = json.loads((out / "results.json").read_text())
        files[f"{name}/results.json"] = sorted(set(_paths(results)))
        (checkpoint,) = (out / "checkpoints").glob("epoch*.pt")
        document = torch.load(checkpoint, map_location="cpu", weights_only=True)
        files[f"{name}/{checkpoint.name}"] = sorted(document)
        files[f"{name}/"] = sorted(path.name for path in out.glob("[!.]*"))
    return {"losses": losses, "files": files}


def _paths(tree: object, prefix: str = "", depth: int = 3) -> Iterator[str]:
    """Keys of the upper levels; those below may depend on what a network learned."""
    if not isinstance(tree, dict) or not depth:
        yield prefix
        return
    for key, value in tree.items():
        yield from _paths(value, f"{prefix}/{key}" if prefix else key, depth - 1)


def _render(root: Path) -> None:
    """Squares that move, a direction a class: PNG files, which hold the same pixels everywhere."""
    rows: dict[str, list[str]] = {"train": [], "test": []}
    for label, name in enumerate(CLASSES):
        for clip in range(8):
            generator = np.random.default_rng([label, clip // 2])
            # Noise, not plain colours: small variances make BatchNorm enlarge rounding errors.
            back = generator.integers(0, 256, (32, 32, 3), dtype=np.uint8)
            front = generator.integers(0, 256, (8, 8, 3), dtype=np.uint8)
            step = (-2, 2)[label % 2]
            video = f"{name}_{clip}"
            (root / video).mkdir(parents=True)
            for frame in range(8):
                place = (16 + clip % 2 + step * frame) % 24
                top, left = (12, place) if label < 2 else (place, 12)
                pixels = back.copy()
                pixels[top : top + 8, left : left + 8] = front
                Image.fromarray(pixels).save(root / video / f"{frame}.png")
            part = "test" if clip >= 6 else "train"
            rows[part].append(f"{video},{name},{name}_{clip // 2}")
    for part, lines in rows.items():
        (root / f"{part}.csv").write_text("\n".join(["video,class,group", *lines]) + "\n")
