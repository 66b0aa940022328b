"""tandem keys and tandem adapters."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict

from indexer.errors import TandemError
from indexer.store import Store
from service import activation
from service.assembly import load_base
from service.commands.console import note, out, out_json
from service.keys import Role, create_key, list_keys, revoke_key
from service.settings import Settings
from tuner.active import active_adapter, deactivate
from tuner.adapters import list_adapters


def create(
    settings: Settings, name: str, groups: Sequence[str], days: float | None, *, admin: bool, as_json: bool
) -> None:
    """Make a key and print it."""
    role: Role = "admin" if admin else "user"
    if admin and groups:
        raise TandemError("An administrator reads the documents of every group.", do="Leave --group or --admin out.")
    store = Store(settings.home)
    secret = create_key(store, name, role, groups, days)
    key = next(key for key in list_keys(store) if key.name == name)
    if as_json:
        out_json({**asdict(key), "key": secret})
    else:
        out(secret)
        note(f"Keep the key of {name} ({role}) now: it is stored only as a hash and cannot be shown again.")


def show_keys(settings: Settings, *, as_json: bool) -> None:
    """Print names, roles, groups and ends."""
    keys = list_keys(Store(settings.home))
    if as_json:
        out_json([asdict(key) for key in keys])
        return
    for key in keys:
        end = f", {'expired' if key.is_expired() else 'until'} {key.expires}" if key.expires else ""
        out(f"{key.name:20} {key.role:6} {key.created}{end}  {' '.join(key.groups)}".rstrip())
    if not keys:
        out("There are no keys: the service answers this machine only.")


def revoke(settings: Settings, name: str) -> None:
    """Forget a key."""
    revoke_key(Store(settings.home), name)
    out(f"The key {name} is revoked.")


def show_adapters(settings: Settings, *, as_json: bool) -> None:
    """Print the cards."""
    active = active_adapter(settings.home, settings.base_model)
    cards = list_adapters(settings.home)
    if as_json:
        out_json([{**asdict(card), "active": card.name == active} for card in cards])
        return
    for card in cards:
        mark = "*" if card.name == active else " "
        out(f"{mark} {card.name:20} {card.base_model:20} {card.created}")
    if not cards:
        out(f"There are no adapters in {settings.home / 'adapters'}.")


def activate_checked(settings: Settings, name: str, *, force: bool = False) -> None:
    """Verify the adapter against the served base model and the last comparison, then make it the active one."""
    base = load_base(settings, note)
    card = activation.activate_checked(settings, name, base, force=force)
    out(f"The adapter {name} is active.")
    if against := activation.spoken_against(settings, card):
        note(f"It was activated against the last comparison: {against}")


def deactivate_active(settings: Settings) -> None:
    """No adapter is active afterwards."""
    deactivate(settings.home)
    out("No adapter is active.")
