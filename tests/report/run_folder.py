"""A run's folder as a real run leaves it, with made-up but plausible numbers."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np

CONFIG = """NAME: dance10_adaptive
SEED: 0
DATA:
  TRAIN_LIST: lists/train.csv
  FRAMES: 16
METHOD:
  NAME: simclr
  TEMPERATURE: 0.1
FALSE_NEGATIVES:
  DETECTOR: adaptive
"""
CLASSES = ["BenchPress", "BodyWeightSquats", "HandstandPushups", "JumpingJack", "Lunges"]
DAMAGED = "Lunges/v_Lunges_g04_c02.avi"
EPS_LINF = (0.1, 0.25, 0.5, 0.75, 1, 2, 4, 8)
CHECKS = [
    {
        "name": "the model is deterministic",
        "passed": True,
        "seen": "two outputs for the same clips differ by 0 of the largest logit",
    },
    {
        "name": "more steps never help the model",
        "passed": False,
        "seen": "of 16 clips, 20 steps leave 8 right, 80 leave 11",
    },
]
SUITE_P = {
    "gaussian_noise": [0.387, 0.354, 0.283, 0.217, 0.151],
    "defocus_blur": [0.392, 0.373, 0.321, 0.264, 0.222],
    "jpeg": [0.396, 0.387, 0.382, 0.363, 0.335],
    "freezing": [0.401, 0.396, 0.392, 0.382, 0.377],
    "static_rotation": [0.363, 0.321, 0.241, 0.179, 0.123],
}
SUITE_C = {
    "h264": [0.401, 0.396, 0.368, 0.302, 0.212],
    "packet_loss": [0.354, 0.330, 0.316, 0.283, 0.250],
    "fog": [0.245, 0.208, 0.184, 0.179, 0.146],
}


def results() -> dict[str, Any]:
    """`results.json` of a run with every stage."""
    linf = [0.307, 0.226, 0.127, 0.080, 0.042, 0.009, 0.0, 0.0]
    survive = [0.903, 0.667, 0.375, 0.236, 0.125, 0.028, 0.0, 0.0]
    keys = [f"{eps:g}/255" for eps in EPS_LINF]
    return {
        "name": "dance10_adaptive",
        "seed": 0,
        "method": "simclr",
        "data": {"classes": CLASSES, "train_videos": 528, "test_videos": 212, "chance": 0.2},
        "training": {"epochs": 40, "loss": 1.873, "damaged_videos": [DAMAGED]},
        "clean": {
            "linear_top1": 0.401,
            "linear_clip_top1": 0.340,
            "linear_penalty": 0.01,
            "linear_held_out_top1": 0.418,
            "test_videos": 212,
            "views": "10 clips x 1 crops",
            "knn_top1": 0.363,
            "retrieval": {"R@1": 0.321, "R@5": 0.613, "R@10": 0.745, "R@20": 0.849},
        },
        "geometry": {
            "alignment": 0.213,
            "uniformity": -2.914,
            "same_class_similarity": 0.318,
            "other_class_similarity": 0.104,
            "margin": 0.087,
            "effective_rank": 37.42,
            "histogram": _histogram(),
        },
        "false_negatives": {
            "detector": "adaptive",
            "treatment": "eliminate",
            "precision": 0.412,
            "recall": 0.118,
            "removed": 0.0566,
            "chance": 0.199,
            "by_class": {
                name: {"removed": 0.05 + 0.01 * i, "precision": 0.5 - 0.1 * i, "recall": None}
                for i, name in enumerate(CLASSES)
            },
        },
        "attacks": {
            "pgd_linf": dict(zip(keys, linf, strict=True)),
            "pgd_l2": {"0.1": 0.316, "0.25": 0.269, "0.5": 0.193, "1": 0.094, "2": 0.014},
        },
        "survival": {"pgd_linf": dict(zip(keys, survive, strict=True))},
        "attack_settings": {
            "pgd_linf": {"steps": 20, "restarts": 1, "frames": "all", "clips": 212, "clean": 0.340},
            "pgd_l2": {"steps": 20, "restarts": 1, "frames": "all", "clips": 212, "clean": 0.340},
        },
        "attack_classes": {
            "pgd_linf": {
                "clips": [40, 50, 42, 40, 40],
                "clean": [10, 22, 14, 16, 10],
                **{key: [round(36 * share)] * 5 for key, share in zip(keys, linf, strict=True)},
                "mistaken_for": [3, 0, 1, 4, -1],
            }
        },
        "attack_frames": {
            "pgd_linf": {
                key: [0.9 * eps + 0.02 * eps * (t % 3) for t in range(16)]
                for key, eps in zip(keys, EPS_LINF, strict=True)
            }
        },
        "attack_checks": {
            "pgd_linf": {"eps": "0.25/255", "clips": 16, "checks": CHECKS},
            "pgd_l2": {"eps": "0.5", "clips": 16, "checks": CHECKS[:1]},
        },
        "corruptions": {
            "clean": 0.401,
            "order": "video",
            "clips": 212,
            "P": SUITE_P,
            "C": SUITE_C,
            "scores": {
                "mean": {"accuracy": 0.3008, "retained": 0.7501},
                **{"gamma_a": None, "gamma_r": None, "mPC": None, "rPC": None},
                "over": {
                    "P": {"corruptions": 5, "published": 18, "severities": 5},
                    "C": {"corruptions": 3, "published": 12, "severities": 5},
                },
            },
            "damaged_clips": {"C/packet_loss": [0.104, 0.3, 0.52, 0.75, 1.0]},
        },
        "cost": {
            "seconds": {"pretraining": 5025.0, "linear probe": 71.3, "pgd_linf": 1312.4},
            "clips_per_second": 96.3,
            "peak_memory_mib": 2917,
        },
    }


def write_run(folder: Path, content: dict[str, Any] | None = None) -> Path:
    """A whole run folder around `content` (default: every section)."""
    (folder / "artifacts").mkdir(parents=True)
    (folder / "results.json").write_text(json.dumps(results() if content is None else content))
    (folder / "config.yaml").write_text(CONFIG)
    (folder / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in log_lines()))
    environment = {
        "command": "vidcsl train --cfg configs/dance10.yaml SEED 0",
        "python": "3.11.9",
        "versions": {"torch": "2.14.1", "decord": None},
        "git": "f93e9ab+changes",
    }
    (folder / "environment.json").write_text(json.dumps(environment))
    write_attack(folder / "artifacts" / "attack_pgd_linf.npz")
    write_projection(folder / "artifacts" / "projection.npz", classes=CLASSES, videos=40)
    write_pairs(folder / "artifacts" / "pairs.npz", right=2, wrong=2)
    for name in ("C.fog", "P.jpeg", "P.static_rotation"):
        write_corrupted(folder / "artifacts" / f"corruption_{name}.npz")
    return folder


def log_lines(epochs: int = 40, steps: int = 8) -> list[dict[str, Any]]:
    """Training lines, one damaged video and one note."""
    rng = np.random.default_rng(7)
    note = {"kind": "note", "text": "17 videos are shorter than a clip"}
    lines: list[dict[str, Any]] = [note, note]
    for step in range(epochs * steps):
        share = step / (epochs * steps)
        ramp = min(1.0, max(0.0, (share - 0.25) / 0.5))
        lines.append(
            {
                "kind": "train",
                "epoch": (step + 1) / steps,
                "step": step + 1,
                "loss": 1.8 + 2.6 * math.exp(-4 * share) + 0.07 * rng.standard_normal(),
                "alignment": 0.4 + 0.9 * math.exp(-5 * share),
                "uniformity": -3.1 + 1.6 * math.exp(-5 * share),
                "margin": -0.1 + 0.2 * share,
                "effective_rank": 20 + 15 * share,
                "same_class_similarity": 0.4 - 0.1 * share,
                "other_class_similarity": 0.3 - 0.2 * share,
                "lr": 0.01 * (1 + math.cos(math.pi * share)),
                "clips_per_second": 96 + 4 * rng.standard_normal(),
                "data_wait": 0.04,
                "removed": 0.0566 * ramp,
                "recall": 0.118 * ramp,
            }
        )
        if ramp:  # a share of nothing is left out
            lines[-1]["precision"] = 0.25 + 0.17 * share + 0.01 * rng.standard_normal()
    damaged = {"kind": "damaged", "epoch": 3, "path": DAMAGED}
    return [*lines, damaged]


def write_attack(path: Path, *, frames: int = 8, size: int = 32, eps: float = 0.5) -> None:
    """A disc that moves over a shaded ground, and a perturbation of +-eps/255."""
    row, column = np.mgrid[:size, :size] / size
    ground = np.stack([0.35 + 0.4 * row, 0.5 - 0.2 * column, 0.3 + 0.3 * column], -1)
    clean = np.empty((frames, size, size, 3), np.uint8)
    for t in range(frames):
        centre = 0.5 + 0.3 * math.sin(2 * math.pi * t / frames)
        disc = (row - 0.5) ** 2 + (column - centre) ** 2 < 0.03
        clean[t] = np.where(disc[..., None], [0.95, 0.75, 0.2], ground) * 255
    signs = np.sign(np.random.default_rng(3).standard_normal((frames, size, size, 3)))
    np.savez(
        path,
        clean=clean,
        difference=(signs * eps / 255).astype(np.float16),
        label="Lunges",
        clean_prediction="Lunges",
        adversarial_prediction="JumpingJack",
        eps=f"{eps:g}/255",
    )


def write_projection(path: Path, *, classes: list[str], videos: int) -> None:
    """Angles of `videos` videos of each class, in a loose heap of their own."""
    rng = np.random.default_rng(5)
    angles = 2 * np.pi * np.arange(len(classes)) / len(classes)
    centres = 24 * np.stack([np.cos(angles), np.sin(angles)], 1)
    points = centres.repeat(videos, 0) + 9 * rng.standard_normal((len(classes) * videos, 2))
    labels = np.array(classes).repeat(videos)
    distances = np.linalg.norm(points[:, None] - points[None], axis=-1)
    np.savez(
        path,
        angles=points.astype(np.float32),
        labels=labels,
        shown=np.float32(0.34),
        neighbours=distances.argsort(axis=1)[:, 1:6],
        videos=np.array([f"v_{name}_{i}.mp4" for i, name in enumerate(labels)]),
    )


def write_pairs(path: Path, *, right: int, wrong: int, size: int = 24) -> None:
    """Pairs of noise, right ones first."""
    count = right + wrong
    clips = np.random.default_rng(2).integers(0, 256, (2, count, 3, size, size, 3), np.uint8)
    candidates = [CLASSES[i % 4] if i < right else CLASSES[4] for i in range(count)]
    np.savez(
        path,
        anchors=clips[0],
        candidates=clips[1],
        originals=np.full((count, 2, 3, 96, 128, 3), 90, np.uint8),
        similarity=np.linspace(0.9, 0.5, count, dtype=np.float32),
        right=np.arange(count) < right,
        classes=np.array([[CLASSES[i % 4], candidates[i]] for i in range(count)]),
        videos=np.array([[f"a{i}.mp4", f"b{i}.mp4"] for i in range(count)]),
    )


def write_corrupted(path: Path, *, frames: int = 4, size: int = 24) -> None:
    """A clip of noise, three times, mistaken at the highest severity."""
    rng = np.random.default_rng(4)
    np.savez(
        path,
        key="",
        frames=rng.integers(0, 256, (3, frames, size, size, 3), np.uint8),
        severities=np.array([0, 3, 5]),
        label="Lunges",
        predictions=np.array(["Lunges", "Lunges", "JumpingJack"]),
    )


def _histogram() -> dict[str, list[float]]:
    edges = np.linspace(-1, 1, 41)
    centres = (edges[:-1] + edges[1:]) / 2
    same = np.exp(-(((centres - 0.318) / 0.26) ** 2) / 2)
    other = np.exp(-(((centres - 0.104) / 0.19) ** 2) / 2)
    return {
        "edges": edges.tolist(),
        "same_class": (same / same.sum()).tolist(),
        "other_class": (other / other.sum()).tolist(),
    }
