"""The report of a run: ``report.write(workdir)``, or ``python -m bigvlm.report WORKDIR``."""

from bigvlm.report.page import write

__all__ = ['write']
