"""Which server and whose key wandb would use, and the mode that its settings ask for; wandb itself is not imported."""

import configparser
import contextlib
import netrc
import os
from pathlib import Path
from typing import Final, Literal
from urllib.parse import urlsplit

from models.errors import UserError

Mode = Literal["offline", "online", "disabled"]

DEFAULT_URL: Final = "https://api.wandb.ai"


def default_mode() -> Mode:
    """What W&B's own settings ask for (`WANDB_MODE`, `wandb offline`), else online where a key is found, else offline.

    Raises:
        UserError: `WANDB_MODE` is no mode that wandb knows.
    """
    asked = _wandb_setting("mode")
    modes: dict[str, Mode] = {
        "online": "online",
        "run": "online",
        "shared": "online",
        "offline": "offline",
        "dryrun": "offline",
        "disabled": "disabled",
    }
    if asked is None:
        return "online" if find_key() else "offline"
    if asked not in modes:
        raise UserError(f"WANDB_MODE: {asked!r} given (known: online, offline, disabled)")
    return modes[asked]


def find_key() -> str | None:
    """Where wandb would find credentials, looked up as wandb does but without importing it; None if nowhere."""
    for name in ("api_key", "identity_token_file"):
        if _wandb_setting(name):
            variable = f"WANDB_{name.upper()}"
            return variable if os.environ.get(variable) else f"{name} in W&B's settings file"
    candidates = (os.environ.get("NETRC"), "~/.netrc", "~/_netrc")
    paths = [Path(path).expanduser() for path in candidates if path]
    path = next((path for path in paths if path.exists()), None)
    if path is None:
        return None
    try:
        found = netrc.netrc(path).authenticators(urlsplit(base_url()).netloc)
    except (OSError, netrc.NetrcParseError):
        return None
    return str(path) if found is not None and found[2] else None


def need_key() -> None:
    """Raises where wandb would ask for a key on a terminal.

    Raises:
        UserError: there is none for the server.
    """
    if not find_key():
        raise UserError(f"no W&B key for {base_url()}: `wandb login` keeps one, or set WANDB_API_KEY")


def base_url() -> str:
    """The server's address."""
    return _wandb_setting("base_url") or DEFAULT_URL


def default_entity() -> str | None:
    """The team or user that W&B's settings name; None where it is the key's own."""
    return _wandb_setting("entity")


def _wandb_setting(name: str) -> str | None:
    """One of wandb's settings: the environment, then ./wandb/settings, then the user's settings file."""
    if value := os.environ.get(f"WANDB_{name.upper()}"):
        return value
    user = Path(os.environ.get("WANDB_CONFIG_DIR") or "~/.config/wandb").expanduser()
    parser = configparser.ConfigParser(interpolation=None)
    with contextlib.suppress(configparser.Error, OSError, UnicodeDecodeError):
        parser.read([user / "settings", Path("wandb") / "settings"], encoding="utf-8")
    return parser.get("default", name, fallback=None)
