"""PySlowFast: Slow-R50, also as the backbone of its MoCo, BYOL, SimCLR and SwAV models."""

from vidcsl.models.pretrained.layout import Layout

_START = r"(?:module\.)?(?:backbone\.)?"  # contrastive models hold the network as `backbone`


def _block(theirs: str, ours: str) -> tuple[tuple[str, str], ...]:
    """The rename of one module of the blocks of each stage: s2 is our layer1."""
    return tuple(
        (rf"{_START}s{stage}\.pathway0_res(\d+)\.{theirs}\.(.+)", rf"layer{stage - 1}.\1.{ours}.\2")
        for stage in range(2, 6)
    )


LAYOUT = Layout(
    meaning="PySlowFast's Slow-R50, supervised or contrastive (`model_state`)",
    encoders=("slow_r50",),
    containers=("model_state", "state_dict"),
    left_out=(
        (r"(module\.)?(backbone\.)?(head|head_pred|pred_head)\..+", "the head"),
        (r"(module\.)?backbone_hist\..+", "the momentum encoder"),
        (r"(module\.)?(queue_x|queue_swav|ptr|iter)", "the queue"),
        (r"(module\.)?swav_prototypes(\..+)?", "the prototypes"),
        (r"(module\.)?(memory|knn_mem)\..+", "the memory bank"),
    ),
    renames=(
        (_START + r"s1\.pathway0_stem\.conv\.(.+)", r"stem.0.\1"),
        (_START + r"s1\.pathway0_stem\.bn\.(.+)", r"stem.1.\1"),
        *_block("branch1", "downsample.0"),
        *_block("branch1_bn", "downsample.1"),
        *(pair for n, x in enumerate("abc", 1) for pair in _block(rf"branch2\.{x}", f"conv{n}")),
        *(pair for n, x in enumerate("abc", 1) for pair in _block(rf"branch2\.{x}_bn", f"bn{n}")),
    ),
    normalisation="pyslowfast",
)
