"""What a run says of itself before it begins."""

from vidcsl.config import load_config
from vidcsl.data.lists import Row, read_list, write_list
from vidcsl.pipelines.train import overview


def test_a_run_says_what_lies_ahead(tmp_path):
    write_list(tmp_path / "v.csv", [Row(f"{k}.mp4", str(k % 2), "") for k in range(40)])
    videos = read_list(tmp_path / "v.csv", root=tmp_path)
    words = ["FIT.MINUTES", "0", "TRAIN.EPOCHS", "9", "TRAIN.BATCH", "20"]
    cfg = load_config("own", [*words, "CORRUPT.NAMES", "[C/fog]"])
    assert overview(cfg, videos, videos) == (
        "ahead: 1. motion of 40 videos; 2. pretraining (9 epochs of 2 steps); 3. features of 40 "
        "and 40 videos, probes; 4. attack pgd/linf on 40 clips; 5. 1 corruption of 32 clips; "
        "6. report"
    )
    # Pretraining alone.
    words += ["FALSE_NEGATIVES.DETECTOR", "none", "FALSE_NEGATIVES.ROUNDS", "2"]
    assert overview(load_config("own", words), videos, None) == (
        "ahead: 1. pretraining (9 epochs of 2 steps, 2 times); 2. report"
    )
