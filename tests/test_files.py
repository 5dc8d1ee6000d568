"""Files that appear whole or not at all."""

import errno
from pathlib import Path

import pytest

from nlzoo.files import whole_file, write_whole


def write(path: Path, error: Exception) -> None:
    """Half of it, then an error."""
    with whole_file(path) as part:
        part.write_text("half")
        assert part.suffix == path.suffix
        raise error


def test_whole_or_not_at_all(tmp_path):
    path = tmp_path / "new" / "a.txt"
    write_whole(path, "text")
    with pytest.raises(ValueError, match="no"):
        write(path, ValueError("no"))
    assert [p.name for p in path.parent.iterdir()] == ["a.txt"]
    assert path.read_text() == "text"


def test_a_full_disk_names_the_file(tmp_path):
    with pytest.raises(OSError, match=r"No space left on device.*a\.txt") as error:
        write(tmp_path / "a.txt", OSError(errno.ENOSPC, "No space left on device"))
    assert error.value.filename == str(tmp_path / "a.txt")
    assert not list(tmp_path.iterdir())
