"""Reports: run files as one self-contained HTML page, as pictures, and as tables.

>>> from fastpure.report import report
>>> report(["runs/diffpure.sqlite", "runs/coup.sqlite"], "report.html")
"""

from .export import write_csv, write_latex, write_parquet
from .page import Options, report, write_figures

__all__ = ["Options", "report", "write_csv", "write_figures", "write_latex", "write_parquet"]
