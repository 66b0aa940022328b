import hashlib
from pathlib import Path

import pytest

from indexer.errors import TandemError
from indexer.store import Store
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
