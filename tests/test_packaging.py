"""What is installed is whole: files beside the code travel in the wheel, and versions have a floor and a ceiling."""

import re
import tomllib
from fnmatch import fnmatch
from pathlib import Path

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
IGNORED = {"__pycache__", ".mypy_cache", ".ruff_cache"}


def test_every_file_beside_the_code_is_package_data() -> None:
    data = PROJECT["tool"]["setuptools"]["package-data"]
    for package in ("indexer", "tuner", "service"):
        for path in (ROOT / package).rglob("*"):
            name = path.relative_to(ROOT / package).as_posix()
            if path.is_file() and path.suffix != ".py" and not IGNORED & set(path.parts):
                assert any(fnmatch(name, pattern) for pattern in data.get(package, [])), f"{package}/{name}"


def test_every_dependency_has_a_floor_and_a_ceiling() -> None:
    project = PROJECT["project"]
    for line in [*project["dependencies"], *project["optional-dependencies"]["test"]]:
        assert re.fullmatch(r"[\w.-]+(\[[\w,]+\])?(~=[\d.]+|>=[\d.]+,<[\d.]+)", line), line


def test_the_version_is_in_the_changelog() -> None:
    assert f"## [{PROJECT['project']['version']}]" in (ROOT / "CHANGELOG.md").read_text("utf-8")
