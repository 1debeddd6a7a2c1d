"""Imports point one way (docs/design.md): app → api → core → storage; `_core`, errors, config are leaves."""

import ast
from pathlib import Path

import pytest

import ojs_fast

ROOT = Path(ojs_fast.__file__).parent
FILES = sorted(ROOT.rglob("*.py"))
# What may see every layer: they put the parts together, and nothing imports them but one another.
ROOTS = {"ojs_fast.__main__", "ojs_fast.app", "ojs_fast.cli", "ojs_fast.node", "ojs_fast.otel", "ojs_fast.serve"}
LEAVES = {
    "ojs_fast._core", "ojs_fast.errors", "ojs_fast.config", "ojs_fast.cores", "ojs_fast.forever", "ojs_fast.logs",
    "ojs_fast.outbound",
}  # fmt: skip
LAYERS = ("ojs_fast.storage", "ojs_fast.core", "ojs_fast.api")
HTTP_LIBRARIES = {"blacksheep", "granian", "httpx", "httpcore", "http", "uvicorn"}
NATS_LIBRARIES = {"nats"}


def module_name(path: Path) -> str:
    """Give the dotted name of a file of the package."""
    parts = path.relative_to(ROOT.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path): path for path in FILES}


def imports(name: str) -> set[str]:
    """Give the modules that a module imports, late imports included, names resolved to submodules."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(MODULES[name].read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name}: relative imports hide the layer"
            module = node.module or ""
            for alias in node.names:
                full = f"{module}.{alias.name}"
                found.add(full if full in MODULES or full == "ojs_fast._core" else module)
    return found


def layer(name: str) -> str:
    """Give the layer, leaf or root that a module belongs to; "" for modules of others."""
    for one in LAYERS:
        if name == one or name.startswith(one + "."):
            return one
    if name.startswith("ojs_fast.cli."):
        return "ojs_fast.cli"
    return name if name in ROOTS | LEAVES else ""


def test_every_module_has_a_place() -> None:
    """A module is a layer's, a leaf or a composition root."""
    assert [name for name in MODULES if name != "ojs_fast" and not layer(name)] == []


@pytest.mark.parametrize("name", sorted(MODULES))
def test_imports_point_down(name: str) -> None:
    """Nothing is imported from a higher layer, and no composition root by a layer."""
    own = layer(name)
    ours = {layer(target) or target for target in imports(name) if target.split(".")[0] == "ojs_fast"} - {"ojs_fast"}
    if own in ROOTS:
        allowed = ROOTS | LEAVES | set(LAYERS)
    elif own in LAYERS:
        allowed = LEAVES | set(LAYERS[: LAYERS.index(own) + 1])
    else:
        allowed = set()
    assert ours - {own} <= allowed


@pytest.mark.parametrize("name", sorted(name for name in MODULES if layer(name) == "ojs_fast.api"))
def test_api_reaches_storage_through_core_only(name: str) -> None:
    """A handler makes one core call; all it may know of storage is its errors."""
    assert {target for target in imports(name) if layer(target) == "ojs_fast.storage"} <= {"ojs_fast.storage.errors"}


@pytest.mark.parametrize("name", sorted(MODULES))
def test_libraries_stay_in_their_layer(name: str) -> None:
    """Core knows neither HTTP nor NATS, api no NATS, storage no HTTP; leaves but `outbound` know none of both."""
    libraries = {target.split(".")[0] for target in imports(name)}
    own = layer(name)
    if own in ROOTS:
        return
    if own != "ojs_fast.storage":
        assert not libraries & NATS_LIBRARIES
    if own not in ("ojs_fast.api", "ojs_fast.outbound"):
        assert not libraries & HTTP_LIBRARIES


def test_the_compiled_core_imports_nothing_of_ours() -> None:
    """`_core` is a leaf: no project module, no asyncio, no client library."""
    sources = [*ROOT.glob("_core.pyx"), *ROOT.glob("_core_*.pxi")]
    assert len(sources) > 5
    found = set()
    for source in sources:
        for line in source.read_text(encoding="utf-8").splitlines():
            words = line.split()
            if len(words) > 1 and words[0] in ("import", "from") and "cimport" not in words:
                found.add(words[1].split(".")[0])
    assert found <= {"orjson", "json", "os", "re"}
