"""Runs' folders with outcomes whose figures can be worked out by hand."""

import json

import yaml

from vidcsl.studies.analysis import arms_of, read_record

BUDGETS = ("1/255", "2/255")


def write_run(root, name, seed, *, fooled, clean=None, list_id="list", config=None, **sections):
    """A run that was attacked on `len(fooled)` videos.

    `fooled` holds, for each video, the budget that fooled it, "clean" where it is wrong anyway, or
    None where it stays right; `config` is what its config.yaml holds.
    """
    folder = root / name / f"seed{seed}"
    (folder / "answers").mkdir(parents=True)
    right = {"clean": [each != "clean" for each in fooled]}
    for i, eps in enumerate(BUDGETS):
        fatal = {"clean", *BUDGETS[: i + 1]}
        right[eps] = [each not in fatal for each in fooled]
    share = {key: sum(values) / len(values) for key, values in right.items()}
    results = {
        "name": name,
        "seed": seed,
        "clean": {"linear_top1": share["clean"] if clean is None else clean, "knn_top1": 0.25},
        "attacks": {"pgd_linf": {eps: share[eps] for eps in BUDGETS}},
        "survival": {"pgd_linf": {eps: share[eps] / share["clean"] for eps in BUDGETS}},
        "attack_settings": {
            "pgd_linf": {"attack": "pgd/linf", "clips": len(fooled), "clean": share["clean"]}
        },
        "corruptions": {"clean": 0.4, "P": {"jpeg": [0.2] * 5}, "C": {"fog": [0.4] * 5}},
        **sections,
    }
    (folder / "results.json").write_text(json.dumps(results))
    if config is not None:
        (folder / "config.yaml").write_text(yaml.safe_dump(config))
    answers = [
        {"label": 0, "clean": int(each == "clean"), "fooled_at": each if each in BUDGETS else None}
        for each in fooled
    ]
    lines = [
        {"settings": {"attack": "pgd_linf", "videos": list_id, "seed": seed}},
        {"condition": "pgd_linf", "videos": list(range(len(fooled))), "answers": answers},
    ]
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (folder / "answers" / f"{seed:016x}.rank0.jsonl").write_text(text + '{"condition": "pgd_l')
    return folder


def read_arms(folders):
    """The arms of these runs."""
    return arms_of(read_record(folder) for folder in folders)
