"""What a machine, an installation and a run's lists have and lack."""

from vidcsl.doctor.finding import Finding, report
from vidcsl.doctor.installation import examine
from vidcsl.doctor.lists import examine_lists
from vidcsl.doctor.storage import examine_storage

__all__ = ["Finding", "examine", "examine_lists", "examine_storage", "report"]
