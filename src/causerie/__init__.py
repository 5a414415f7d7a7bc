"""causerie: serve chat models with request and response streaming.

Importing this package loads no model runtime; each engine imports its own when it is built.
"""

__version__ = "0.1.0"
