"""Every option: its default, one line of meaning, and what values it may take.

These tables are the only place where an option is declared; the config file, the command line, the
type checks and the reference in the docs all come from them.
"""

from vidcsl.options.adversarial import ADVERSARIAL
from vidcsl.options.attacks import ATTACKS
from vidcsl.options.augment import AUGMENT
from vidcsl.options.corruptions import CORRUPTIONS
from vidcsl.options.data import DATA
from vidcsl.options.evaluation import EVALUATION
from vidcsl.options.log import LOG
from vidcsl.options.models import MODELS
from vidcsl.options.objectives import OBJECTIVES
from vidcsl.options.option import Option
from vidcsl.options.run import RUN
from vidcsl.options.training import TRAINING

OPTIONS: dict[str, Option] = {
    **RUN,
    **LOG,
    **DATA,
    **AUGMENT,
    **MODELS,
    **OBJECTIVES,
    **ADVERSARIAL,
    **TRAINING,
    **EVALUATION,
    **ATTACKS,
    **CORRUPTIONS,
}

__all__ = ["OPTIONS", "Option"]
