"""Who may come in: which names the server goes by, and whose a request is."""

from __future__ import annotations

import ipaddress
import logging
import re

from starlette.types import Scope

from causerie.config import Settings
from causerie.errors import ConfigError, InvalidKey
from causerie.keys import ANONYMOUS, Keys, read_keys
from causerie.web.errors import ForeignOrigin, UnknownHost
from causerie.web.requests import host_of, same_origin

KEY_PROTOCOL = "openai-insecure-api-key."
"""A WebSocket subprotocol that begins so ends in a key: no page can choose a socket's headers. The name is OpenAI's."""

_CHANGING = {"POST", "PUT", "PATCH", "DELETE"}
_OPEN = {"/health", "/ready"}
_BEARER = re.compile(rb"bearer +([\x21-\x7e]+) *", re.IGNORECASE)

logger = logging.getLogger("causerie.web")


class Access:
    """The settings' keys and host names. Raises ConfigError for keys that cannot be read, or that are none."""

    def __init__(self, settings: Settings) -> None:
        if settings.has_keys and settings.allow_anonymous:
            raise ConfigError(
                "There are API keys, and allow_anonymous, which lets everybody in without one. Choose one of the two.",
                param="allow_anonymous",
            )
        self._settings = settings
        self.keys = self._read()
        """None where none is asked for."""
        if self.keys is not None and not self.keys.hashes:
            raise ConfigError(
                f"There is no key in the API keys file '{settings.api_keys_file}'. "
                f"Make one: causerie keys add NAME --api-keys-file '{settings.api_keys_file}'",
                param="api_keys_file",
            )
        self._hosts = settings.allowed_hosts or (("*",) if settings.has_keys else ())

    def reload(self) -> None:
        """Read the keys again. Bad ones leave things as they are, with a line in the log; none lets nobody in."""
        try:
            keys = self._read()
        except ConfigError as error:
            logger.error("the API keys stay as they were: %s", error)
            return
        self.keys = keys
        names = "" if keys is None else ", ".join(keys.hashes)
        logger.info("API keys were read again: %s", names or "there is none, so nobody may come in")

    def check_host(self, scope: Scope) -> None:
        """Refuse a name that is not the server's. Raises InvalidRequest.

        A page that has its own name resolve to this machine would otherwise be let in by the browser. An IP address
        cannot be given another meaning like that.
        """
        host = host_of(scope)
        if host is None or host == "localhost" or "*" in self._hosts or host in self._hosts or _is_address(host):
            return
        raise UnknownHost(
            f"This server is not known to be called '{host}'. Use its address, or have it started with "
            "that name in allowed_hosts.",
            param="Host",
        )

    def check_origin(self, scope: Scope) -> None:
        """Refuse what another site's page would have done here in its reader's name. Raises ForeignOrigin.

        A page may send a plain POST anywhere, though it cannot read the answer. With keys it lacks the key.
        """
        if scope["type"] == "http" and scope["method"] in _CHANGING and self.keys is None and not same_origin(scope):
            raise ForeignOrigin("This page's origin may not send requests here.", param="Origin")

    def owner_of(self, scope: Scope) -> str:
        """Whose request or socket this is. Raises InvalidKey."""
        path = scope["path"].removeprefix(scope.get("root_path", ""))
        if self.keys is None or (scope["type"] == "http" and path in _OPEN):
            return ANONYMOUS
        key = _key_of(scope)
        if key is None:
            raise InvalidKey(
                "An API key is needed here: send one in a header 'Authorization: Bearer KEY'.", param="Authorization"
            )
        owner = self.keys.owner_of(key)
        if owner is None:
            raise InvalidKey("This API key is not known here. Is it whole, and for this server?", param="Authorization")
        return owner

    def _read(self) -> Keys | None:
        return read_keys(self._settings.api_keys, self._settings.api_keys_file)


def _key_of(scope: Scope) -> bytes | None:
    given = [value for name, value in scope["headers"] if name == b"authorization"]
    if given or scope["type"] == "http":
        match = _BEARER.fullmatch(given[0]) if len(given) == 1 else None
        return match[1] if match is not None else None
    offered = [each for each in scope["subprotocols"] if each.startswith(KEY_PROTOCOL)]
    return offered[0].removeprefix(KEY_PROTOCOL).encode("latin-1", "replace") if len(offered) == 1 else None


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True
