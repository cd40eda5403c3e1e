"""Whether lists go with each other and with a checkpoint."""

from collections.abc import Mapping
from typing import Any

from vidcsl.data.lists import VideoList, shared, shorten
from vidcsl.distributed import DistributedContext
from vidcsl.errors import UserError
from vidcsl.io import log_message
from vidcsl.methods import Method
from vidcsl.report.summary import overlap_warnings
from vidcsl.run_folder import RunFolder

# Parts of a method whose state is kept by a video's place in the training list.
BY_PLACE = ("detector.", "budgets.")


def record_lists(
    train: VideoList, test: VideoList | None, folder: RunFolder, distributed: DistributedContext
) -> None:
    """Write the section `lists` of the results; say which videos and groups stand in both."""
    if not distributed.is_main:
        return
    found: dict[str, Any] = {"train": train.digest}
    if test is not None:
        videos, groups = shared(train, test)
        found |= {
            "test": test.digest,
            "test_videos": len(test),
            "videos_in_both": len(videos),
            "groups_in_both": len(groups),
            "first_in_both": [each[0] for each in (videos, groups) if each],
        }
    folder.update_results({"lists": found})
    for sentence in overlap_warnings(found):
        log_message(f"warning: {sentence}")


def refuse_changed_list(checkpoint: Mapping[str, Any], train: VideoList, folder: RunFolder) -> None:
    """Raise a UserError where a run was begun with another content of its training list.

    Its order of videos would be another one, and detectors would take one video for another.
    """
    if _is_other(checkpoint, train):
        raise UserError(
            f"cannot continue {folder.path}: the content of {train.source} changed since it was "
            "started; restore the list or choose another OUTPUT_DIR"
        )


def refuse_memory_of_another_list(
    checkpoint: Mapping[str, Any], method: Method, train: VideoList, *, key: str, source: str
) -> None:
    """Raise a UserError where weights hold what a method knows of each video of another list."""
    kept = [name for name in method.state_dict() if name.startswith(BY_PLACE)]
    if _is_other(checkpoint, train) and any(name in checkpoint["method"] for name in kept):
        raise UserError(
            f"{key} {source} knows the videos of another list than {train.source} by their places: "
            f"start from its encoder alone by --weights vidcsl:{source}"
        )


def _is_other(checkpoint: Mapping[str, Any], train: VideoList) -> bool:
    known = checkpoint.get("train_list")  # checkpoints of earlier versions have none
    return bool(known and train.digest and known != train.digest)


def in_order_of(
    checkpoint: Mapping[str, Any],
    kind: type[Method],
    train: VideoList,
    test: VideoList | None,
    *,
    source: str,
) -> tuple[VideoList, VideoList | None]:
    """The lists with their classes in the order that a checkpoint's head has them in.

    Args:
        checkpoint: its content.
        kind: the method that takes its weights.
        train, test: with the same classes.
        source: the checkpoint in words.

    Raises:
        UserError: the head has other classes.
    """
    known = list(checkpoint.get("classes", ()))
    head = "head" in kind.kept and any(name.startswith("head.") for name in checkpoint["method"])
    if not head or known in ([], list(train.classes)):
        return train, test
    if sorted(known) != sorted(train.classes):
        sides = {
            "there": [name for name in known if name not in train.classes],
            "here": [name for name in train.classes if name not in known],
        }
        words = "; ".join(
            f"only {side}: {shorten(found)}" for side, found in sides.items() if found
        )
        raise UserError(
            f"{source} classifies other classes than {train.source} lists ({words}): take its "
            "encoder alone by --weights vidcsl:CHECKPOINT"
        )
    return train.with_classes(known), None if test is None else test.with_classes(known)
