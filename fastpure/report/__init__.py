"""Reports: run files as one self-contained HTML page, and as tables in CSV or Parquet.

>>> from fastpure.report import report
>>> report(["runs/diffpure.sqlite", "runs/coup.sqlite"], "report.html")
"""

from .export import write_csv, write_parquet
from .page import Options, report

__all__ = ["Options", "report", "write_csv", "write_parquet"]
