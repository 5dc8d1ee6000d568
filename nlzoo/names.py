"""Words: unknown ones, and what may have been meant; how many there are of a thing."""

from collections.abc import Iterable
from difflib import get_close_matches
from importlib import resources


def nearest(word: object, choices: Iterable[str], most: int = 12) -> str:
    """`; did you mean 'a' or 'b'?` or, where nothing is near, `; there are a, b, c` (`most`)."""
    choices = list(dict.fromkeys(choices))
    if close := get_close_matches(str(word), choices, 3, 0.5):
        return f"; did you mean {' or '.join(map(repr, close))}?"
    more = ", ..." if len(choices) > most else ""
    return f"; there are {', '.join(choices[:most])}{more}"


def counted(number: int, noun: str) -> str:
    """`1 clip`, `10 clips`."""
    return f"{number} {noun}{'s' * (number != 1)}"


def class_list(name: str) -> list[str]:
    """A built-in list of class names, in the order of their labels."""
    return (
        (resources.files("nlzoo.data") / "labels" / f"{name}.txt").read_text("utf-8").splitlines()
    )


def check_choice(name: str, value: object, choices: Iterable[object]) -> None:
    """Raise ValueError, with the nearest choices, where `value` is none of them."""
    if value not in (choices := list(choices)):
        raise ValueError(f"unknown {name} {value!r}{nearest(value, map(str, choices))}")
