"""Pickles, read without running anything and in memory that the size of the file bounds."""

import pickle
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from typing import Any, BinaryIO, ClassVar

MOST_STEPS = 2_000_000  # 30,000 tensors; with many more, values outgrow their file
OMITTED = (  # byte arrays make the room that is claimed, extensions come from a registry
    *(pickle.BYTEARRAY8, pickle.EXT1, pickle.EXT2, pickle.EXT4),
    *(pickle.NEWOBJ, pickle.NEWOBJ_EX),  # nothing that is admitted needs it
    *(pickle.DICT, pickle.EMPTY_SET, pickle.ADDITEMS, pickle.FROZENSET),  # nor of unchecked keys
)


class Refused(pickle.UnpicklingError):
    """A pickle asks for something that is not admitted; the text is its name."""


class Malformed(ValueError):  # noqa: N818
    """What is wrong with a file, in a few words."""


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
        if bytes([code]) not in OMITTED
    }

    def __init__(
        self, file: BinaryIO, size: int, admitted: Mapping[str, Any], encoding: str
    ) -> None:
        super().__init__(_Steps(file, size), encoding=encoding)
        self.size, self.copied = size, 0
        self.admitted = {
            "collections.OrderedDict": self.ordered,
            "collections.Counter": lambda counts: self.ordered(counts.items()),
            "_codecs.encode": self.encode,
            **admitted,
        }

    def find_class(self, module: str, name: str) -> Any:
        """What is admitted under a name. Raises Refused."""
        if (full := f"{module}.{name}") not in self.admitted:
            raise Refused(full)
        return self.admitted[full]

    def load_build(self) -> None:
        """Only the stand-ins of this package take a state; an `OrderedDict` stays without."""
        state = self.stack.pop()  # type: ignore[attr-defined]
        made = self.stack[-1]  # type: ignore[attr-defined]
        if type(made) is OrderedDict and isinstance(state, dict):
            self.copy(len(state))
        elif type(made) in self.admitted.values():
            made.__setstate__(state)
        else:
            raise Refused(f"the state of a {type(made).__name__}")

    dispatch[pickle.BUILD[0]] = load_build

    def load_setitem(self) -> None:
        """Only with a key that is plain."""
        _check_keys(self.stack[-2:-1])  # type: ignore[attr-defined]
        super().load_setitem()  # type: ignore[misc]

    dispatch[pickle.SETITEM[0]] = load_setitem

    def load_setitems(self) -> None:
        """Only with keys that are plain."""
        _check_keys(self.stack[::2])  # type: ignore[attr-defined]
        super().load_setitems()  # type: ignore[misc]

    dispatch[pickle.SETITEMS[0]] = load_setitems

    def load_frame(self) -> None:
        """Frames help readers of streams; without them each value is a step."""
        self.read(8)  # type: ignore[attr-defined]

    dispatch[pickle.FRAME[0]] = load_frame

    def copy(self, number: int) -> None:
        """Count values that are copied: more than a file has bytes were copied again and again."""
        self.copied += number
        if self.copied > self.size:
            raise Malformed("its values take much more memory than the file")

    def ordered(self, items: Any = ()) -> OrderedDict[Any, Any]:
        """Python 2 gave `OrderedDict` its items as a list."""
        self.copy(len(items))
        pairs = [(k, v) for k, v in (items.items() if isinstance(items, dict) else items)]
        _check_keys(key for key, _ in pairs)
        return OrderedDict(pairs)

    def encode(self, text: str, encoding: str) -> str:
        """Python 3 writes bytes as text in protocol 2; it is left one, as Python 2 wrote it."""
        if type(text) is not str or encoding != "latin1":
            raise Refused("_codecs.encode to another encoding")
        self.copy(len(text))
        return text


def _check_keys(keys: Iterable[Any]) -> None:
    """Only those that are hashed at once: a tuple may name another twice, and that another."""
    for key in keys:
        large = type(key) is int and abs(key) >= 2**60  # many such may have one hash
        if large or type(key) not in (str, bytes, int, float, bool, type(None)):
            raise Refused(f"a key of type {type(key).__name__}")


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
