"""Reports: run files as one self-contained HTML page, as pictures, and as tables.

>>> from fastpure.report import report
>>> report(["runs/diffpure.sqlite", "runs/coup.sqlite"], "report.html")
"""

from .export import write_csv, write_latex, write_parquet
from .page import Options, report, write_figures
from .robustbench import robustbench_entry, write_robustbench

__all__ = [
    "Options",
    "report",
    "robustbench_entry",
    "write_csv",
    "write_figures",
    "write_latex",
    "write_parquet",
    "write_robustbench",
]
