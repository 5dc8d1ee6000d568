"""A position of a file, as it is asked for: FRAME,X,Y or X,Y."""

from collections.abc import Sequence


def check_position(name: str, at: Sequence[int], size: Sequence[int]) -> None:
    """Raise ValueError for one that `name` lacks; both are (frame,) x, y."""
    if not all(0 <= a < s for a, s in zip(at, size, strict=True)):
        axes = ("frames", "columns", "rows")[-len(size) :]
        has = ", ".join(f"{s} {axis}" for s, axis in zip(size, axes, strict=True))
        words = "X,Y" if len(size) == 2 else "FRAME,X,Y"
        where = ",".join(map(str, at))
        raise ValueError(f"{name}: {words} = {where} is outside: it has {has}, counted from 0")
