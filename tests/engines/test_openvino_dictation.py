"""Dictation leaves the model no choice: whatever it prefers, it says the tokens that are to be read."""

from __future__ import annotations

import re
from collections.abc import Sequence

from hypothesis import example, given
from hypothesis import strategies as st

from causerie.engines.ebnf import literal
from causerie.engines.openvino_dictation import Dictated, Dictation

BYTES = [bytes([byte]) for byte in range(256)]
WORDS = ["a", "an", "and", " a", " an", " and", "the", " the", "there", "é", "ß", "ße", "世", " 世界", "\n\n", "a"]
CONTROL = b""
VOCABULARY = [*BYTES, *(word.encode() for word in WORDS), CONTROL]
ids_ = st.lists(st.integers(0, len(VOCABULARY) - 1) | st.integers(256, len(VOCABULARY) - 1), max_size=40)


def ids_of(text: str) -> list[int]:
    """The longest token at every place."""
    data, found = text.encode(), list[int]()
    while data:
        found.append(max((id_ for id_, part in enumerate(VOCABULARY) if part and data.startswith(part)), key=length))
        data = data[len(VOCABULARY[found[-1]]) :]
    return found


def length(token: int) -> int:
    return len(VOCABULARY[token])


def text_of(grammar: str) -> str:
    """What the one rule of a grammar spells."""
    name, rule = grammar.split(" ::= ")
    assert name == "root"
    parts = re.findall(r'"((?:[^"\\]|\\U[0-9a-f]{8})*)"', rule)
    assert " ".join(f'"{part}"' for part in parts) == rule
    return re.sub(r"\\U([0-9a-f]{8})", lambda found: chr(int(found[1], 16)), "".join(parts))


def choices(dictated: Dictated, said: Sequence[int]) -> list[int]:
    """What may be said next: whatever goes on as the grammar wants it, but none of the others."""
    left = text_of(dictated.grammar).encode()[sum(map(length, said)) :]
    return [
        token
        for token, spelled in enumerate(VOCABULARY)
        if spelled and left.startswith(spelled) and token not in dictated.others
    ]


@given(ids_ | st.text(st.sampled_from("an dthereéß世界\n")).map(ids_of))
@example(ids_of("and there is a"))
@example(ids_of("ße é1 世界"))
def test_at_every_place_nothing_may_be_said_but_the_token_that_is_to_be_read(ids: list[int]) -> None:
    dictated = Dictation(VOCABULARY).begin(ids)
    if dictated is None:
        return
    assert 0 < dictated.tokens <= len(ids)
    said: list[int] = []
    for token in ids[: dictated.tokens]:
        assert choices(dictated, said) == [token]
        said.append(token)
    assert b"".join(VOCABULARY[token] for token in said) == text_of(dictated.grammar).encode()


def test_a_token_that_could_stand_for_an_earlier_one_ends_the_run() -> None:
    the, there, a, and_ = 256 + WORDS.index(" the"), 256 + WORDS.index("there"), 256 + WORDS.index(" a"), 256 + 5
    dictation = Dictation(VOCABULARY)
    assert (dictation.begin([and_, a, the]) or (0,))[0] == 1
    assert (dictation.begin([a, and_, the]) or (0,))[0] == 1
    assert (dictation.begin([the, a, there]) or (0,))[0] == 3


def test_a_run_has_whole_characters_only() -> None:
    dictation = Dictation(VOCABULARY)
    halves = list("世".encode())
    assert dictation.begin(halves[1:]) is None
    assert dictation.begin(halves[:2]) is None
    assert (dictation.begin([ord("x"), *halves[:2]]) or (0,))[0] == 1
    assert (dictation.begin([*halves, ord("x")]) or (0,))[0] == 4


def test_what_spells_nothing_is_not_dictated() -> None:
    control, nul = len(VOCABULARY) - 1, 0
    dictation = Dictation(VOCABULARY)
    assert dictation.begin([]) is None
    assert dictation.begin([control, ord("x")]) is None
    assert (dictation.begin([ord("x"), control]) or (0,))[0] == 1
    assert dictation.begin([nul, ord("x")]) is None, "xgrammar's text ends there"
    assert Dictation([]).begin([]) is None


@given(st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"])))
@example("Müde 1ß2")
@example('"\\')
def test_a_literal_spells_its_text_and_never_a_number_that_goes_on(text: str) -> None:
    written = literal(text)
    assert text_of(f"root ::= {written}") == text
    # xgrammar spells these as \xfc for itself, and would read "\xfcd" as one character.
    assert not re.search(r"\\U000000([01][0-9a-f]|7f|[89a-f][0-9a-f])[0-9a-fA-F]", written)
