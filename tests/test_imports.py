"""Which part may know which (design, section 2), how large files are, and what has a docstring."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from statistics import median

import pytest

ROOT = Path(__file__).parents[1]
Function = ast.FunctionDef | ast.AsyncFunctionDef

# A module imports from layers before its own, and from its own package.
LAYERS = [
    {"version", "console", "files", "names", "preprocessing", "geometry", "shapes"},
    {"ops", "convs", "program", "network"},
    {"blocks", "folded"},
    {"insert", "weights"},
    {"networks"},
    {"registry"},
    {"sources", "trained"},
    {"assemble"},
    {"models"},
    {"explain"},
    {"tasks", "data", "weights.verify", "weights.inspect"},
    {"answers", "callbacks", "cost"},
    {"cli", "export.programs"},
    {"fit", "evaluate", "predict", "data.coco.__main__", "weights.__main__", "export"},
    {"__main__", "export.__main__"},
]
# Narrower than their layer.
ONLY = {
    "data": {"files", "names", "preprocessing", "program", "shapes"},
    "weights": {"blocks", "files", "names", "network", "version", "geometry", "preprocessing"},
    "export": {
        "blocks",
        "console",
        "convs",
        "files",
        "models",
        "names",
        "preprocessing",
        "program",
        "networks",
        "registry",
        "version",
    },
    "networks": {
        "files",
        "names",
        "network",
        "preprocessing",
        "geometry",
        "ops",
        "convs",
        "blocks",
        "folded",
        "insert",
    },
    "program": {"names"},
    "callbacks": {"files", "names", "program", "version"},
}
# Those of a package that may know what it may not.
PROGRAMS = ("__main__", "weights.verify", "weights.inspect", "export.programs")
# Packages of others, and the modules that may import them; torch everywhere.
OTHERS = {
    "lightning": {
        "tasks",
        "data",
        "cli",
        "callbacks",
        "cost",
        "fit",
        "evaluate",
        "predict",
    },
    "timm": {"networks.image", "networks.detection", "weights.verify", "tasks", "data.augment"},
    "pytorchvideo": {"networks.video"},
    "torchvision": {
        "networks.detection",
        "weights.torchvision",
        "tasks",
        "data",
        "answers",
        "export",
    },
    "av": {"data.decode", "data.encode", "data.prepare"},
    "torchcodec": {"data.decode"},
    "faster_coco_eval": {"shapes", "tasks", "data"},
    "litdata": {"data.chunks", "data.stream"},
    "botocore": {"data.chunks"},
    "jsonargparse": {
        "program",
        "cli",
        "fit",
        "evaluate",
        "predict",
        "data.coco",
        "data.prepare",
        "data.stream",
        "weights.__main__",
        "__main__",
        "export.__main__",
        "export.programs",
    },
    "onnx": {"export"},
    "onnxruntime": {"export"},
    "openvino": {"export"},
    "tensorrt": {"export"},
    "tensorrt_rtx": {"export"},
    "export": set(),
    "benchmarks": set(),
}
TORCH_ONLY = {"ops", "blocks", "insert", "convs", "folded", "networks.residual"}


def name_of(path: Path) -> str:
    """`nlzoo/data/decode.py` -> `data.decode`, `export/__init__.py` -> `export`."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    parts = parts[parts[0] == "nlzoo" :]  # export is installed as nlzoo.export
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


FILES = {name_of(p): p for part in ("nlzoo", "export") for p in (ROOT / part).rglob("*.py")}
TREES = {name: ast.parse(path.read_text("utf-8")) for name, path in FILES.items()}
MODULES = sorted(name for name in TREES if name)  # without nlzoo itself, which is lazy


def imports(tree: ast.AST) -> Iterator[str]:
    """Absolute names of all imported modules, also those inside functions."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative import"
            assert node.module
            full = [f"{node.module}.{alias.name}" for alias in node.names]
            inner = [name for name in full if name.removeprefix("nlzoo.") in TREES]
            yield from inner or [node.module]


def ours(module: str) -> set[str]:
    """What a module imports of nlzoo, without the package's name."""
    return {i.removeprefix("nlzoo.") for i in imports(TREES[module]) if i.startswith("nlzoo.")}


def under(module: str, names: set[str]) -> bool:
    """Whether it, or a package that holds it, is among the names."""
    parts = module.split(".")
    return any(".".join(parts[:n]) in names for n in range(1, len(parts) + 1))


def layer(module: str) -> int:
    if any(module in names for names in LAYERS):
        return next(i for i, names in enumerate(LAYERS) if module in names)
    found = [i for i, names in enumerate(LAYERS) if under(module, names)]
    assert found, f"{module} has no layer yet: add it to LAYERS, and to the design"
    return found[0]


@pytest.mark.parametrize("module", MODULES)
def test_imports_point_one_way(module: str) -> None:
    assert "nlzoo" not in imports(TREES[module]), "import from where a name lives"
    package = module.split(".")[0]
    for imported in ours(module):
        if imported.split(".")[0] != package or module.endswith("__main__"):
            assert layer(imported) < layer(module), f"{module} imports {imported}"
            allowed = ONLY.get(package)
            assert module.endswith(PROGRAMS) or allowed is None or under(imported, allowed), (
                f"{module} imports {imported}"
            )


def test_no_cycles_inside_packages() -> None:
    done: set[str] = set()

    def visit(module: str, path: tuple[str, ...]) -> None:
        assert module not in path, " -> ".join([*path, module])
        if module not in done and module in TREES:
            for imported in ours(module):
                visit(imported, (*path, module))
            done.add(module)

    for module in MODULES:
        visit(module, ())


def test_nobody_imports_a_program() -> None:
    programs = {
        name
        for name, tree in TREES.items()
        if any(isinstance(n, ast.If) and "__main__" in ast.unparse(n.test) for n in tree.body)
    }
    assert {"fit", "evaluate", "predict"} <= programs
    for module in TREES:
        assert not ours(module) & programs, module


@pytest.mark.parametrize("package", OTHERS)
def test_packages_of_others_stay_in_their_place(package: str) -> None:
    users = {m for m in TREES if package in {i.split(".")[0] for i in imports(TREES[m])}}
    assert not [m for m in users if not under(m, OTHERS[package])]


def test_the_core_needs_torch_only() -> None:
    allowed = {"torch", "nlzoo", *sys.stdlib_module_names}
    for module in TORCH_ONLY:
        assert {i.split(".")[0] for i in imports(TREES[module])} <= allowed, module


def test_importing_nlzoo_is_light() -> None:
    heavy = ["torchvision", "lightning", "timm", "pytorchvideo", "matplotlib", "av", "rich"]
    code = (
        "import sys, nlzoo; nlzoo.NonLocalBlock(8); nlzoo.insert_non_local;"
        f"print([m for m in {heavy} if m in sys.modules])"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"


# -- size and docstrings ------------------------------------------------------------------------


def test_files_are_small() -> None:
    lengths = {m: len(p.read_text("utf-8").splitlines()) for m, p in FILES.items()}
    assert not {m: n for m, n in lengths.items() if n > 400}
    assert median(lengths.values()) <= 160


def test_functions_are_short() -> None:
    lengths = {
        f"{module}.{node.name}:{node.lineno}": (node.end_lineno or 0) - node.lineno + 1
        for module, tree in TREES.items()
        for node in ast.walk(tree)
        if isinstance(node, Function)
    }
    assert not {name: n for name, n in lengths.items() if n > 80}
    assert median(lengths.values()) <= 12


def public(body: list[ast.stmt], prefix: str) -> Iterator[tuple[str, Function | ast.ClassDef]]:
    """Public functions, classes and their methods, less those that torch's Module documents."""
    for node in body:
        if isinstance(node, Function | ast.ClassDef) and not node.name.startswith("_"):
            if node.name not in ("forward", "extra_repr"):
                yield f"{prefix}.{node.name}", node
            if isinstance(node, ast.ClassDef):
                yield from public(node.body, f"{prefix}.{node.name}")


@pytest.mark.parametrize("module", sorted(TREES))
def test_docstrings(module: str) -> None:
    tree = TREES[module]
    assert ast.get_docstring(tree), f"nlzoo.{module}"
    for name, node in public(tree.body, module):
        assert ast.get_docstring(node), name
