"""The quota of a container as the kernel writes it, and that the models keep to it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from indexer import cores
from indexer.cores import container_limit, keep_to_container, told_threads


@pytest.fixture(autouse=True)
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def write(folder: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return folder


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"cpu.max": "200000 100000\n"}, 2),
        ({"cpu.max": "150000 100000\n"}, 2),
        ({"cpu.max": "50000 100000\n"}, 1),
        ({"cpu.max": "max 100000\n"}, None),
        ({"cpu.max": "what\n"}, None),
        ({"cpu/cpu.cfs_quota_us": "400000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 4),
        ({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, None),
        ({"cpu/cpu.cfs_quota_us": "400000\n"}, None),
        ({}, None),
    ],
)
def test_the_quota_is_read_as_the_kernel_writes_it(files: dict[str, str], expected: int | None, tmp_path: Path) -> None:
    assert container_limit(write(tmp_path, files)) == expected


def test_threads_are_lowered_to_the_quota_and_never_raised(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.set_num_threads(3)
    for limit, expected in ((8, 3), (None, 3), (2, 2), (3, 2)):
        monkeypatch.setattr(cores, "container_limit", lambda limit=limit: limit)
        keep_to_container()
        assert torch.get_num_threads() == expected


def test_what_decided_the_threads_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.set_num_threads(2)
    monkeypatch.setattr(cores, "container_limit", lambda: 2)
    assert told_threads(0) == "2 threads (the container's limit)"
    assert told_threads(2) == "2 threads (the setting threads)"
    monkeypatch.setattr(cores, "container_limit", lambda: None)
    torch.set_num_threads(1)
    assert told_threads(0) == "1 thread (the cores this process may use)"


@pytest.mark.parametrize(("load", "told"), [(9.2, "load 9.2 on 2 cores, so times will vary; "), (1.4, "")])
def test_doctor_tells_that_others_want_the_cores(load: float, told: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from service.commands import doctor

    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    monkeypatch.setattr(os, "getloadavg", lambda: (load, 0.0, 0.0))
    assert doctor._load() == told
