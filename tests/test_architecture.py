"""The shape of the project, read from its source: who imports whom, who may load what, and how large a file may be."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = ("indexer", "tuner", "service")
# Lower packages never import higher ones.
ALLOWED = {"indexer": {"indexer"}, "tuner": {"tuner", "indexer"}, "service": {"service", "tuner", "indexer"}}
# A heavy library has named owners, so that replacing it or looking for its cost begins in one place.
OWNERS = {
    "torch": {
        "indexer.bert",
        "indexer.cores",
        "indexer.embedding",
        "indexer.int8",
        "indexer.int8embedder",
        "indexer.plainembedder",
        "tuner.streamed",
        "tuner.basemodel",
        "tuner.decoding",
        "tuner.int8",
        "tuner.packed",
        "tuner.rotation",
        "tuner.rowwise",
        "tuner.stepcache",
        "tuner.sharedcache",
        "tuner.together",
        "tuner.answerability",
        "tuner.answerability_model",
        "tuner.attach",
        "tuner.conversion",
        "tuner.embedder",
        "tuner.shapes",
        "tuner.merge",
        "tuner.teachers",
        "tuner.checkpoint",
        "tuner.events",
        "tuner.forgetting",
        "tuner.grouploss",
        "tuner.objective",
        "tuner.peak",
        "tuner.pointing",
        "tuner.preference",
        "tuner.refusing",
        "tuner.train",
        "tuner.trainable",
        "tuner.tuning",
        "tuner.crew",
        "tuner.kept",
        "tuner.llama",
        "tuner.llamacache",
        "tuner.llamafiles",
        "tuner.llamalora",
        "tuner.llamamatrix",
        "tuner.llamaroom",
    },
    "transformers": {
        "tuner.grouploss",
        "tuner.streamed",
        "indexer.embedding",
        "indexer.plainembedder",
        "tuner.answerability",
        "tuner.answerability_model",
        "tuner.basemodel",
        "tuner.conversion",
        "tuner.quiet",
        "tuner.rowwise",
        "tuner.stepcache",
        "tuner.sharedcache",
        "tuner.shapes",
    },
    "numba": {"indexer.compiled", "tuner.kernels", "tuner.llamastep"},
    "peft": {"tuner.attach", "tuner.llamalora", "tuner.trainable"},
    "bitsandbytes": {"tuner.basemodel", "tuner.train"},
    "sentence_transformers": {"indexer.embedding", "indexer.rerank", "tuner.embedder"},
    "faiss": {"indexer.vectors.faiss", "indexer.vectors.file", "indexer.vectors.inverted"},
    "trl": set(),
    "trafilatura": {"indexer.loaders.html"},
    "pypdfium2": {"indexer.loaders.pdf", "indexer.loaders.pdf_lines"},
    "langchain_text_splitters": {"indexer.chunking"},
    "gguf": {"tuner.gguf_export"},
    "matplotlib": {"service.compare.figures", "tuner.losscurve"},
    "llguidance": {"tuner.jsondecoding"},
}
TOP_LEVEL = {
    *PACKAGES, "pyproject.toml", "tests", "corpora", "Dockerfile", "README.md", "LICENSE", "CHANGELOG.md"
}  # fmt: skip
BANNED_NAMES = {"utils", "util", "common", "core", "misc", "helpers"}
BANNED_CALLS = {("pickle",), ("torch", "load"), ("eval",), ("exec",)}


def sources() -> dict[str, ast.Module]:
    modules = {}
    for package in PACKAGES:
        for path in (ROOT / package).rglob("*.py"):
            parts = path.relative_to(ROOT).with_suffix("").parts
            name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
            modules[name] = ast.parse(path.read_text("utf-8"))
    return modules


MODULES = sources()


def imports(tree: ast.AST, *, top_level: bool = False) -> set[str]:
    found: set[str] = set()
    nodes = _top_level(tree) if top_level else ast.walk(tree)
    for node in nodes:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def _top_level(tree: ast.AST) -> list[ast.stmt]:
    """Statements that run at import; what only type checkers see does not."""
    found: list[ast.stmt] = []
    for node in getattr(tree, "body", []):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            continue
        found.append(node)
        if isinstance(node, ast.If | ast.Try):
            found += _top_level(node)
    return found


@pytest.mark.parametrize("package", PACKAGES)
def test_imports_go_one_way(package: str) -> None:
    for name, tree in MODULES.items():
        if name.split(".")[0] == package:
            used = {target.split(".")[0] for target in imports(tree)} & set(PACKAGES)
            assert used <= ALLOWED[package], f"{name} imports {used - ALLOWED[package]}"


def test_there_is_no_import_cycle() -> None:
    graph = {
        name: {target for target in imports(tree, top_level=True) if target in MODULES and target != name}
        for name, tree in MODULES.items()
    }
    done: set[str] = set()

    def visit(name: str, path: tuple[str, ...]) -> None:
        assert name not in path, " -> ".join((*path[path.index(name) :], name))
        if name not in done:
            for target in sorted(graph[name]):
                visit(target, (*path, name))
            done.add(name)

    for name in sorted(graph):
        visit(name, ())


def test_heavy_libraries_stay_with_their_owners_and_out_of_import_time() -> None:
    for name, tree in MODULES.items():
        heavy = {target.split(".")[0] for target in imports(tree)} & OWNERS.keys()
        for library in heavy:
            assert name in OWNERS[library], f"{name} imports {library}"


def test_importing_everything_loads_no_heavy_library() -> None:
    # Those left out need torch or Numba at once, and are themselves imported only by functions that need them.
    names = sorted(
        set(MODULES)
        - {
            "indexer.bert",
            "indexer.bertloops",
            "indexer.compiled",
            "indexer.int8",
            "indexer.rounding",
            "tuner.int8",
            "tuner.kernels",
            "tuner.llama",
            "tuner.llamacache",
            "tuner.llamafiles",
            "tuner.llamalora",
            "tuner.llamamatrix",
            "tuner.llamaprompt",
            "tuner.llamaroom",
            "tuner.llamastep",
            "tuner.packed",
            "tuner.pointing",
            "tuner.rowwise",
            "tuner.stepcache",
            "tuner.sharedcache",
            "tuner.streamed",
            "indexer.loaders.child",
            "service.__main__",
        }
    )
    script = f"""
import importlib, sys
for name in {names!r}:
    importlib.import_module(name)
print(sorted(set(sys.modules) & {set(OWNERS)!r}))
"""
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT, check=True)
    assert result.stdout.strip() == "[]"


def test_the_command_line_starts_without_the_service() -> None:
    script = (
        "import service.cli, sys; print(sorted(set(sys.modules) & {'fastapi', 'numpy', 'pydantic', 'rich.progress'}))"
    )
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT, check=True)
    assert result.stdout.strip() == "[]"


def test_nothing_runs_foreign_code() -> None:
    for name, tree in MODULES.items():
        assert not imports(tree) & {"pickle", "marshal", "shelve", "dill", "joblib"}, name
        for node in ast.walk(tree):
            if isinstance(node, ast.Call):
                assert _called(node.func) not in BANNED_CALLS, f"{name}:{node.lineno}"
            if isinstance(node, ast.keyword) and node.arg == "trust_remote_code":
                assert isinstance(node.value, ast.Constant) and node.value.value is False, f"{name}: trust_remote_code"


def _called(node: ast.expr) -> tuple[str, ...]:
    parts: list[str] = []
    while isinstance(node, ast.Attribute):
        parts.insert(0, node.attr)
        node = node.value
    return (node.id, *parts) if isinstance(node, ast.Name) else tuple(parts)


def test_files_are_small_and_named_for_what_they_hold() -> None:
    lengths = {}
    for package in PACKAGES:
        for path in (ROOT / package).rglob("*.py"):
            lengths[path] = len(path.read_text("utf-8").splitlines())
            assert path.stem not in BANNED_NAMES, path
    assert max(lengths.values()) <= 400, max(lengths, key=lambda path: lengths[path])
    assert sorted(lengths.values())[len(lengths) // 2] <= 120


def test_the_top_level_is_fixed() -> None:
    tracked = subprocess.run(["git", "ls-files"], capture_output=True, text=True, cwd=ROOT, check=False)
    if tracked.returncode != 0:
        pytest.skip("not a git checkout; runs in every clone")
    names = {line.split("/")[0] for line in tracked.stdout.splitlines()}
    assert {name for name in names if not name.startswith(".")} <= TOP_LEVEL


def test_every_public_name_has_a_docstring() -> None:
    for name, tree in MODULES.items():
        assert ast.get_docstring(tree), f"{name} has no docstring"
