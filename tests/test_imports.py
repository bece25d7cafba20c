import ast
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import mixout_export

ROOT = Path(mixout_export.__file__).parent

#: Each part may import those before it, and none of those after; parts of a group none of another.
ORDER = (
    ("errors", "printable", "quiet", "rounding", "torch_internals"),
    ("config", "recipes", "tasks", "version"),
    ("functional", "masks", "fused_kernel", "compact"),
    ("fused",),
    ("fast_linear",),
    ("layers",),
    ("surgery",),
    ("adamw", "mask_schedule"),
    ("files",),
    ("provenance", "runners"),
    ("served",),
    ("checkpoint",),
    ("artifacts", "card", "data", "plotting"),
    ("training", "export", "parity", "bundling", "prediction", "study"),
    ("report",),
    ("stages",),
)

PARTS = {part for group in ORDER for part in group}


def executed(tree: ast.Module) -> Iterator[ast.AST]:
    """Yield the nodes of a module, without those that only type checkers read."""
    waiting: list[ast.AST] = [tree]
    while waiting:
        node = waiting.pop()
        yield node
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            waiting += node.orelse
        else:
            waiting += ast.iter_child_nodes(node)


def imported(path: Path, walk: Callable[[ast.Module], Iterator[ast.AST]] = ast.walk) -> set[str]:
    """Return the absolute names that a module imports, wherever in it."""
    names = set()
    for node in walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def part_of(path: Path) -> str:
    relative = path.relative_to(ROOT)
    return relative.parts[0].removesuffix(".py")


def sources(part: str) -> list[Path]:
    folder = ROOT / part
    return sorted(folder.rglob("*.py")) if folder.is_dir() else [ROOT / f"{part}.py"]


def test_public_names() -> None:
    assert mixout_export.__all__ == [
        "InjectionReport",
        "MaskSchedule",
        "MixoutAdamW",
        "MixoutConfig",
        "MixoutConv1D",
        "MixoutConv1d",
        "MixoutConv2d",
        "MixoutEmbedding",
        "MixoutError",
        "MixoutLinear",
        "__version__",
        "collapse_mixout",
        "inject_mixout",
        "load_mixout",
        "mixconnect",
        "mixout",
        "save_mixout",
    ]
    assert dir(mixout_export) == mixout_export.__all__
    for name in mixout_export.__all__:
        assert getattr(mixout_export, name) is not None
    with pytest.raises(AttributeError, match="has no attribute 'nonesuch'"):
        _ = mixout_export.nonesuch


def test_every_module_has_a_place_in_the_order() -> None:
    found = {part_of(path) for path in ROOT.rglob("*.py")}
    assert found - {"__init__", "demo_data"} == PARTS


@pytest.mark.parametrize("group", ORDER, ids="|".join)
def test_dependencies_point_one_way(group: tuple[str, ...]) -> None:
    before = {part for earlier in ORDER[: ORDER.index(group)] for part in earlier}
    for part in group:
        allowed = before | {part}
        for path in sources(part):
            for name in imported(path):
                if name.startswith("mixout_export."):
                    target = name.split(".")[1]
                    assert target in allowed, f"{path.relative_to(ROOT)} imports {name}"
                assert not name.startswith("mixout_export_cli"), f"{path} imports {name}"


@pytest.mark.parametrize("kind", [ast.Import, ast.ImportFrom])
def test_the_order_notices_a_step_back(kind: type, tmp_path: Path) -> None:
    """The reader of imports sees both kinds, and those inside functions."""
    text = {
        ast.Import: "def f():\n    import mixout_export.stages.train\n",
        ast.ImportFrom: "def f():\n    from mixout_export.stages import train\n",
    }[kind]
    (tmp_path / "a.py").write_text(text)
    assert imported(tmp_path / "a.py") == {"mixout_export.stages.train"}


@pytest.mark.parametrize(
    "module",
    [
        "mixout_export",
        "mixout_export.stages.collapse",
        "mixout_export.artifacts.opening",
        "mixout_export.checkpoint",
        "mixout_export.checkpoint.mixout_metadata",
        "mixout_export.config",
        "mixout_export.files.tensors",
        "mixout_export.served.session",
        "mixout_export.tasks",
    ],
)
def test_modules_that_only_move_files_start_without_pytorch(module: str) -> None:
    heavy = (
        *("torch", "transformers", "onnx", "onnxruntime", "matplotlib", "datasets", "sklearn"),
        "huggingface_hub",
    )
    script = f"import sys, {module}; print([m for m in {heavy!r} if m in sys.modules])"
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"


def loaded_by(module: str) -> set[str]:
    """Return all modules that an import of one loads, as far as this package's own sources tell."""
    seen: set[str] = set()
    waiting = {module}
    while waiting:
        name = waiting.pop()
        seen.add(name)
        relative = Path(*name.split(".")[1:])
        path = next(
            (p for p in (ROOT / relative / "__init__.py", ROOT / f"{relative}.py") if p.exists()),
            None,
        )
        if name.startswith("mixout_export") and path is not None:
            for parts in (found.split(".") for found in imported(path, executed)):
                waiting |= {".".join(parts[: n + 1]) for n in range(len(parts))} - seen
    return seen


@pytest.mark.parametrize("module", sorted(set(mixout_export._MODULES.values())))
def test_the_library_does_not_load_optional_libraries(module: str) -> None:
    names = {name.split(".")[0] for name in loaded_by(module)}
    light = module.removeprefix("mixout_export.") in ("config", "errors", "version")
    assert light or "torch" in names
    assert names.isdisjoint({"onnx", "onnxruntime", "onnxscript", "matplotlib", "ray", "datasets"})


def test_what_an_import_loads_is_followed_to_its_end() -> None:
    assert "onnx" in {name.split(".")[0] for name in loaded_by("mixout_export.stages.onnx_export")}


def test_an_installation_has_every_package() -> None:
    """The names in pyproject.toml are those of the folders, or a wheel would lack some."""
    project = tomllib.loads((ROOT.parent / "pyproject.toml").read_text("utf-8"))
    packages = set(project["tool"]["setuptools"]["packages"])
    found = set()
    for name, folder in (("mixout_export", ROOT), ("mixout_export_cli", ROOT.parent / "cli")):
        for file in folder.rglob("*.py"):
            found.add(".".join([name, *file.parent.relative_to(folder).parts]))
    data = {"mixout_export.bundling.files", "mixout_export.demo_data"}
    assert found - data == packages - data
