from collections.abc import Callable
from pathlib import Path

import pytest

from indexer.errors import TandemError
from service.settings import Settings, load_settings

MANUAL = Path(__file__).parent.parent / "corpora" / "manual" / "configuration.md"
Write = Callable[[str], None]


@pytest.fixture
def toml(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Write:
    """An empty working folder and environment; toml(text) writes its tandem.toml."""
    monkeypatch.chdir(tmp_path)
    for name in Settings.model_fields:
        monkeypatch.delenv(f"TANDEM_{name.upper()}", raising=False)
    return lambda text: (tmp_path / "tandem.toml").write_text(text) and None


def test_arguments_over_environment_over_file_over_defaults(toml: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    assert load_settings().k == 2
    toml("k = 5\nport = 1234\n")
    assert (load_settings().k, load_settings().port) == (5, 1234)
    monkeypatch.setenv("TANDEM_K", "6")
    assert (load_settings().k, load_settings().port) == (6, 1234)
    assert load_settings(k=7).k == 7


def test_corpora_from_every_source(toml: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    assert load_settings().corpora == (Path("corpora"),)
    toml('corpora = ["/a", "b"]\n')
    assert load_settings().corpora == (Path("/a"), Path("b"))
    monkeypatch.setenv("TANDEM_CORPORA", "/x:y:")
    assert load_settings().corpora == (Path("/x"), Path("y"))


def test_the_weights_folder_is_in_the_home_folder_unless_it_is_set(toml: Write) -> None:
    assert load_settings(home="/h").weights_folder == Path("/h/weights")
    assert load_settings(home="/h", weights="/w").weights_folder == Path("/w")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("kk = 4", "There is no setting 'kk'"),
        ("k = 0", "The setting 'k' is not valid"),
        ("k = 101", "The setting 'k' is not valid"),
        ('mode = "oracle"', "The setting 'mode' is not valid"),
        ('port = "high"', "The setting 'port' is not valid"),
        ("corpora = [1]", "The setting 'corpora' is not valid"),
        ("queue_seconds = 0", "The setting 'queue_seconds' is not valid"),
        ("min_relevance = nan", "The setting 'min_relevance' is not valid"),
        ("k = ", "tandem.toml cannot be read"),
        ("[k]\nx = 1", "The setting 'k' is not valid"),
    ],
)
def test_a_mistake_in_the_file_is_named(toml: Write, text: str, message: str) -> None:
    toml(text)
    with pytest.raises(TandemError) as caught:
        load_settings()
    assert message in caught.value.happened
    assert caught.value.expected and "tandem.toml" in str(caught.value)


def test_a_mistake_in_the_environment_is_named(toml: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TANDEM_PORT", "70000")
    with pytest.raises(TandemError, match="'port' is not valid.*70000.*TANDEM_PORT"):
        load_settings()


def test_a_file_that_is_not_text_is_told(toml: Write, tmp_path: Path) -> None:
    (tmp_path / "tandem.toml").write_bytes(b'home = "\xff\xfe"')
    with pytest.raises(TandemError, match="tandem.toml cannot be read"):
        load_settings()


@pytest.mark.parametrize("name", ["user_key", "admin_key"])
def test_a_key_is_long_and_never_shown(toml: Write, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv(f"TANDEM_{name.upper()}", "short-secret")
    with pytest.raises(TandemError, match="at least 16 characters") as caught:
        load_settings()
    assert "short-secret" not in str(caught.value)
    monkeypatch.setenv(f"TANDEM_{name.upper()}", "a-secret-of-some-length")
    assert "a-secret" not in repr(load_settings())


def test_settings_do_not_change(toml: Write) -> None:
    with pytest.raises(ValueError, match="frozen"):
        load_settings().k = 9  # type: ignore[misc]


def test_the_manual_lists_every_setting_with_its_default_and_description() -> None:
    rows = [line.strip("| ").split(" | ") for line in MANUAL.read_text().splitlines() if line.startswith("| `")]
    listed = {row[0].strip("`"): row for row in rows if len(row) == 4}
    assert listed.keys() == Settings.model_fields.keys()
    for name, field in Settings.model_fields.items():
        _, variable, default, meaning = listed[name]
        assert variable == f"`TANDEM_{name.upper()}`"
        assert meaning == field.description
        shown = '["corpora"]' if name == "corpora" else "(unset)" if field.default in (None, "") else str(field.default)
        assert default.strip("`") == shown, name
