"""What `fastpure bench` measures: this package against every way its users compute the same thing today."""

from .comparison import Comparison, Row, Table, compare
from .processor import Processor, Rate
from .timing import Timing, interleave, ratio, table

__all__ = [
    "Comparison",
    "Processor",
    "Rate",
    "Row",
    "Table",
    "Timing",
    "compare",
    "interleave",
    "ratio",
    "table",
]
