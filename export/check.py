"""Will a runtime take a file, which node stops it, and is each attention fusable there?"""

from collections.abc import Sequence
from dataclasses import replace
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory

import onnx

from nlzoo.export.attention import attentions
from nlzoo.export.backend import load_backend
from nlzoo.export.limits import Finding, View, explain, limits_of
from nlzoo.export.profiles import choose_profiles
from nlzoo.export.spec import read_onnx, spec_of
from nlzoo.export.tensorrt import Refused, Wishes, build_plan
from nlzoo.names import check_choice
from nlzoo.program import one_line

TARGETS = {  # title, the module that can be asked, what to install for it
    "rtx": ("TensorRT-RTX", "tensorrt_rtx", "tensorrt-rtx-cu13"),
    "trt10": ("TensorRT 10", "", ""),  # these need a GPU
    "trt11": ("TensorRT 11", "", ""),
    "ort": ("ONNX Runtime", "onnxruntime", "onnxruntime"),
    "openvino": ("OpenVINO", "openvino", "openvino"),
}


def check(path: str | Path, target: str = "rtx", profiles: Sequence[str] = ()) -> list[Finding]:
    """What a target thinks of a file, without a GPU; a package that is installed is asked.

    Args:
        path: an ONNX file.
        target: rtx, trt10, trt11, ort or openvino.
        profiles: sizes to build for (rtx), see `nlzoo.export.profiles.choose_profiles`.

    Returns:
        First whether it builds, and who says so; then the nodes that stop it; then each attention,
        and whether a fused kernel can do it.

    Raises:
        FileNotFoundError: no such file, or its weights are not beside it.
        ValueError: it is no ONNX file; an unknown target; a wrong profile.
    """
    check_choice("target", target, TARGETS)
    path, model = Path(path), read_onnx(path)
    view, (title, module, package) = View(model), TARGETS[target]
    found, fused = limits_of(view, target), None
    if module and find_spec(module):
        refused, fused = ASK[target](path, model, profiles)
        # It names its first node only; if it takes the file, the limits were another release's.
        found = refused + [f for f in found if f not in refused] if refused else []
        who = f"; {title} {import_module(module).__version__} was asked"
    else:
        who = f", by what is known of {title}"
        who += f"; it is asked where {package} is installed" if package else ""
    stops = any(finding.stops for finding in found)
    verdict = Finding("", "", stops, ("does not build" if stops else "builds") + who)
    inner, spec = attentions(view, target, fused), spec_of(model)
    if spec and spec.is_detector:  # whose scores stay float32
        inner = [replace(finding, remedy="") for finding in inner]
    return [verdict, *found, *inner]


Answer = tuple[list[Finding], set[str] | None]  # what stops it; nodes in kernels of several


def _ask_rtx(path: Path, model: onnx.ModelProto, profiles: Sequence[str]) -> Answer:
    ranges = choose_profiles(model, profiles)
    try:
        build_plan(load_backend("tensorrt_rtx"), path, model, ranges, Wishes())
    except Refused as error:
        return error.findings, None
    return [], None  # which are fused an engine tells on a GPU only


def _ask_ort(path: Path, model: onnx.ModelProto, profiles: Sequence[str]) -> Answer:
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.log_severity_level = 4
    with TemporaryDirectory() as folder:
        optimized = Path(folder) / "optimized.onnx"
        options.optimized_model_filepath = str(optimized)
        try:
            ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        except Exception as error:  # one class for each reason
            return explain(model, "ort", one_line(error)), None
        left = {node.name for node in read_onnx(optimized).graph.node}
    return [], {node.name for node in model.graph.node} - left


def _ask_openvino(path: Path, model: onnx.ModelProto, profiles: Sequence[str]) -> Answer:
    import openvino

    try:
        compiled = openvino.Core().compile_model(str(path), "CPU")
    except RuntimeError as error:
        return explain(model, "openvino", one_line(error)), None
    infos = [node.get_rt_info() for node in compiled.get_runtime_model().get_ordered_ops()]
    names = [info["originalLayersNames"].astype(str).split(",") for info in infos]
    return [], {name for several in names if len(several) > 1 for name in several}


ASK = {"rtx": _ask_rtx, "ort": _ask_ort, "openvino": _ask_openvino}
