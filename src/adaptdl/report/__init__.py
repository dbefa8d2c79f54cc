"""Tables and pictures of simulations. Tables need nothing, pictures matplotlib: `pip install matplotlib`."""

from adaptdl.report.progress import ProgressLine
from adaptdl.report.tables import comparison_table, job_table
from adaptdl.report.timeline import check_plot, plot_timeline

__all__ = ["ProgressLine", "check_plot", "comparison_table", "job_table", "plot_timeline"]
