"""Parameters that several routes of the Responses and the Conversations API share."""

from __future__ import annotations

from causerie.errors import InvalidRequest
from causerie.wire.fields import Fields, shown

MAX_METADATA = 16
MAX_METADATA_KEY = 64
MAX_METADATA_VALUE = 512


def take_metadata(fields: Fields) -> dict[str, str]:
    """``metadata``: up to 16 pairs of short strings. Raises InvalidRequest."""
    value = fields.take("metadata")
    if value is None:
        return {}
    if not isinstance(value, dict):
        fields.refuse("metadata", f"an object of at most {MAX_METADATA} pairs", value)
    if len(value) > MAX_METADATA:
        raise InvalidRequest(
            f"'metadata' has {len(value)} pairs; at most {MAX_METADATA} are allowed.", param="metadata"
        )
    for key, entry in value.items():
        if len(key) > MAX_METADATA_KEY:
            raise InvalidRequest(
                f"'metadata' has a key of {len(key)} characters; at most {MAX_METADATA_KEY} are allowed.",
                param="metadata",
            )
        if not isinstance(entry, str) or len(entry) > MAX_METADATA_VALUE:
            expected = f"a string of at most {MAX_METADATA_VALUE} characters"
            raise InvalidRequest(f"'metadata.{key}' must be {expected}, not {shown(entry)}.", param=f"metadata.{key}")
    return value
