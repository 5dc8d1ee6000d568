"""The three APIs: every name that the code uses is there; nothing can be built without a GPU."""

import ast
import json
import subprocess
import sys
import zipfile
from pathlib import Path
from shutil import which

import pytest
import recorded_tensorrt

from nlzoo.export import backend
from nlzoo.export.engine import DTYPES

EXPORT = Path(backend.__file__).parent
# Whose attributes they are: file -> variable or attribute -> class of the bindings.
CLASSES = {
    "backend.py": {"levels": "ILogger.Severity"},
    "tensorrt.py": {
        "builder": "Builder",
        "network": "INetworkDefinition",
        "parser": "OnnxParser",
        "no": "ParserError",
        "config": "IBuilderConfig",
        "profile": "IOptimizationProfile",
        "layer": "ILayer",
    },
    "engine.py": {
        "_runtime": "Runtime",
        "engine": "ICudaEngine",
        "_engine": "ICudaEngine",
        "context": "IExecutionContext",
        "config": "IRuntimeConfig",
        "_cache": "IRuntimeCache",
    },
}
RETURNS = {
    "ITensor.dtype": "DataType",
    "get_output": "ITensor",
    "get_tensor_dtype": "DataType",
    "get_timing_cache": "ITimingCache",
}
# Only TensorRT-RTX has these; the code uses them where hasattr finds them.
RTX_ONLY = {
    "IBuilderConfig.set_compute_capability",
    "IBuilderConfig.num_compute_capabilities",
    "ComputeCapability",
    "ComputeCapability.__members__",
    "CudaGraphStrategy",
    "CudaGraphStrategy.WHOLE_GRAPH_CAPTURE",
    "IRuntimeConfig.cuda_graph_strategy",
    "IRuntimeConfig.create_runtime_cache",
    "IRuntimeConfig.set_runtime_cache",
    "IRuntimeCache",
    "IRuntimeCache.serialize",
    "IRuntimeCache.deserialize",
    "Runtime.get_engine_validity",
    "EngineInvalidityDiagnostics",
    "EngineInvalidityDiagnostics.__members__",
}
NINE = """createInferBuilder_INTERNAL createInferRuntime_INTERNAL createInferRefitter_INTERNAL
createNvOnnxParser_INTERNAL createNvOnnxParserRefitter_INTERNAL getNvOnnxParserVersion
getPluginRegistry getBuilderPluginRegistry initLibNvInferPlugins"""


def path_of(node, classes):
    """`trt.BuilderFlag.TF32` -> BuilderFlag.TF32, `config.set_flag` -> IBuilderConfig.set_flag."""
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
        return RETURNS.get(node.func.attr)
    if isinstance(node, ast.Name):
        return "" if node.id == "trt" else classes.get(node.id)
    if not isinstance(node, ast.Attribute):
        return None
    if isinstance(node.value, ast.Name) and node.value.id == "self":
        return classes.get(node.attr)
    outer = path_of(node.value, classes)
    outer = RETURNS.get(outer, outer)
    return None if outer is None else f"{outer}.{node.attr}".lstrip(".")


def used():
    """Every name of the bindings in the code."""
    found = set()
    for name, classes in CLASSES.items():
        for node in ast.walk(ast.parse((EXPORT / name).read_text("utf-8"))):
            if isinstance(node, ast.Attribute) and (path := path_of(node, classes)):
                found.add(path)
    return found | {f"DataType.{name}" for name in DTYPES}


ASK = """
import functools, importlib, json, sys
trt = importlib.import_module(sys.argv[1])
def there(path):
    try:
        functools.reduce(getattr, path.split("."), trt)
    except AttributeError:
        return False
    return True
print(json.dumps([path for path in json.loads(sys.argv[2]) if not there(path)]))
"""


def missing(module, names, **environment):
    """The names that a module lacks, asked for in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-c", ASK, module, json.dumps(sorted(names))],
        capture_output=True,
        text=True,
        env=environment,
    )
    assert done.returncode == 0, done.stderr
    return set(json.loads(done.stdout))


def test_the_names_are_found():
    """By a reading of the code that sees all kinds."""
    assert used() > RTX_ONLY
    assert used() > {
        "BuilderFlag.TF32",
        "ParserError.node_operator",
        "IExecutionContext.execute_async_v3",
        "ITimingCache.serialize",
        "DataType.name",
        "ILogger.Severity",
        "Runtime.deserialize_cuda_engine",
    }


def test_rtx_has_every_name():
    recorded_tensorrt.need_rtx()
    assert missing("tensorrt_rtx", used()) == set()


@pytest.mark.slow
@pytest.mark.parametrize("version", ["10.16.1.11", "11.4.0.106"])
def test_tensorrt_has_every_name(tmp_path, version):
    """The bindings load over libraries of nine empty functions, which can be compiled anywhere."""
    compiler = which("cc") or which("gcc")
    if compiler is None:
        pytest.skip("no C compiler")
    wheel = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", str(tmp_path)]
    if subprocess.run([*wheel, f"tensorrt-cu13-bindings=={version}"]).returncode:
        pytest.skip("no network: pip finds no tensorrt-cu13-bindings")
    with zipfile.ZipFile(next(tmp_path.glob("*.whl"))) as file:
        file.extractall(tmp_path)
    (tmp_path / "nine.c").write_text("\n".join(f"void {name}(void) {{}}" for name in NINE.split()))
    for name in ("nvinfer", "nvonnxparser", "nvinfer_plugin"):
        library = f"lib{name}.so.{version.split('.')[0]}"
        options = ["-shared", "-fPIC", f"-Wl,-soname,{library}", "-o", library, "nine.c"]
        subprocess.run([compiler, *options], cwd=tmp_path, check=True)
    places = {"PYTHONPATH": str(tmp_path), "LD_LIBRARY_PATH": str(tmp_path)}
    assert missing("tensorrt_bindings", used(), **places) == RTX_ONLY
    recorded = {
        f"{kind.__name__}.{name}"
        for kind in vars(recorded_tensorrt).values()
        if isinstance(kind, type) and kind.__module__ == "recorded_tensorrt"
        for name in vars(kind)
        if not name.startswith("_")
    }
    assert len(recorded) > 40
    assert missing("tensorrt_bindings", recorded, **places) == set()


def test_a_missing_backend_says_what_to_install(monkeypatch):
    for name in ("tensorrt", "tensorrt_rtx"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(
        ValueError, match=r"TensorRT-RTX is missing: pip install 'nlzoo\[tensorrt\]'"
    ):
        backend.load_backend()
    with pytest.raises(ValueError, match=r"TensorRT is missing: .*docs/deploy.md"):
        backend.load_backend("tensorrt")
