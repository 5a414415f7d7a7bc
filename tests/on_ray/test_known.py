"""What an engine elsewhere has probably read."""

from __future__ import annotations

from causerie.ray.known import KnownPrefixes

BLOCK = 4


def test_whole_blocks_are_known_from_the_start_on() -> None:
    prefixes = KnownPrefixes(BLOCK, 100)
    prefixes.read(range(10))
    assert prefixes.known(range(10)) == 8
    assert prefixes.known([*range(6), 99, 98]) == 4
    assert prefixes.known(range(1, 10)) == 0


def test_the_blocks_that_were_read_longest_ago_are_forgotten_first() -> None:
    prefixes = KnownPrefixes(BLOCK, 2)
    prefixes.read(range(8))
    prefixes.read(range(100, 108))
    assert (prefixes.known(range(8)), prefixes.known(range(100, 108))) == (0, 8)
