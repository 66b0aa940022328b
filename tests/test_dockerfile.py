"""The Dockerfile without an engine: the linter is content, and it copies what the build needs and nothing private."""

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
TEXT = (ROOT / "Dockerfile").read_text("utf-8")


def test_the_linter_is_content() -> None:
    hadolint = Path(sys.executable).with_name("hadolint")
    result = subprocess.run([hadolint, ROOT / "Dockerfile"], capture_output=True, text=True, check=False)
    assert (result.returncode, result.stdout) == (0, "")


def test_every_copied_path_exists_and_passes_the_ignore_file() -> None:
    allowed = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    copied = [path for line in re.findall(r"^COPY (?!--from)(.+) \S+$", TEXT, re.MULTILINE) for path in line.split()]
    assert {"pyproject.toml", "indexer", "tuner", "service", "corpora"} <= set(copied) <= allowed
    assert all((ROOT / path).exists() for path in copied)


def test_it_runs_without_root_and_says_when_it_is_ready() -> None:
    assert re.findall(r"^USER (\S+)$", TEXT, re.MULTILINE)[-1] not in {"root", "0"}
    assert "/readyz" in TEXT[TEXT.index("HEALTHCHECK") :]
    assert "HF_HUB_OFFLINE=1" in TEXT
