"""What is told of a run while it runs."""

from vidcsl.options.option import Option

LOG: dict[str, Option] = {
    "LOG.TRACKERS": Option(
        ["tensorboard"], "beside log.jsonl: tensorboard, wandb, mlflow (docs/cluster.md)"
    ),
    "LOG.PROJECT": Option("vidcsl", "W&B's project, MLflow's experiment"),
    "LOG.HANG_SECONDS": Option(
        600.0,
        "without a step, after which the stacks of all processes are written to hangs/; 0: never",
        minimum=0,
    ),
    "LOG.HANG_ENDS": Option(False, "end a run that hangs, so that torchrun starts it anew"),
}
