"""Numbers as text, the same wherever they are read."""

import math

NOTHING = "\N{EN DASH}"  # no number, or no interval that could be claimed


def number(value: float, digits: int, *, signed: bool = False) -> str:
    """A number with a minus sign that is as wide as a plus; a dash for NaN."""
    if math.isnan(value):
        return NOTHING
    value = round(value, digits) or 0.0  # not -0.0
    return f"{value:{'+' if signed and value else ''}.{digits}f}".replace("-", "\N{MINUS SIGN}")


def interval(low: float, high: float, digits: int) -> str:
    """[low, high], or a dash where none is claimed."""
    return NOTHING if math.isnan(low) or math.isnan(high) else f"[{number(low, digits)}, {number(high, digits)}]"


def digits_for(largest: float) -> int:
    """Decimals that suit numbers of this size: HPSv2's 0.2521 needs more than a reward of 3.07."""
    return 4 if abs(largest) < 1 else 3
