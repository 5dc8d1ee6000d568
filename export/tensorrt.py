"""Engines from ONNX files: one builder over TensorRT 10, 11 and TensorRT-RTX."""

import hashlib
import json
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx

from nlzoo.export.backend import INSTALL, load_backend, make_log, quiet, short, title
from nlzoo.export.limits import Finding, explain
from nlzoo.export.profiles import Profile, as_text, choose_profiles
from nlzoo.export.spec import KEY, read_onnx
from nlzoo.files import sha256_of, whole_file, write_whole

CAPABILITIES = ("8.6", "8.9", "12.0")  # of RTX engines by default: cards since GeForce 30


@dataclass(frozen=True)
class Wishes:
    """What a build may be told; what a backend does not have is an error.

    Attributes:
        capabilities: compute capabilities of the cards, such as 8.9: TensorRT-RTX builds for them
            on a machine without a GPU (by default `CAPABILITIES`), TensorRT for the card at hand.
        workspace: memory that a kernel may use, MB.
        optimization_level: 0 to 5.
        timing_cache: file of measured kernels, read and written (TensorRT).
        hardware_compatible: the engine runs on newer cards, too (TensorRT).
        version_compatible: the engine runs on newer releases, too (TensorRT).
    """

    capabilities: Sequence[str] = ()
    workspace: int | None = None
    optimization_level: int | None = None
    timing_cache: str | Path | None = None
    hardware_compatible: bool = False
    version_compatible: bool = False


class Refused(ValueError):  # noqa: N818
    """The parser or the builder says no.

    Attributes:
        findings: the nodes that it says it about, or one without a node.
    """

    def __init__(self, path: Path, findings: Sequence[Finding]) -> None:
        first = findings[0]
        where = f"node {first.node!r} ({first.operator}): " if first.node else ""
        remedy = f"; {first.remedy}" if first.remedy else ""
        super().__init__(f"{path} does not build: {where}{first.what}{remedy}")
        self.findings = list(findings)


def build_engine(
    onnx_path: str | Path,
    output: str | Path,
    *,
    profiles: Sequence[str] = (),
    backend: str = "",
    **wishes: Any,
) -> dict[str, Any]:
    """Build an engine, and write beside it `OUTPUT.json`, which says what it is.

    The precision is that of the file: networks are strongly typed, without TF32.

    Args:
        onnx_path: a file of `nlzoo.export.onnx`, or any other.
        output: engine file to write.
        profiles: ranges of the inputs' sizes, each `NAME=MIN:OPT:MAX`, see `choose_profiles`.
        backend: tensorrt or tensorrt_rtx; by default the one that is installed, tensorrt_rtx if
            capabilities are given.
        **wishes: attributes of `Wishes`.

    Returns:
        The content of `OUTPUT.json`.

    Raises:
        FileNotFoundError: no such file, or its weights are not beside it.
        ValueError: a wrong file or profile; a wish that the backend does not have; `Refused`.
    """
    wished = Wishes(**wishes)
    model, onnx_path, output = read_onnx(onnx_path), Path(onnx_path), Path(output)
    if output.suffix != ".engine":  # by which the other programs know it
        raise ValueError(f"{output}: an engine is called NAME.engine")
    trt = load_backend(backend or ("tensorrt_rtx" if wished.capabilities else ""))
    ranges = choose_profiles(model, profiles)
    plan, facts = build_plan(trt, onnx_path, model, ranges, wished)
    engine = hashlib.sha256(plan).hexdigest()
    source = sha256_of(onnx_path)
    metadata = {entry.key: entry.value for entry in model.metadata_props if entry.key == KEY}
    content = {
        "engine": {"file": output.name, "bytes": len(memoryview(plan)), "sha256": engine},
        "onnx": {"file": onnx_path.name, "bytes": onnx_path.stat().st_size, "sha256": source},
        "backend": trt.__name__,
        "version": trt.__version__,
        "profiles": [as_text(profile) for profile in ranges],
        **facts,
        **metadata,
    }
    with whole_file(output) as part:  # both or none
        part.write_bytes(plan)
        write_whole(output.with_name(f"{output.name}.json"), json.dumps(content, indent=1) + "\n")
    return content


def build_plan(
    trt: Any, path: Path, model: onnx.ModelProto, profiles: Sequence[Profile], wishes: Wishes
) -> tuple[Any, dict[str, Any]]:
    """The bytes of an engine, and what its build was: flags, layers, seconds, memory.

    Raises:
        ValueError: as `build_engine`.
    """
    names = _capabilities(trt, wishes)
    target = "rtx" if names else "trt11"  # whose known limits are those of 10
    log, start = make_log(trt), time.perf_counter()
    with quiet() as noise:
        try:
            builder = trt.Builder(log)
        except (TypeError, RuntimeError) as error:
            reason = short("\n".join(log.errors)) or str(error)
            raise ValueError(f"{title(trt)} needs an NVIDIA GPU and driver: {reason}") from error
        network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
        parser = trt.OnnxParser(network, log)
        if not parser.parse_from_file(str(path)):
            no = parser.get_error(0)
            reason, node = short(no.desc()), (no.node_name(), no.node_operator())
            raise Refused(path, explain(model, target, f"{title(trt)} says: {reason}", [node]))
        config = builder.create_builder_config()
        _configure(trt, builder, config, profiles, names, wishes)
        cache = _timing_cache(config, wishes)  # to be kept until the engine is built
        plan = builder.build_serialized_network(network, config)
        if plan is None:
            noise.seek(0)
            reason = short("\n".join(log.errors) or noise.read().decode(errors="replace"))
            raise Refused(path, explain(model, target, f"{title(trt)} says: {reason}"))
    if cache and wishes.timing_cache:
        write_whole(wishes.timing_cache, memoryview(config.get_timing_cache().serialize()))
    flags = trt.BuilderFlag.__members__
    return plan, {
        "compute_capabilities": list(names.values()),
        "flags": [name for name, flag in flags.items() if config.get_flag(flag)],
        "workspace_mb": wishes.workspace,
        "optimization_level": config.builder_optimization_level,
        "hardware_compatible": wishes.hardware_compatible,
        "version_compatible": wishes.version_compatible,
        "layers": network.num_layers,
        "precisions": _precisions(network),
        "seconds": round(time.perf_counter() - start, 2),
        "peak_memory_mb": _peak_memory(),
    }


def _peak_memory() -> int | None:
    """Of this process, MB."""
    try:
        import resource
    except ImportError:  # Windows
        return None
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024


def _capabilities(trt: Any, wishes: Wishes) -> dict[str, str]:
    """Member of ComputeCapability -> number, of those to build for; empty: the card at hand."""
    if not hasattr(trt.IBuilderConfig, "set_compute_capability"):
        if wishes.capabilities:
            raise ValueError(
                f"{title(trt)} builds for the card at hand; --compute-capability needs "
                f"TensorRT-RTX: {INSTALL['tensorrt_rtx']}"
            )
        return {}
    for name in ("timing_cache", "hardware_compatible", "version_compatible"):
        if getattr(wishes, name):  # it has the attributes, which do nothing or fail
            raise ValueError(
                f"{title(trt)} has no --{name.replace('_', '-')}: it compiles kernels where the "
                "engine runs"
            )
    there = {f"{m[2:-1]}.{m[-1]}": m for m in trt.ComputeCapability.__members__ if m[-1].isdigit()}
    names = {}
    for number in wishes.capabilities or CAPABILITIES:
        if number not in there:
            raise ValueError(
                f"{title(trt)} has no compute capability {number!r}; there are {', '.join(there)}"
            )
        names[there[number]] = number
    return names


def _configure(
    trt: Any,
    builder: Any,
    config: Any,
    profiles: Sequence[Profile],
    names: dict[str, str],
    wishes: Wishes,
) -> None:
    config.clear_flag(trt.BuilderFlag.TF32)  # float32 scores would keep no more digits than float16
    if names:
        config.num_compute_capabilities = len(names)  # before any of them
        for index, name in enumerate(names):
            config.set_compute_capability(getattr(trt.ComputeCapability, name), index)
    for ranges in profiles:
        profile = builder.create_optimization_profile()
        for name, shapes in ranges.items():
            profile.set_shape(name, *shapes)
        config.add_optimization_profile(profile)
    if wishes.workspace is not None:
        if wishes.workspace < 1:
            raise ValueError(f"workspace {wishes.workspace} MB: give 1 or more")
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, wishes.workspace << 20)
    if (level := wishes.optimization_level) is not None:
        if level not in range(6):
            raise ValueError(f"optimization level {level}: give 0 to 5")
        config.builder_optimization_level = level
    if wishes.hardware_compatible:
        config.hardware_compatibility_level = trt.HardwareCompatibilityLevel.AMPERE_PLUS
    if wishes.version_compatible:
        config.set_flag(trt.BuilderFlag.VERSION_COMPATIBLE)


def _timing_cache(config: Any, wishes: Wishes) -> Any:
    if not wishes.timing_cache:
        return None
    path = Path(wishes.timing_cache)
    cache = config.create_timing_cache(path.read_bytes() if path.is_file() else b"")
    if not config.set_timing_cache(cache, False):
        raise ValueError(f"{path} is of another card or release; delete it, or name another")
    return cache


def _precisions(network: Any) -> dict[str, float]:
    """Share of the layers by the type of their first output."""
    layers = [network.get_layer(i) for i in range(network.num_layers)]
    counts = Counter(layer.get_output(0).dtype.name for layer in layers if layer.num_outputs)
    return {name: round(n / counts.total(), 4) for name, n in counts.most_common()}
