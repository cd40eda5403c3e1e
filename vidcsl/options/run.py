"""The run itself."""

from vidcsl.options.option import Option

RUN: dict[str, Option] = {
    "NAME": Option("run", "name of the run, in the report and in the default output folder"),
    "SEED": Option(0, "seed of every random choice of the run", minimum=0),
    "OUTPUT_DIR": Option("", "where everything is written; empty: runs/NAME/seedSEED"),
    "DEVICE": Option("auto", "auto takes the GPU where there is one", ("auto", "cpu", "cuda")),
    "PRECISION": Option(
        "auto",
        "of pretraining; auto: bfloat16 where the hardware has it; float16 comes with a loss "
        "scale. Evaluation is float32",
        ("auto", "float32", "bfloat16", "float16"),
    ),
    "REPORT.ENABLED": Option(True, "write report.html"),
}
