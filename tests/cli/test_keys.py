"""``causerie keys``, and a key's whole way: made, shown to a server, told to a client, removed."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from causerie.keys import Keys, read_file
from tests.cli.command import SCRIPTED, causerie, environment, one_line, running, serving


def add(name: str, file: Path) -> str:
    done = causerie("keys", "add", name, "--api-keys-file", str(file))
    assert done.returncode == 0
    return done.stdout.decode().strip()


def test_a_key_is_printed_once_and_its_hash_kept(tmp_path: Path) -> None:
    file = tmp_path / "keys.txt"
    file.write_text("# ours\n")
    alice, bob = add("alice", file), add("bob", file)
    assert file.stat().st_mode & 0o777 == 0o600
    assert file.read_text().startswith("# ours\nalice: sha256:")
    assert alice not in file.read_text()
    assert Keys(read_file(file)).owner_of(bob.encode()) == "bob"
    assert [path.name for path in tmp_path.iterdir()] == ["keys.txt"]
    listed = causerie("keys", "list", env=environment(CAUSERIE_API_KEYS_FILE=str(file)))
    assert (listed.returncode, listed.stdout) == (0, b"alice\nbob\n")


def test_a_removed_key_is_gone_and_the_others_stay(tmp_path: Path) -> None:
    file, link = tmp_path / "keys.txt", tmp_path / "link"
    link.symlink_to(file)
    add("alice", file), add("bob", file)
    assert causerie("keys", "remove", "alice", "--api-keys-file", str(link)).returncode == 0
    assert link.is_symlink() and set(read_file(file)) == {"bob"}


@pytest.mark.parametrize(
    ("arguments", "said", "code"),
    [
        (("add", "alice"), "already", 1),
        (("add", "al ice"), "name", 1),
        (("add", ""), "name", 1),
        (("remove", "bob"), "no key called bob", 1),
        (("add",), "NAME", 2),
    ],
)
def test_what_cannot_be_done_is_one_line_and_changes_nothing(
    tmp_path: Path, arguments: tuple[str, ...], said: str, code: int
) -> None:
    file = tmp_path / "keys.txt"
    add("alice", file)
    before = file.read_text()
    done = causerie("keys", *arguments, "--api-keys-file", str(file))
    assert (done.returncode, done.stdout) == (code, b"")
    assert said in one_line(done.stderr)
    assert file.read_text() == before
    assert [path.name for path in tmp_path.iterdir()] == ["keys.txt"]


def test_no_two_change_the_file_at_once(tmp_path: Path) -> None:
    (tmp_path / "keys.txt.new").touch()
    done = causerie("keys", "add", "alice", "--api-keys-file", str(tmp_path / "keys.txt"))
    assert done.returncode == 1
    assert "remove" in one_line(done.stderr)
    assert (tmp_path / "keys.txt.new").exists()


def test_no_file_and_no_folder_are_said(tmp_path: Path) -> None:
    assert "--api-keys-file" in one_line(causerie("keys", "add", "alice").stderr)
    done = causerie("keys", "add", "alice", "--api-keys-file", str(tmp_path / "no" / "keys"))
    assert "No such file" in one_line(done.stderr)


def test_a_key_opens_the_server_until_it_is_removed_and_is_never_logged(tmp_path: Path) -> None:
    file = tmp_path / "keys.txt"
    alice, bob = add("alice", file), add("bob", file)
    with serving("--api-keys-file", str(file), "--log-level", "debug") as (server, url):
        server.wait_for(r"try: curl[^\n]*Authorization: Bearer[^\n]*\n", "stderr")
        question = ("ask", "--server", url, "hello")
        answered = causerie(*question, env=environment(CAUSERIE_API_KEY=alice))
        assert answered.stdout.startswith(b"You said: hello.")
        without = one_line(causerie(*question).stderr)
        assert "401" in without and "CAUSERIE_API_KEY is where yours belongs" in without
        wrong = one_line(causerie(*question, env=environment(CAUSERIE_API_KEY="ck-wrong-key-0123456789")).stderr)
        assert "CAUSERIE_API_KEY holds another one" in wrong and "wrong-key" not in wrong
        assert causerie("keys", "remove", "alice", "--api-keys-file", str(file)).returncode == 0
        server.process.send_signal(signal.SIGHUP)
        server.wait_for("API keys were read again: bob", "stderr")
        assert "401" in one_line(causerie(*question, env=environment(CAUSERIE_API_KEY=alice)).stderr)
        assert causerie(*question, env=environment(CAUSERIE_API_KEY=bob)).returncode == 0
        assert server.stop(signal.SIGTERM) == 0
        assert not any(key in server.stderr + server.stdout for key in (alice, bob, "wrong-key"))


def test_keys_come_from_the_environment_too() -> None:
    env = environment(CAUSERIE_API_KEYS="alice=0123456789abcdef")
    with running("serve", *SCRIPTED, "--port", "0", env=env) as server:
        url = server.wait_for(r"http://127\.0\.0\.1:\d+", "stderr").group()
        question = ("ask", "--server", url, "hello")
        assert causerie(*question).returncode == 1
        assert causerie(*question, env=environment(CAUSERIE_API_KEY="0123456789abcdef")).returncode == 0


@pytest.mark.parametrize("value", ["", "two words", "né", "a\nb"])
def test_a_clients_key_that_is_none_is_one_line_that_does_not_show_it(value: str) -> None:
    done = causerie("ask", "--server", "127.0.0.1:9", "hello", env=environment(CAUSERIE_API_KEY=value))
    assert done.returncode == 1
    said = one_line(done.stderr)
    assert "CAUSERIE_API_KEY" in said and (not value or value not in said)


def test_a_server_for_others_without_keys_is_one_line_with_both_ways_out() -> None:
    done = causerie("serve", *SCRIPTED, "--host", "0.0.0.0", "--port", "0")
    assert done.returncode == 1
    said = one_line(done.stderr)
    assert "causerie keys add" in said and "--allow-anonymous" in said
    with running("serve", *SCRIPTED, "--host", "0.0.0.0", "--port", "0", "--allow-anonymous") as server:
        server.wait_for(r"url: http://127\.0\.0\.1:\d+", "stderr")


def test_a_bad_key_file_stops_the_start_in_one_line(tmp_path: Path) -> None:
    for content in ("", "alice: ck-0123456789abcdef0123456789\n"):
        (tmp_path / "keys.txt").write_text(content)
        done = causerie("serve", *SCRIPTED, "--port", "0", "--api-keys-file", str(tmp_path / "keys.txt"))
        assert done.returncode == 1
        said = one_line(done.stderr)
        assert "keys.txt" in said and "ck-" not in said
