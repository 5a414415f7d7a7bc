"""API keys as values: their forms in the environment and in a file, and how one is found."""

from __future__ import annotations

import hmac
import re
from pathlib import Path

import pytest

from causerie import keys
from causerie.config import Settings, load_settings
from causerie.errors import ConfigError
from causerie.keys import Keys, hash_of, new_key, parse_variable, read_file, read_keys

ALICE, BOB = "alice's-key-0123456", "bob's-key-0123456789"
LINE = f"alice: {hash_of(ALICE.encode())}"


def write(folder: Path, *lines: str, mode: int = 0o600) -> Path:
    file = folder / "keys.txt"
    file.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
    file.chmod(mode)
    return file


def test_a_new_key_is_long_random_and_a_token() -> None:
    made = {new_key() for _ in range(100)}
    assert len(made) == 100
    assert all(re.fullmatch(r"ck-[A-Za-z0-9_-]{43}", key) for key in made)


def test_the_owner_is_the_name_of_the_key() -> None:
    found = Keys(parse_variable(f"alice={ALICE}, bob={BOB}"))
    assert (found.owner_of(ALICE.encode()), found.owner_of(BOB.encode())) == ("alice", "bob")
    for wrong in (b"", b"alice", ALICE[:-1].encode(), hash_of(ALICE.encode()).encode(), b"\xff" * 20):
        assert found.owner_of(wrong) is None


def test_every_hash_is_compared_and_in_constant_time(monkeypatch: pytest.MonkeyPatch) -> None:
    compared: list[str] = []

    def compare(known: str, given: str) -> bool:
        compared.append(known)
        return hmac.compare_digest(known, given)

    found = Keys(parse_variable(f"alice={ALICE},bob={BOB}"))
    monkeypatch.setattr(keys, "hmac", type("Watched", (), {"compare_digest": staticmethod(compare)}))
    for key in (ALICE, BOB, "neither"):
        compared.clear()
        found.owner_of(key.encode())
        assert compared == list(found.hashes.values())


def test_settings_keep_no_key() -> None:
    settings = load_settings(environ={"CAUSERIE_API_KEYS": f"alice={ALICE}"})
    assert settings.api_keys == {"alice": hash_of(ALICE.encode())}
    assert ALICE not in repr(settings) and ALICE not in str(settings.model_dump())


@pytest.mark.parametrize(
    "value",
    [
        *("", ",", ALICE, f"={ALICE}", f"al ice={ALICE}", "alice=short-secret", f"alice={ALICE},", f"alice={ALICE}é"),
        *(f"alice={ALICE},alice={BOB}", f"alice={ALICE},bob={ALICE}"),
    ],
)
def test_a_bad_variable_is_one_line_that_quotes_no_key(value: str) -> None:
    with pytest.raises(ConfigError, match="CAUSERIE_API_KEYS") as caught:
        load_settings(environ={"CAUSERIE_API_KEYS": value})
    assert "\n" not in str(caught.value)
    assert not any(secret in str(caught.value) for secret in (ALICE, BOB, "short-secret"))


def test_keys_are_given_by_the_variable_alone(tmp_path: Path) -> None:
    file = tmp_path / "causerie.yaml"
    file.write_text(f"api_keys: alice={ALICE}\n")
    for given in ({"file": file}, {"flags": {"api_keys": f"alice={ALICE}"}}):
        with pytest.raises(ConfigError, match="only the variable CAUSERIE_API_KEYS") as caught:
            load_settings(**given, environ={})
        assert ALICE not in str(caught.value)


def test_a_file_has_names_hashes_and_comments(tmp_path: Path) -> None:
    bob = hash_of(BOB.encode())
    file = write(tmp_path, "# ours", "", LINE, f"  b.o-b@example.org :{bob}  ")
    assert read_file(file) == {"alice": hash_of(ALICE.encode()), "b.o-b@example.org": bob}


@pytest.mark.parametrize(
    "line",
    [
        *(f"alice: {ALICE}", ALICE, "alice: sha256:abc", LINE.upper(), LINE + " # mine", f"al ice{LINE[5:]}", "\x00"),
        *(f"alice: {hash_of(BOB.encode())}", f"bob{LINE[5:]}"),
    ],
)
def test_a_bad_line_is_named_and_not_quoted(tmp_path: Path, line: str) -> None:
    file = write(tmp_path, LINE, line)
    with pytest.raises(ConfigError, match=r"Line 2 of the API keys file '.*keys\.txt'") as caught:
        read_file(file)
    assert "\n" not in str(caught.value)
    assert ALICE not in str(caught.value) and "sha256:abc" not in str(caught.value)


def test_a_file_that_others_may_write_to_is_refused(tmp_path: Path) -> None:
    assert read_file(write(tmp_path, LINE, mode=0o644))
    for mode in (0o660, 0o602):
        with pytest.raises(ConfigError, match="chmod go-w"):
            read_file(write(tmp_path, LINE, mode=mode))


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    (tmp_path / "bytes").write_bytes(b"\xff\xfe")
    for name in ("missing", "bytes", "."):
        with pytest.raises(ConfigError, match="API keys file"):
            read_file(tmp_path / name)


def test_the_environment_and_the_file_go_together(tmp_path: Path) -> None:
    file = write(tmp_path, LINE)
    both = read_keys(parse_variable(f"bob={BOB}"), file)
    assert both is not None and set(both.hashes) == {"alice", "bob"}
    for clash in (f"alice={BOB}", f"bob={ALICE}"):
        with pytest.raises(ConfigError, match="CAUSERIE_API_KEYS"):
            read_keys(parse_variable(clash), file)


def test_nothing_configured_is_no_keys_and_an_empty_file_is_nobody(tmp_path: Path) -> None:
    assert read_keys(Settings().api_keys, Settings().api_keys_file) is None
    nobody = read_keys(None, write(tmp_path, "# none yet"))
    assert nobody is not None and nobody.owner_of(b"") is None
