"""One thread a process: tests run side by side, and so does what they start."""

import os

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture(scope="session")
def exported(tmp_path_factory):
    """A small video network: its checkpoint, itself, and its ONNX file, which nothing changes."""
    from test_export import checkpoint

    from nlzoo.export.onnx import export_onnx

    folder = tmp_path_factory.mktemp("exported")
    source, model = checkpoint(folder / "c.ckpt")
    export_onnx(source, folder / "m.onnx")
    return source, model, folder / "m.onnx"
