"""How far a correct variant may stray from its own definition: one table, used everywhere."""

from typing import Final

IMPLEMENTATION_TOLERANCE: Final = {"float64": 1e-12, "float32": 2e-5, "bfloat16": 3e-2, "float16": 4e-3}
"""Largest relative Frobenius error of the output against the float64 oracle, by dtype.

The half types' are what the formula computed plainly in that type needs on every kind of input
(2.4e-2 in bfloat16), and little more.
"""

GRADIENT_TOLERANCE: Final = {"float64": 1e-11, "float32": 5e-5, "bfloat16": 5e-2, "float16": 8e-3}
"""The same for each of the gradients of q, k and v (plain formula: 3.8e-2 in bfloat16)."""

ROW_FACTOR: Final = 20
"""No single row may stray further than this many tolerances: one wrong row hardly moves the whole norm."""
