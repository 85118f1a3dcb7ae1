"""What imports what: the package is light, the maths knows torch and numpy alone, a foreign library is met in one file."""

from __future__ import annotations

import ast
import functools
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import mepdiff_core

PACKAGE = Path(mepdiff_core.__file__).parent
FOREIGN = {
    "abtem",
    "ase",
    "dask",
    "gemmi",
    "h5py",
    "hdf5plugin",
    "matplotlib",
    "ptyrad",
    "pyfftw",
    "rsciio",
    "scipy",
    "skimage",
    "spglib",
    "tifffile",
    "torch",
}
WINDOWS = {"napari", "qtpy", "PyQt5", "PyQt6", "PySide2", "PySide6", "magicgui", "superqt"}


def in_a_fresh_process(code: str) -> Any:
    """Run the code; what it prints is JSON."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def modules_after(statement: str) -> set[str]:
    """Top-level names of all modules that the statement brings into a fresh process."""
    return set(
        in_a_fresh_process(f"{statement}\nimport json, sys\nprint(json.dumps([n.split('.')[0] for n in sys.modules]))")
    )


def test_the_package_alone_imports_no_foreign_library() -> None:
    assert modules_after("import mepdiff_core") & (FOREIGN | WINDOWS | {"numpy", "yaml"}) == set()


def test_the_package_alone_is_there_at_once() -> None:
    code = "import json, time\nt = time.perf_counter()\nimport mepdiff_core\nprint(json.dumps(time.perf_counter() - t))"
    assert min(in_a_fresh_process(code) for _ in range(5)) < 0.3


def test_help_and_errors_of_arguments_wait_for_no_library() -> None:
    """``mepdiff --help`` builds every parser."""
    loaded = modules_after("from mepdiff_core.cli import make_parser\nmake_parser()")
    assert loaded & (FOREIGN | WINDOWS) == set()


def test_maths_imports_torch_and_numpy_alone() -> None:
    modules = ("optics", "likelihood", "fourier", "forward")
    loaded = modules_after("import " + ", ".join(f"mepdiff_core.{name}" for name in modules))
    assert loaded & (FOREIGN | WINDOWS) == {"torch"}


def test_optics_needs_no_torch() -> None:
    assert "torch" not in modules_after("import mepdiff_core.optics, mepdiff_core.scan, mepdiff_core.crystals")


def test_nothing_brings_in_a_window() -> None:
    names = [f"mepdiff_core.{p.stem}" for p in PACKAGE.glob("*.py") if p.stem not in ("__init__", "__main__")]
    assert modules_after(f"import {', '.join(names)}") & WINDOWS == set()


def test_every_public_name_is_there() -> None:
    for name in mepdiff_core.__all__:
        assert getattr(mepdiff_core, name).__module__.startswith("mepdiff_core.")
    assert {*mepdiff_core.__all__} < {*dir(mepdiff_core)}
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = mepdiff_core.nothing


@functools.cache
def imports_of(path: Path) -> frozenset[str]:
    """Top-level names of all import statements in a file, wherever they stand."""
    return frozenset(_imports(path))


def _imports(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module.split(".")[0]
        elif isinstance(node, ast.Call) and getattr(node.func, "id", getattr(node.func, "attr", "")) == "import_module":
            first = node.args[0]
            if isinstance(first, ast.Constant):
                yield str(first.value).split(".")[0]


def importers(library: str) -> set[str]:
    return {str(p.relative_to(PACKAGE)) for p in PACKAGE.rglob("*.py") if library in imports_of(p)}


@pytest.mark.parametrize(
    ("library", "file"),
    [
        ("abtem", "volumes.py"),
        ("ptyrad", "ptyrad_adapter.py"),
        ("torchvision", "ptyrad_adapter.py"),
        ("pyfftw", "fourier.py"),
        ("spglib", "symmetry.py"),
        ("yaml", "config.py"),
        ("rsciio", "vendor_scans.py"),
        ("hdf5plugin", "hdf5_scans.py"),
        ("safetensors", "arrays.py"),
        ("tqdm", "cli/common.py"),
    ],
)
def test_a_foreign_library_is_met_in_one_file(library: str, file: str) -> None:
    assert importers(library) == {file}


def test_tiff_is_a_volume_or_a_stack_of_patterns() -> None:
    assert importers("tifffile") == {"volume_files.py", "array_scans.py"}


def test_only_the_cif_files_know_gemmi() -> None:
    assert importers("gemmi") == {"cif.py", "cif_cells.py"}


@pytest.mark.parametrize("library", sorted(WINDOWS))
def test_the_core_never_imports_a_window(library: str) -> None:
    assert importers(library) == set()


def test_the_search_for_imports_finds_what_is_there() -> None:
    assert "numpy" in imports_of(PACKAGE / "optics.py")
    assert "h5py" in imports_of(PACKAGE / "scan.py")  # inside a function
    assert len(importers("mepdiff_core")) > 20


# the window


PLUGIN = PACKAGE.parent / "napari_mepdiff"


def test_the_plugin_is_there_at_once() -> None:
    code = "import json, time\nt = time.perf_counter()\nimport napari_mepdiff\nprint(json.dumps(time.perf_counter() - t))"
    assert min(in_a_fresh_process(code) for _ in range(5)) < 0.3


def test_reader_and_sample_need_neither_qt_nor_torch() -> None:
    loaded = modules_after("import napari_mepdiff._reader as r, napari_mepdiff._sample_data as s\ns.strontium_titanate()")
    assert loaded & ({"torch", "matplotlib", "skimage"} | WINDOWS) == set()


@pytest.mark.parametrize("binding", ["PyQt5", "PyQt6", "PySide2", "PySide6"])
def test_qt_is_reached_through_qtpy_alone(binding: str) -> None:
    assert not [p.name for p in PLUGIN.rglob("*.py") if binding in imports_of(p)]


@pytest.mark.parametrize(("library", "file"), [("pint", "_units.py"), ("pyqtgraph", "_plots.py")])
def test_a_library_of_the_window_is_met_in_one_file(library: str, file: str) -> None:
    assert {p.name for p in PLUGIN.rglob("*.py") if library in imports_of(p)} == {file}


def test_the_manifest_is_valid() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "npe2", "validate", "napari-mepdiff", "--imports"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "valid" in done.stdout
