"""How long, how fast and how often a training goes."""

from dataclasses import dataclass

from vidcsl.engine.optim import cosine_lr


@dataclass(frozen=True)
class Schedule:
    """Length, learning rate, logging and checkpoints of a training.

    Args:
        epochs, steps_per_epoch: length of the training.
        peak_lr: of the cosine schedule.
        warmup_epochs: of linear warm-up.
        log_every: steps between lines of the log.
        checkpoint_every: epochs between checkpoints; the last epoch always has one.
        checkpoint_steps: steps between further checkpoints within an epoch; 0: none.
    """

    epochs: int
    steps_per_epoch: int
    peak_lr: float
    warmup_epochs: float = 0.0
    log_every: int = 10
    checkpoint_every: int = 1
    checkpoint_steps: int = 0

    @property
    def total_steps(self) -> int:
        """Steps of the whole training."""
        return self.epochs * self.steps_per_epoch

    def lr(self, step: int) -> float:
        """Learning rate of global step `step`."""
        warmup = round(self.warmup_epochs * self.steps_per_epoch)
        return cosine_lr(step, peak=self.peak_lr, warmup_steps=warmup, total_steps=self.total_steps)

    def logs(self, step: int) -> bool:
        """Whether a line of the log is due after `step` steps of an epoch."""
        return step == self.steps_per_epoch or step % self.log_every == 0

    def saves(self, *, epoch: int, step: int) -> bool:
        """Whether a checkpoint is due at this position; `step` 0 is the end of the epoch before."""
        if step:
            every = self.checkpoint_steps
            return bool(every) and step % every == 0 and step < self.steps_per_epoch
        return epoch == self.epochs or epoch % self.checkpoint_every == 0
