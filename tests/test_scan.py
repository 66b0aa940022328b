import os
from pathlib import Path

import pytest

from indexer.errors import TandemError
from indexer.scan import check_corpus, scan


def names(folder: Path) -> list[str]:
    return [file.path for file in scan(folder)[0]]


def test_finds_supported_files_in_order_and_leaves_hidden_ones_and_pairs(tmp_path: Path) -> None:
    for name in ("b.md", "a/z.txt", "a/.hidden.md", ".git/c.md", "image.png", "manual.pairs.jsonl", "x/manual.jsonl"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("text")
    assert names(tmp_path) == ["a/z.txt", "b.md", "x/manual.jsonl"]


def test_symlinks_may_not_leave_the_folder(tmp_path: Path) -> None:
    outside = tmp_path / "secret.txt"
    outside.write_text("secret")
    corpus = tmp_path / "corpus"
    (corpus / "sub").mkdir(parents=True)
    (corpus / "a.txt").write_text("text")
    (corpus / "out.txt").symlink_to(outside)
    (corpus / "up").symlink_to(tmp_path)
    (corpus / "in.txt").symlink_to(corpus / "a.txt")
    (corpus / "sub" / "loop").symlink_to(corpus)
    (corpus / "dead.txt").symlink_to(corpus / "nothing.txt")
    files, skipped = scan(corpus)
    # What a link inside the folder names is found in its own place.
    assert [file.path for file in files] == ["a.txt"]
    assert {(skip.path, skip.reason.split()[3]) for skip in skipped} == {
        ("out.txt", "that"),
        ("up", "that"),
        ("dead.txt", "to"),
    }


def test_links_to_hidden_targets_are_followed(tmp_path: Path) -> None:
    # Mounted Kubernetes ConfigMaps look like this.
    (tmp_path / "..2024_data" / "sub").mkdir(parents=True)
    (tmp_path / "..2024_data" / "a.md").write_text("text")
    (tmp_path / "..2024_data" / "sub" / "b.md").write_text("text")
    (tmp_path / "..data").symlink_to("..2024_data")
    (tmp_path / "a.md").symlink_to("..data/a.md")
    (tmp_path / "sub").symlink_to("..data/sub")
    assert names(tmp_path) == ["a.md", "sub/b.md"]


def test_a_home_folder_inside_a_corpus_is_left_out(tmp_path: Path) -> None:
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "tandem.sqlite").write_bytes(b"")
    (tmp_path / "home" / "config.json").write_text("{}")
    (tmp_path / "a.md").write_text("text")
    assert names(tmp_path) == ["a.md"]


def test_odd_names(tmp_path: Path) -> None:
    for name in ("new\nline.txt", "emoji 🙂.txt", "Case.txt", "case.txt"):
        (tmp_path / name).write_text("text")
    Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff.txt")).write_text("text")
    files, skipped = scan(tmp_path)
    assert [file.path for file in files] == ["Case.txt", "case.txt", "emoji 🙂.txt", "new\nline.txt"]
    assert len(skipped) == 1


def test_a_folder_that_is_missing_or_a_file(tmp_path: Path) -> None:
    with pytest.raises(TandemError, match="does not exist"):
        check_corpus(tmp_path / "nothing")
    (tmp_path / "file.md").write_text("x")
    with pytest.raises(TandemError, match="is a file"):
        check_corpus(tmp_path / "file.md")
