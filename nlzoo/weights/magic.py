"""What a file is that cannot be read as weights, from how it begins."""

MISTAKES = {  # that come, or are saved, in place of a file
    b"<!doctype": "it is a web page, such as a server's error message",
    b"<html": "it is a web page, such as a server's error message",
    b"<?xml": "it is XML, such as a server's error message",
    b"version https://git-lfs": "it is a pointer of Git LFS, get the file by `git lfs pull`",
}
OTHERS = {
    b"\x1f\x8b": "it is a gzip archive, unpack it first",
    b"bzh": "it is a bzip2 archive, unpack it first",
    b"\xfd7zxz": "it is an xz archive, unpack it first",
    b"\x89hdf": "it is an HDF5 file, as Keras writes them",
}


def mistake(head: bytes) -> str:
    """What came in place of data, of a file that begins so; "" where it may be data."""
    if not head.strip(b"\0"):
        return "it begins with zeros" if head else "it is empty"
    return _known(head, MISTAKES) or ("it is a text" if head.isascii() and 0 not in head else "")


def seems(head: bytes) -> str:
    """What a file that begins so may be, mistakes included."""
    if head[257:262] == b"ustar":
        return "it is a tar archive, unpack it first or save the weights again by torch.save"
    return _known(head, OTHERS) or mistake(head)


def _known(head: bytes, table: dict[bytes, str]) -> str:
    begins = head.lstrip().lower()
    return next((what for start, what in table.items() if begins.startswith(start)), "")
