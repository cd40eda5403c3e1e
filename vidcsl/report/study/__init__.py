"""Many runs side by side: tables, tests and a page, made from the runs' folders alone."""

from vidcsl.report.study.records import Arms, read_arms
from vidcsl.report.study.summary import summarise
from vidcsl.report.study.write import markdown, write_study

__all__ = ["Arms", "markdown", "read_arms", "summarise", "write_study"]
