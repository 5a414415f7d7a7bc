"""A client of causerie's own servers, asynchronous and not: text, chat, and answers that survive their connection.

``AsyncClient`` is the client; ``Client`` is the same for code without an event loop. Errors are those of
``causerie.errors``, as the server raised them, and ``ConnectionLost``.
"""

from causerie.client.answer import AsyncAnswer
from causerie.client.asynchronous import AsyncChat, AsyncClient
from causerie.client.server import KEY_VARIABLE, Patience
from causerie.client.streams import Sampling
from causerie.client.synchronous import Answer, Chat, Client

__all__ = [
    "KEY_VARIABLE",
    "Answer",
    "AsyncAnswer",
    "AsyncChat",
    "AsyncClient",
    "Chat",
    "Client",
    "Patience",
    "Sampling",
]
