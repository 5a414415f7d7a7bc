"""API keys: their names, which own what is made with them, and their hashes, which are all that is kept of them.

Keys are long and random, so a plain SHA-256 is enough: there is nothing that could be guessed or looked up.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from causerie.errors import ConfigError

ANONYMOUS = ""
"""The owner of everything where no keys are configured; no key can have this name."""

VARIABLE = "CAUSERIE_API_KEYS"

_NAME = r"[A-Za-z0-9][A-Za-z0-9._@-]{0,63}"
_KEY = r"[\x21-\x2b\x2d-\x7e]{16,256}"
_LINE = re.compile(rf"({_NAME})[ \t]*:[ \t]*(sha256:[0-9a-f]{{64}})")


@dataclass(frozen=True, slots=True)
class Keys:
    """Hashes by the names of their keys. With none of them, nobody comes in."""

    hashes: Mapping[str, str]

    def owner_of(self, key: bytes) -> str | None:
        """The name of ``key``, or None. It takes as long for every key."""
        hashed = hash_of(key)
        owner = None
        for name, known in self.hashes.items():
            if hmac.compare_digest(known, hashed):
                owner = name
        return owner


def new_key() -> str:
    """A key of 256 random bits."""
    return "ck-" + secrets.token_urlsafe(32)


def hash_of(key: bytes) -> str:
    """What is kept of ``key``."""
    return "sha256:" + hashlib.sha256(key).hexdigest()


def check_name(name: str) -> str:
    """``name``, if it can be a key's. Raises ConfigError."""
    if not re.fullmatch(_NAME, name):
        raise ConfigError(
            "A key's name has 1 to 64 letters, digits and . _ @ -, of which the first is a letter or a digit."
        )
    return name


def parse_variable(text: str) -> dict[str, str]:
    """The hashes of ``name=key,name2=key2``. Raises ConfigError, which does not quote any of it."""
    found: dict[str, str] = {}
    for number, entry in enumerate(text.split(","), 1):
        name, separator, key = entry.strip().partition("=")
        if not separator or not re.fullmatch(_NAME, name) or not re.fullmatch(_KEY, key):
            raise ConfigError(
                f"{VARIABLE}: entry {number} is not 'name=key' with a key of 16 to 256 visible ASCII characters. "
                "Separate entries by commas.",
                param="api_keys",
            )
        _add(found, name, hash_of(key.encode()), f"{VARIABLE}: entry {number}")
    return found


def read_file(file: Path) -> dict[str, str]:
    """The hashes in a file of ``name: sha256:…`` lines; ``#`` begins a comment line.

    Raises ConfigError that names file and line, and quotes nothing of it: it could be a key.
    """
    try:
        mode = file.stat().st_mode
        text = file.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"Cannot read the API keys file '{file}': {error.strerror}.", param="api_keys_file") from None
    except UnicodeDecodeError:
        raise ConfigError(f"The API keys file '{file}' is not UTF-8 text.", param="api_keys_file") from None
    if mode & 0o022:
        raise ConfigError(
            f"Others than its owner may write to the API keys file '{file}', and so let themselves in. "
            f"Run: chmod go-w '{file}'",
            param="api_keys_file",
        )
    found: dict[str, str] = {}
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip() or line.startswith("#"):
            continue
        match = _LINE.fullmatch(line.strip())
        if match is None:
            raise ConfigError(
                f"Line {number} of the API keys file '{file}' is not 'name: sha256:' and 64 hexadecimal digits. "
                "'causerie keys add' writes such lines.",
                param="api_keys_file",
            )
        _add(found, match[1], match[2], f"Line {number} of the API keys file '{file}'")
    return found


def read_keys(given: Mapping[str, str] | None, file: Path | None) -> Keys | None:
    """The keys of the environment and of the file together; None where neither is configured. Raises ConfigError."""
    if given is None and file is None:
        return None
    found = dict(given or {})
    for name, hashed in (read_file(file) if file is not None else {}).items():
        _add(found, name, hashed, f"The API keys file '{file}', beside {VARIABLE},")
    return Keys(found)


def _add(found: dict[str, str], name: str, hashed: str, where: str) -> None:
    if name in found:
        raise ConfigError(f"{where} has a second key called {name}. Names are for one key each.", param="api_keys")
    if hashed in found.values():
        raise ConfigError(f"{where} gives the key of {name} a second name.", param="api_keys")
    found[name] = hashed
