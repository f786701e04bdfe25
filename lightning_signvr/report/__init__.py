"""Layer 7: one HTML file that tells a run to people who were not there."""

from lightning_signvr.report.page import write_report
from lightning_signvr.report.runs import ReportError, Run, read_runs

__all__ = ["ReportError", "Run", "read_runs", "write_report"]
