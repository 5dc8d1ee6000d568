"""Pickles, read without running anything and in memory that the size of the file bounds."""

import pickle
from collections.abc import Mapping
from typing import Any, BinaryIO, ClassVar

MOST_STEPS = 2_000_000  # 30,000 tensors; with many more, values outgrow their file


class Refused(pickle.UnpicklingError):
    """A pickle asks for something that is not admitted; the text is its name."""


class Malformed(ValueError):  # noqa: N818
    """What is wrong with a file, in a few words."""


class State(dict[Any, Any]):
    """An `OrderedDict` or `Counter` without the attributes that a file gives it."""

    def __setstate__(self, state: Any) -> None:
        """Leave them out."""


class Unpickler(pickle._Unpickler):
    """Builds plain values, and what `admitted` puts in place of the globals that a file names.

    Nothing else is imported, called or changed. It is the one in pure Python, as that in C makes
    room for any number of memo places that a file claims.

    Args:
        file: at the beginning of a pickle.
        size: of the file in bytes.
        admitted: `module.name` as in the file, to what is called in its place.
        encoding: of strings that Python 2 wrote.
    """

    dispatch: ClassVar[dict[int, Any]] = {
        code: function
        for code, function in pickle._Unpickler.dispatch.items()
        # a byte array makes the room that is claimed, extensions come from a registry
        if bytes([code]) not in (pickle.BYTEARRAY8, pickle.EXT1, pickle.EXT2, pickle.EXT4)
    }

    def __init__(
        self, file: BinaryIO, size: int, admitted: Mapping[str, Any], encoding: str
    ) -> None:
        super().__init__(_Steps(file, size), encoding=encoding)
        self.size, self.copied = size, 0
        self.admitted = {
            "collections.OrderedDict": self.state,
            "collections.Counter": self.state,
            "_codecs.encode": self.encode,
            **admitted,
        }

    def find_class(self, module: str, name: str) -> Any:
        """What is admitted under a name. Raises Refused."""
        if (full := f"{module}.{name}") not in self.admitted:
            raise Refused(full)
        return self.admitted[full]

    def load_build(self) -> None:
        """Only the stand-ins of this package take a state; other objects stay as they are."""
        state = self.stack.pop()  # type: ignore[attr-defined]
        made = self.stack[-1]  # type: ignore[attr-defined]
        if type(made) not in (State, *self.admitted.values()):
            raise Refused(f"the state of a {type(made).__name__}")
        made.__setstate__(state)

    dispatch[pickle.BUILD[0]] = load_build

    def load_frame(self) -> None:
        """Frames help readers of streams; without them each value is a step."""
        self.read(8)  # type: ignore[attr-defined]

    dispatch[pickle.FRAME[0]] = load_frame

    def copy(self, number: int) -> None:
        """Count values that are copied: more than a file has bytes were copied again and again."""
        self.copied += number
        if self.copied > self.size:
            raise Malformed("its values take much more memory than the file")

    def state(self, items: Any = ()) -> State:
        """Python 2 gave `OrderedDict` its items as a list."""
        self.copy(len(items))
        return State(items)

    def encode(self, text: str, encoding: str) -> str:
        """Python 3 writes bytes as text in protocol 2; it is left one, as Python 2 wrote it."""
        if type(text) is not str or encoding != "latin1":
            raise Refused(f"_codecs.encode to {encoding}")
        self.copy(len(text))
        return text


class _Steps:
    """A file of which nothing larger than itself is read, and not without end."""

    def __init__(self, file: BinaryIO, size: int) -> None:
        self.file, self.size, self.left = file, size, MOST_STEPS

    def read(self, number: int) -> bytes:
        self.left -= 1
        if self.left < 0:
            raise Malformed("its pickle has millions of values, which weights have not")
        if number > self.size:
            raise Malformed(f"a value claims {number} bytes, the file has {self.size}")
        return self.file.read(number)

    def readline(self) -> bytes:
        line = self.file.readline()
        if not line.endswith(b"\n"):
            raise Malformed("it ends within a name")
        return line
