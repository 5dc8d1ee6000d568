"""The sizes that an engine is built for: `--shape input=MIN:OPT:MAX`."""

from collections.abc import Sequence

import onnx

from nlzoo.export.spec import LEAST, inputs_of, spec_of
from nlzoo.names import nearest

Shape = tuple[int, ...]
Profile = dict[str, tuple[Shape, Shape, Shape]]  # input -> least, best, largest
BATCH = (1, 1, 8)  # of the default profile
FORM = "input=MIN:OPT:MAX, as in input=1x3x8x224x224:1x3x8x224x224:8x3x8x224x224"


def axes_of(model: onnx.ModelProto) -> dict[str, tuple[int | str, ...]]:
    """The axes of each input of a file: a size, or the name of a dynamic axis."""
    return {
        i.name: tuple(
            d.dim_value if d.HasField("dim_value") else d.dim_param or "?"
            for d in i.type.tensor_type.shape.dim
        )
        for i in inputs_of(model)
    }


def choose_profiles(model: onnx.ModelProto, given: Sequence[str] = ()) -> list[Profile]:
    """Those that are given, checked against the file; else one for batches of 1 to 8.

    Args:
        model: an ONNX file.
        given: each one profile, `NAME=MIN:OPT:MAX`; several inputs are separated by commas.

    Returns:
        Empty where no axis is dynamic and nothing is given.

    Raises:
        ValueError: no such text, an unknown input, a wrong rank, sizes that are not MIN <= OPT <=
            MAX, that a fixed axis does not have or a clip cannot; more axes than the batch are
            dynamic and nothing is given.
    """
    inputs = axes_of(model)
    if given:
        profiles = [_parse(text, inputs) for text in given]
        if (spec := spec_of(model)) and spec.any_size:
            _check_sides([profile[spec.input][0] for profile in profiles])
        return profiles
    dynamic = {name: axes for name, axes in inputs.items() if any(isinstance(a, str) for a in axes)}
    default: Profile = {}
    for name, axes in dynamic.items():
        sizes = tuple(a for a in axes[1:] if isinstance(a, int))
        if len(sizes) < len(axes) - 1:
            free = [a for a in axes[1:] if isinstance(a, str)]
            raise ValueError(
                f"{', '.join(free)} of {name} ({_words(axes)}) may be of any size: give those to "
                f"build for, --shape {name}=MIN:OPT:MAX, each as in {'x'.join(map(str, axes))}"
            )
        least, best, largest = ((batch, *sizes) for batch in BATCH)
        default[name] = least, best, largest
    return [default] if default else []


def as_text(profile: Profile) -> str:
    """As it is given: `input=1x3x8:1x3x8:8x3x8`."""
    return ",".join(
        f"{name}={':'.join('x'.join(map(str, shape)) for shape in shapes)}"
        for name, shapes in profile.items()
    )


def _parse(text: str, inputs: dict[str, tuple[int | str, ...]]) -> Profile:
    profile: Profile = {}
    for part in text.split(","):
        name, _, sizes = part.rpartition("=")
        shapes = [s.lower().split("x") for s in sizes.split(":")]
        if not name or len(shapes) != 3 or not all(n.isdecimal() for s in shapes for n in s):
            raise ValueError(f"--shape {part}: expected {FORM}")
        if name not in inputs:
            raise ValueError(f"--shape {part}: no input {name!r}{nearest(name, inputs)}")
        least, best, largest = (tuple(map(int, s)) for s in shapes)
        profile[name] = least, best, largest
        _check(f"--shape {part}", profile[name], inputs[name])
    for name, axes in inputs.items():
        if name not in profile and any(isinstance(a, str) for a in axes):
            raise ValueError(f"--shape {text}: input {name} ({_words(axes)}) is missing")
    return profile


def _check(where: str, shapes: tuple[Shape, Shape, Shape], axes: tuple[int | str, ...]) -> None:
    if any(len(shape) != len(axes) for shape in shapes):
        raise ValueError(f"{where}: the file has {len(axes)} axes, ({_words(axes)})")
    for axis, (least, best, largest) in zip(axes, zip(*shapes, strict=True), strict=True):
        if not 1 <= least <= best <= largest:
            raise ValueError(f"{where}: {least}, {best}, {largest} are not 1 <= MIN <= OPT <= MAX")
        if isinstance(axis, int) and not least == largest == axis:
            wrong = least if least != axis else largest
            raise ValueError(f"{where}: {wrong} where the file has {axis}, ({_words(axes)})")


def _check_sides(clips: Sequence[Shape]) -> None:
    """Of the smallest clips; an engine would be built for smaller ones, and fail with them."""
    for clip in clips:
        if min(clip[3:]) < LEAST:
            raise ValueError(
                f"--shape {'x'.join(map(str, clip))}: heights and widths of this file start at "
                f"{LEAST} pixels"
            )


def _words(axes: tuple[int | str, ...]) -> str:
    return ", ".join(map(str, axes))
