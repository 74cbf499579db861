"""The report of a run: ``report.write(workdir)``, or ``python -m bigvlm.report WORKDIR``."""

from bigvlm.report.page import summary, write

__all__ = ['summary', 'write']
