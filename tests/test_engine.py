"""Engines on a GPU; without one, a recorded TensorRT on the CPU shows what is called, and when."""

from contextlib import contextmanager, nullcontext
from copy import deepcopy
from enum import IntEnum
from types import SimpleNamespace

import pytest
import recorded_tensorrt
import torch
from recorded_tensorrt import need_rtx, relu
from torch import nn

from nlzoo import NonLocalBlock
from nlzoo.export import engine
from nlzoo.export.engine import EngineSession
from nlzoo.export.onnx import export_onnx
from nlzoo.export.parity import compare, draw_inputs
from nlzoo.export.runtime import Runner
from nlzoo.export.tensorrt import CAPABILITIES, build_engine


@pytest.fixture
def recorded(monkeypatch):
    return recorded_tensorrt.install(monkeypatch)


@pytest.fixture
def gpu(recorded, monkeypatch):
    """PyTorch's GPU in the engine's eyes: it is the CPU, where streams have nothing to order."""

    class Stream(SimpleNamespace):
        def __init__(self, device=None):
            super().__init__(cuda_stream=0)

        def wait_stream(self, other):
            pass

    class Graph:
        replays = 0

        def replay(self):
            Graph.replays += 1
            self.work()

    @contextmanager
    def graph(recording, stream):
        calls, execute = [], recorded.IExecutionContext.execute_async_v3
        monkeypatch.setattr(
            recorded.IExecutionContext,
            "execute_async_v3",
            lambda context, stream: calls.append((context, deepcopy(vars(context)))) or True,
        )
        yield
        monkeypatch.setattr(recorded.IExecutionContext, "execute_async_v3", execute)
        ((context, state),) = calls

        def work():
            vars(context).update(deepcopy(state))
            execute(context, 0)

        recording.work = work

    cuda = SimpleNamespace(
        is_available=lambda: True,
        device=lambda device: nullcontext(),
        stream=lambda stream: nullcontext(),
        Stream=Stream,
        current_stream=Stream,
        CUDAGraph=Graph,
        graph=graph,
        get_device_capability=lambda device: (9, 0),
        get_device_name=lambda device: "H100",
    )
    fake = SimpleNamespace(cuda=cuda, empty=torch.empty, device=lambda *at: torch.device("cpu"))
    monkeypatch.setattr(engine, "torch", fake)
    return Graph


class Twice(nn.Module):
    def forward(self, x):
        return 2 * x


def engine_file(folder):
    shapes = ["input=1x3:1x3:2x3", "input=4x3:4x3:8x3"]
    build_engine(relu(folder / "m.onnx", ("batch", 3)), folder / "m.engine", profiles=shapes)
    return folder / "m.engine"


def test_an_engine_runs_in_any_order_of_shapes(tmp_path, gpu, monkeypatch):
    """The second call of a shape is recorded, later ones replay it, for two of the three shapes."""
    session = EngineSession(engine_file(tmp_path))
    assert session.inputs["input"].ranges == (((1, 3), (2, 3)), ((4, 3), (8, 3)))
    monkeypatch.setattr(engine, "RECORDINGS", 2)
    inputs = [torch.randn(n, 3) for n in (1, 4, 1, 1, 8, 4, 1, 8, 8, 4)]
    outputs = [session.run({"input": x})["output"] for x in inputs]
    for x, y in zip(inputs, outputs, strict=True):
        assert torch.equal(y, 2 * x)
    assert gpu.replays == 5
    assert [session._contexts[i].profile for i in (0, 1)] == [0, 1]
    session.close()


def test_runners_take_engines(tmp_path, gpu):
    """The recorded engine doubles its input, as the network does."""
    export_onnx(Twice(), tmp_path / "m.onnx", shape=(2, 3, 4))
    profiles = ["input=1x3x4:2x3x4:5x3x4"]
    build_engine(tmp_path / "m.onnx", tmp_path / "m.engine", profiles=profiles)
    with Runner(tmp_path / "m.engine") as runner:
        assert (runner.runtime, runner.spec.model) == ("engine", "Twice")
        inputs = draw_inputs(runner.spec, runner, runner.profiles)
        assert [len(x) for x in inputs] == [2, 5, 3, 1]  # a batch of 8 is more than it takes
        assert compare(Twice(), runner, inputs).relative_l2 == 0
        with pytest.raises(ValueError, match=r"\(1, 3, 5\), wanted \(batch, 3, 4\)"):
            runner(torch.zeros(1, 3, 5))


def test_engines_that_say_too_little(tmp_path, gpu):
    path = engine_file(tmp_path)
    with pytest.raises(ValueError, match="built from a file of others"):
        Runner(path)
    (tmp_path / "m.engine.json").write_text("half a fi")
    with pytest.raises(ValueError, match=r"m\.engine\.json is damaged"):
        Runner(path)
    (tmp_path / "m.engine.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"no .*m\.engine\.json.*copy both"):
        Runner(path)
    path.unlink()
    with pytest.raises(FileNotFoundError, match="no engine"):
        Runner(path)


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({"x": torch.zeros(1, 3)}, "inputs are x, wanted input"),
        ({"input": torch.zeros(1, 3).half()}, "dtype torch.float16, wanted torch.float32"),
        (
            {"input": torch.zeros(3, 3)},
            r"\(3, 3\), the engine is built for \(1, 3\) to \(2, 3\), \(4",
        ),
        ({"input": torch.zeros(1, 4)}, r"\(1, 4\), the engine is built for"),
        ({"input": torch.zeros(3)}, r"\(3,\), the engine is built for"),
    ],
)
def test_inputs_that_an_engine_does_not_take(tmp_path, gpu, inputs, message):
    session = EngineSession(engine_file(tmp_path))
    with pytest.raises(ValueError, match=message):
        session.run(inputs)


def test_a_foreign_engine_says_release_and_card(tmp_path, gpu, recorded, monkeypatch):
    path = engine_file(tmp_path)
    monkeypatch.setattr(recorded.Runtime, "deserialize_cuda_engine", lambda self, plan: None)
    validity = "get_engine_validity", lambda self, plan: (2, 2 + 32)
    monkeypatch.setattr(recorded.Runtime, *validity, raising=False)
    bits = IntEnum("Bits", {"VERSION_MISMATCH": 1, "UNSUPPORTED_CC": 2, "MALFORMED_ENGINE": 32})
    monkeypatch.setattr(recorded, "EngineInvalidityDiagnostics", bits, raising=False)
    with pytest.raises(ValueError, match="does not load") as error:
        EngineSession(path)
    assert str(error.value).removeprefix(f"{path}, ") == (
        "built by TensorRT 10.16.1.11 for another card, does not load in TensorRT 10.16.1.11 on "
        "H100 (compute capability 9.0): UNSUPPORTED_CC, MALFORMED_ENGINE; build it here: "
        "python -m nlzoo.export tensorrt"
    )


def test_a_corrupt_engine_of_nobody_says_what_the_runtime_does(tmp_path, gpu):
    (tmp_path / "m.engine").write_bytes(b"ftrt")
    with pytest.raises(ValueError, match=r"by an unknown release.*: Magic tag does not match; "):
        EngineSession(tmp_path / "m.engine")


def test_rtx_keeps_its_kernels_beside_the_engine(tmp_path, gpu, recorded, monkeypatch):
    """It records launches itself; what it compiled is there at the next start."""

    class Cache:
        kernels = b""

        def deserialize(self, blob):
            self.kernels = blob

        def serialize(self):
            return self.kernels + b"k"

    configs = []

    def create_runtime_config(self):
        configs.append(
            SimpleNamespace(create_runtime_cache=Cache, set_runtime_cache=lambda c: None)
        )
        return configs[-1]

    def create_execution_context(self, config):
        assert config is configs[-1]
        return recorded.IExecutionContext()

    strategies = SimpleNamespace(WHOLE_GRAPH_CAPTURE="whole")
    monkeypatch.setattr(recorded, "CudaGraphStrategy", strategies, raising=False)
    for method in (create_runtime_config, create_execution_context):
        monkeypatch.setattr(recorded.ICudaEngine, method.__name__, method, raising=False)
    path, x = engine_file(tmp_path), torch.randn(2, 3)
    for start in (1, 2):
        session = EngineSession(path)
        for _ in range(3):
            assert torch.equal(session.run({"input": x})["output"], 2 * x)
        session.close()
        assert (tmp_path / "m.engine.cache").read_bytes() == b"k" * start
        assert configs[-1].cuda_graph_strategy == "whole"
    assert gpu.replays == 0


def test_a_damaged_engine_is_found_without_a_gpu(tmp_path, recorded):
    path = engine_file(tmp_path)
    if not torch.cuda.is_available():
        with pytest.raises(ValueError, match="needs an NVIDIA GPU; PyTorch finds none here"):
            EngineSession(path)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ValueError, match=r"m.engine is damaged, or m.engine.json is another"):
        EngineSession(path)
    (tmp_path / "m.engine.json").write_text("{")
    with pytest.raises(ValueError, match=r"m.engine.json is damaged"):
        EngineSession(path)
    with pytest.raises(FileNotFoundError, match=r"no engine .*none.engine; make it by"):
        EngineSession(tmp_path / "none.engine")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_an_engine_on_a_gpu_computes_what_the_network_does(tmp_path):
    need_rtx()
    capability = ".".join(map(str, torch.cuda.get_device_capability()))
    if capability not in CAPABILITIES:
        pytest.skip(f"TensorRT-RTX has no engines for compute capability {capability}")
    block = NonLocalBlock(32, dims=3, zero_init=False).eval()
    export_onnx(block, tmp_path / "m.onnx", shape=(2, 32, 4, 6, 8))
    build_engine(tmp_path / "m.onnx", tmp_path / "m.engine", backend="tensorrt_rtx")
    for _ in range(2):  # the second start finds the kernels
        session = EngineSession(tmp_path / "m.engine")
        for batch in (1, 3, 3, 3):
            x = torch.randn(batch, 32, 4, 6, 8)
            (y,) = session.run({"input": x.cuda()}).values()
            torch.testing.assert_close(y.cpu(), block(x), rtol=1e-3, atol=1e-4)
        session.close()
        assert (tmp_path / "m.engine.cache").stat().st_size
