import hashlib
import json
import sqlite3
from contextlib import closing
from datetime import datetime
from pathlib import Path

import pytest
from click.testing import Result
from typer.testing import CliRunner

from indexer.database import DATABASE
from indexer.errors import TandemError
from indexer.store import Store
from service.cli import app
from service.keys import Keyring, create_key, list_keys, revoke_key
from service.settings import Settings


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "home")


def keyring(store: Store, **settings: str) -> Keyring:
    return Keyring(store, Settings(home=store.home, **settings))  # type: ignore[arg-type]


def test_a_key_has_its_role_and_others_have_none(store: Store) -> None:
    user, admin = create_key(store, "anna", "user"), create_key(store, "ops", "admin")
    ring = keyring(store)
    assert (ring.role(user), ring.role(admin)) == ("user", "admin")
    for wrong in (
        "",
        "tandem-",
        user[:-1],
        user + "x",
        user.upper(),
        "\udc80",
        hashlib.sha256(user.encode()).hexdigest(),
    ):
        assert ring.role(wrong) is None
    assert [(key.name, key.role) for key in list_keys(store)] == [("anna", "user"), ("ops", "admin")]


def test_keys_cannot_be_guessed_or_read_back(store: Store, tmp_path: Path) -> None:
    secrets = {create_key(store, f"key{number}", "user") for number in range(20)}
    assert len(secrets) == 20 and all(len(secret) >= 40 for secret in secrets)
    store.close()
    stored = b"".join(path.read_bytes() for path in (tmp_path / "home").iterdir())
    assert not [secret for secret in secrets if secret.encode() in stored]
    assert not [secret for secret in secrets if secret.removeprefix("tandem-").encode() in stored]


def test_revoking_works_at_once_and_leaves_the_others(store: Store) -> None:
    first, second = create_key(store, "first", "user"), create_key(store, "second", "user")
    ring = keyring(store)
    assert ring.role(first) == "user"
    revoke_key(store, "first")
    assert (ring.role(first), ring.role(second)) == (None, "user")
    with pytest.raises(TandemError, match="no key called 'first'") as caught:
        revoke_key(store, "first")
    assert caught.value.code == "not_found"


def test_a_service_that_had_keys_does_not_open_when_the_last_is_revoked(store: Store) -> None:
    assert keyring(store).is_open()
    create_key(store, "only", "admin")
    ring = keyring(store)
    revoke_key(store, "only")
    assert not ring.is_open(), "it may listen where everyone can reach it"
    assert keyring(store).is_open(), "only a new start, which checks the address again, opens it"


def test_a_key_made_while_the_service_runs_closes_it_at_once(store: Store) -> None:
    ring = keyring(store)
    assert ring.is_open()
    create_key(store, "first", "user")
    assert not ring.is_open()
    revoke_key(store, "first")
    assert not ring.is_open()


def test_keys_of_the_settings(store: Store) -> None:
    ring = keyring(store, user_key="u" * 16, admin_key="a" * 16)
    assert not ring.is_open()
    assert (ring.role("u" * 16), ring.role("a" * 16), ring.role("x" * 16)) == ("user", "admin", None)
    stored = create_key(store, "more", "user")
    assert ring.role(stored) == "user"


@pytest.mark.parametrize("name", ["", "a b", "a/b", "x" * 65, "new\nline", "quote'"])
def test_names_that_are_refused(store: Store, name: str) -> None:
    with pytest.raises(TandemError, match="cannot name a key"):
        create_key(store, name, "user")
    assert list_keys(store) == []


def test_a_name_is_given_once(store: Store) -> None:
    first = create_key(store, "anna", "user")
    with pytest.raises(TandemError, match="already") as caught:
        create_key(store, "anna", "admin")
    assert caught.value.code == "conflict"
    assert keyring(store).role(first) == "user"


def test_groups_and_an_end_belong_to_a_key(store: Store) -> None:
    secret = create_key(store, "anna", "user", ["hr", "sales", "hr"], 30)
    (key,) = list_keys(store)
    assert key.groups == ("hr", "sales") and key.expires is not None and not key.is_expired()
    days = (datetime.fromisoformat(key.expires) - datetime.fromisoformat(key.created)).total_seconds() / 86400
    assert days == pytest.approx(30)
    assert keyring(store).check(secret) == key


def test_an_expired_key_is_refused_and_told_so(store: Store) -> None:
    secret = create_key(store, "anna", "admin", days=1)
    ring = keyring(store)
    assert ring.role(secret) == "admin"
    with store.connection() as connection:
        connection.execute("UPDATE keys SET expires = '2020-01-01T00:00:00+00:00'")
    assert ring.role(secret) is None
    with pytest.raises(TandemError, match="expired on 2020-01-01") as caught:
        ring.check(secret)
    assert caught.value.code == "unauthorized" and secret not in str(caught.value)
    assert not ring.is_open(), "an expired key still closes the service"
    with pytest.raises(TandemError, match="needs an access key"):
        ring.check(secret + "x")


@pytest.mark.parametrize("group", ["", "a,b", "a b", "x" * 65, "a/b", "new\nline", "'"])
def test_groups_that_are_refused(store: Store, group: str) -> None:
    with pytest.raises(TandemError, match="cannot name a group"):
        create_key(store, "anna", "user", [group])
    assert list_keys(store) == []


@pytest.mark.parametrize("days", [0, -1, 1e9, float("nan"), float("inf")])
def test_days_out_of_range(store: Store, days: float) -> None:
    with pytest.raises(TandemError, match="cannot be for"):
        create_key(store, "anna", "user", days=days)


def test_keys_on_the_command_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TANDEM_HOME", str(tmp_path / "home"))

    def tandem(*words: str) -> Result:
        return CliRunner().invoke(app, ["keys", *words])

    made = json.loads(tandem("create", "anna", "--group", "hr", "--group", "sales", "--days", "2", "--json").stdout)
    assert (made["role"], made["groups"]) == ("user", ["hr", "sales"]) and made["key"].startswith("tandem-")
    shown = tandem("list")
    assert "anna" in shown.stdout and "hr sales" in shown.stdout and "until 20" in shown.stdout
    assert made["key"] not in shown.stdout and "key" not in json.loads(tandem("list", "--json").stdout)[0]
    assert tandem("create", "boss", "--admin", "--group", "hr").exit_code == 2
    assert tandem("revoke", "anna").exit_code == 0 and tandem("revoke", "anna").exit_code == 2


def test_a_home_of_the_version_before_gets_the_new_columns(tmp_path: Path) -> None:
    home = tmp_path / "home"
    create_key(Store(home), "anna", "user")
    connection = sqlite3.connect(home / DATABASE)
    for statement in (
        "ALTER TABLE keys DROP COLUMN groups",
        "ALTER TABLE keys DROP COLUMN expires",
        "DROP TABLE file_groups",
        "DROP INDEX documents_with_group",
        "PRAGMA user_version = 1",
    ):
        connection.execute(statement)
    connection.close()
    store = Store(home)
    assert [(key.name, key.groups, key.expires) for key in list_keys(store)] == [("anna", (), None)]

    def tables(path: Path) -> set[tuple[str, str]]:
        with closing(sqlite3.connect(path / DATABASE)) as opened:
            listed = opened.execute("SELECT name FROM sqlite_master").fetchall()
            return {(name, str(opened.execute(f"PRAGMA table_info('{name}')").fetchall())) for (name,) in listed}

    Store(tmp_path / "new")
    assert tables(home) == tables(tmp_path / "new"), "an upgraded home and a new one are alike"
