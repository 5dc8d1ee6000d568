"""One thread a process: tests run side by side, and so does what they start."""

import os

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")

# Before Python 3.14 coverage makes all Python twice as slow, and here most of that is torch's own:
# a compiler, an exporter, networks that are built and counted. Most of ours is covered elsewhere.
NOT_COVERED = {
    *("test_cifar", "test_dialects", "test_export", "test_folded", "test_frames"),
    *("test_image", "test_lite", "test_models", "test_slowfast", "test_tensorrt", "test_video"),
}


def pytest_collection_modifyitems(items):
    """Coverage pauses in them (pytest-cov's marker)."""
    for item in items:
        if item.path.stem in NOT_COVERED or "compile" in item.name:
            item.add_marker("no_cover")


@pytest.fixture(scope="session")
def exported(tmp_path_factory):
    """A small video network: its checkpoint, itself, and its ONNX file, which nothing changes."""
    from test_export import checkpoint

    from nlzoo.export.onnx import export_onnx

    folder = tmp_path_factory.mktemp("exported")
    source, model = checkpoint(folder / "c.ckpt")
    export_onnx(source, folder / "m.onnx")
    return source, model, folder / "m.onnx"
