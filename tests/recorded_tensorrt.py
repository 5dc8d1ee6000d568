"""A recorded TensorRT: the names of its bindings that the code uses, for machines without it.

A build notes what it was told; an engine doubles its input. `tests/test_tensorrt.py` compares the
names with the real bindings.
"""

import ctypes
import json
import math
import sys
from enum import IntEnum
from types import SimpleNamespace

import onnx
import pytest
from onnx import TensorProto, helper

__version__ = "10.16.1.11"


class ILogger:
    class Severity(IntEnum):
        INTERNAL_ERROR = 0
        ERROR = 1
        WARNING = 2

    def __init__(self):
        pass


class NetworkDefinitionCreationFlag(IntEnum):
    STRONGLY_TYPED = 1


class BuilderFlag(IntEnum):
    TF32 = 7
    VERSION_COMPATIBLE = 13


class HardwareCompatibilityLevel(IntEnum):
    NONE = 0
    AMPERE_PLUS = 1


class MemoryPoolType(IntEnum):
    WORKSPACE = 0


class TensorIOMode(IntEnum):
    NONE = 0
    INPUT = 1
    OUTPUT = 2


class DataType(IntEnum):
    FLOAT = 0


class ITimingCache:
    def __init__(self, content):
        self._content = content

    def serialize(self):
        return self._content + b"!"


class IBuilderConfig:
    def __init__(self):
        self.builder_optimization_level = 3
        self.hardware_compatibility_level = HardwareCompatibilityLevel.NONE
        self._flags, self._profiles, self._limits = {BuilderFlag.TF32}, [], {}

    def set_flag(self, flag):
        self._flags.add(flag)

    def clear_flag(self, flag):
        self._flags.discard(flag)

    def get_flag(self, flag):
        return flag in self._flags

    def add_optimization_profile(self, profile):
        self._profiles.append(profile._shapes)

    def set_memory_pool_limit(self, pool, size):
        self._limits[pool.name] = size

    def create_timing_cache(self, content):
        return ITimingCache(content)

    def set_timing_cache(self, cache, ignore_mismatch):
        self._cache = cache
        return cache._content != b"foreign"

    def get_timing_cache(self):
        return self._cache


class IOptimizationProfile:
    def __init__(self):
        self._shapes = {}

    def set_shape(self, name, *shapes):
        self._shapes[name] = shapes


class ILayer:
    num_outputs = 1

    def get_output(self, index):
        return SimpleNamespace(dtype=DataType.FLOAT)


class INetworkDefinition:
    num_layers = 2

    def get_layer(self, index):
        return ILayer()


class OnnxParser:
    def __init__(self, network, logger):
        pass

    def parse_from_file(self, path):
        return True


class Builder:
    def __init__(self, logger):
        pass

    def create_network(self, flags):
        assert flags == 1 << NetworkDefinitionCreationFlag.STRONGLY_TYPED
        return INetworkDefinition()

    def create_builder_config(self):
        return IBuilderConfig()

    def create_optimization_profile(self):
        return IOptimizationProfile()

    def build_serialized_network(self, network, config):
        told = {
            "profiles": config._profiles,
            "limits": config._limits,
            "hardware": config.hardware_compatibility_level.name,
        }
        return json.dumps(told).encode()


class IExecutionContext:
    def __init__(self):
        self._addresses, self._shape, self.profile = {}, (), 0

    def set_optimization_profile_async(self, index, stream):
        self.profile = index

    def set_input_shape(self, name, shape):
        self._shape = shape

    def get_tensor_shape(self, name):
        return self._shape

    def set_tensor_address(self, name, address):
        self._addresses[name] = address

    def execute_async_v3(self, stream):
        numbers = math.prod(self._shape)
        take, give = (
            (ctypes.c_float * numbers).from_address(self._addresses[n]) for n in ("input", "output")
        )
        for i in range(numbers):
            give[i] = 2 * take[i]
        return True


class ICudaEngine:
    num_io_tensors = 2

    def __init__(self, told):
        self._profiles = told["profiles"]
        self.num_optimization_profiles = len(self._profiles)

    def get_tensor_name(self, index):
        return ("input", "output")[index]

    def get_tensor_mode(self, name):
        return TensorIOMode.INPUT if name == "input" else TensorIOMode.OUTPUT

    def get_tensor_dtype(self, name):
        return DataType.FLOAT

    def get_tensor_shape(self, name):
        return (-1, *self._profiles[0]["input"][0][1:])

    def get_tensor_profile_shape(self, name, index):
        return self._profiles[index][name]

    def create_execution_context(self):
        return IExecutionContext()


class Runtime:
    def __init__(self, logger):
        self._logger, self.engine_host_code_allowed = logger, False

    def deserialize_cuda_engine(self, plan):
        if plan[:1] == b"{":
            return ICudaEngine(json.loads(plan))
        self._logger.log(ILogger.Severity.ERROR, "Magic tag does not match")
        return None


def install(monkeypatch):
    """`import tensorrt` finds this module."""
    module = sys.modules[Builder.__module__]
    monkeypatch.setattr(module, "__name__", "tensorrt")
    monkeypatch.setitem(sys.modules, "tensorrt", module)
    return module


def need_rtx():
    return pytest.importorskip("tensorrt_rtx", reason="pip install 'nlzoo[tensorrt]'")


def relu(path, shape=("batch", 3, "width"), op="Relu", **more):
    """The smallest file."""
    sizes = [helper.make_tensor_value_info(n, TensorProto.FLOAT, shape) for n in ("input", "y")]
    node = helper.make_node(op, ["input"], ["y"], name="the_node")
    graph = helper.make_graph([node], "g", sizes[:1], sizes[1:], **more)
    opset = [helper.make_opsetid("", 18)]
    onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=10), path)
    return path
