"""What `fastpure bench` measures: this package against every way its users compute the same thing today."""

from .comparison import Comparison, Row, compare
from .timing import Timing, interleave, ratio, table

__all__ = ["Comparison", "Row", "Timing", "compare", "interleave", "ratio", "table"]
