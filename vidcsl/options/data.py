"""Videos, clips and loading; the generated demonstration set."""

from vidcsl.options.option import Option

DATA: dict[str, Option] = {
    "DATA.ROOT": Option("", "folder of the videos, or of their shards: a path or an fsspec URL"),
    "DATA.TRAIN_LIST": Option(
        "", "training list: CSV, of files or shards, or official UCF101 .txt"
    ),
    "DATA.TEST_LIST": Option("", "test list, in the same form; empty: no evaluation"),
    "DATA.READER": Option(
        "auto",
        "who decodes; auto: PyAV, and pictures for a folder of .jpg or .png files",
        ("auto", "pyav", "decord", "torchcodec", "pictures"),
    ),
    "DATA.CACHE": Option(
        "",
        "folder that keeps decoded frames, for small sets, from which crops are then cut whatever "
        "AUGMENT.CROP_BY; empty: none",
    ),
    "DATA.FRAMES": Option(16, "frames of a clip", minimum=1),
    "DATA.STRIDE": Option(2, "step between the frames of a clip, in frames of the file", minimum=1),
    "DATA.SHORT_SIDE": Option(128, "short side that frames are decoded to, pixels", minimum=8),
    "DATA.SHORT_VIDEO": Option(
        "loop",
        "what to do with a video shorter than a clip",
        ("loop", "repeat_last", "error"),
    ),
    "DATA.CLIPS": Option(2, "training clips (views) of each video", minimum=1),
    "DATA.SAMPLING": Option(
        "random",
        "where training clips start: independently; spaced, DATA.MIN_GAP to DATA.MAX_GAP apart; as "
        "CVRL's pairs of decreasing interval; or one frame of each of DATA.FRAMES equal segments",
        ("random", "spaced", "decreasing_interval", "segment"),
    ),
    "DATA.MIN_GAP": Option(0, "spaced: least frames between neighbours' starts", minimum=0),
    "DATA.MAX_GAP": Option(0, "spaced: most frames between them; 0: no limit", minimum=0),
    "DATA.FPS": Option(
        0.0, "take every file as if it ran at this rate, frames per second; 0: its own", minimum=0
    ),
    "DATA.WINDOW": Option(
        0, "dense clips: spread over so many frames in a row, in place of DATA.STRIDE", minimum=0
    ),
    "DATA.WORKERS": Option(2, "decoding processes of each training process", minimum=0),
    "DATA.DAMAGED_LIMIT": Option(
        0.01,
        "share of the training list that may be unreadable (and replaced) before the run stops",
        minimum=0,
        maximum=1,
    ),
    "DATA.ALLOW_DAMAGED_TEST": Option(
        False, "leave unreadable videos out of evaluation, and name them, instead of stopping"
    ),
    "DATA.TIMEOUT": Option(
        60.0, "seconds after which a video counts as unreadable; 0: never", minimum=0
    ),
    "SYNTHETIC.ENABLED": Option(False, "render a labelled set into DATA.ROOT and train on that"),
    "SYNTHETIC.CLASSES": Option(8, "motions (labels)", minimum=2),
    "SYNTHETIC.SOURCES": Option(15, "source videos of each class", minimum=3),
    "SYNTHETIC.CLIPS": Option(3, "clips cut from each source (a known group)", minimum=1),
    "SYNTHETIC.COHERENCE": Option(
        0.0,
        "how much the sources of a class look alike: 0, the looks say nothing of the class; 1, all",
        minimum=0,
        maximum=1,
    ),
    "SYNTHETIC.FRAMES": Option(40, "frames of each clip", minimum=8),
    "SYNTHETIC.SIZE": Option(64, "side of the square frames, pixels", minimum=32),
}
