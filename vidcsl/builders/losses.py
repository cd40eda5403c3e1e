"""The contrastive loss, its options bound."""

from functools import partial

from fvcore.common.config import CfgNode

from vidcsl.errors import UserError
from vidcsl.objectives.losses import LOSSES, RINCE_LIMIT, RowLoss


def build_loss(cfg: CfgNode) -> RowLoss:
    """The loss of a block of rows.

    Raises:
        UserError: its numbers would not fit float32.
    """
    loss, temperature = cfg.LOSS, cfg.METHOD.TEMPERATURE
    options = {
        "debiased": {"prior": loss.PRIOR},
        "hard_negative": {"prior": loss.PRIOR, "concentration": loss.CONCENTRATION},
        "rince": {"order": loss.ORDER, "density": loss.DENSITY},
    }
    exponent = loss.ORDER / temperature
    if loss.NAME == "rince" and exponent > RINCE_LIMIT:
        raise UserError(
            f"LOSS.NAME rince: e^(LOSS.ORDER / METHOD.TEMPERATURE) = e^{exponent:g} is too large a "
            f"number (at most e^{RINCE_LIMIT}): raise METHOD.TEMPERATURE or lower LOSS.ORDER"
        )
    return partial(LOSSES[loss.NAME], temperature=temperature, **options.get(loss.NAME, {}))
