"""From a config to objects. Below this package nothing knows a config: all take plain arguments."""

from vidcsl.builders.attacks import build_attack_runs, build_attacks, check_classes
from vidcsl.builders.augment import build_augmentation, build_crop
from vidcsl.builders.corruptions import build_corruptions
from vidcsl.builders.data import (
    build_lists,
    build_splits,
    build_test_loader,
    build_train_loader,
    build_transfer,
)
from vidcsl.builders.engine import build_guard, build_stepper, build_strategy, build_writer
from vidcsl.builders.false_negatives import earlier_rounds, require_labels
from vidcsl.builders.finetune import (
    build_finetune_optimiser,
    build_finetune_schedule,
    build_finetuned,
)
from vidcsl.builders.log import build_trackers, build_watchdog
from vidcsl.builders.methods import build_method
from vidcsl.builders.models import (
    build_encoder,
    check_norms,
    is_bgr,
    load_weights_of,
    norm_sets,
)
from vidcsl.builders.robust import (
    build_robust,
    build_robust_optimiser,
    build_robust_schedule,
)
from vidcsl.builders.run import check, output_dir
from vidcsl.builders.targets import build_input, build_targets
from vidcsl.builders.training import build_optimiser_of, build_schedule

__all__ = [
    "build_attack_runs",
    "build_attacks",
    "build_augmentation",
    "build_corruptions",
    "build_crop",
    "build_encoder",
    "build_finetune_optimiser",
    "build_finetune_schedule",
    "build_finetuned",
    "build_guard",
    "build_input",
    "build_lists",
    "build_method",
    "build_optimiser_of",
    "build_robust",
    "build_robust_optimiser",
    "build_robust_schedule",
    "build_schedule",
    "build_splits",
    "build_stepper",
    "build_strategy",
    "build_targets",
    "build_test_loader",
    "build_trackers",
    "build_train_loader",
    "build_transfer",
    "build_watchdog",
    "build_writer",
    "check",
    "check_classes",
    "check_norms",
    "earlier_rounds",
    "is_bgr",
    "load_weights_of",
    "norm_sets",
    "output_dir",
    "require_labels",
]
