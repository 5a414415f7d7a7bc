"""Model folders in the forms that repositories have them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tokenizers import Tokenizer

from causerie.errors import ModelUnavailable
from causerie.text.detokenizer import BYTE_CHARACTERS
from causerie.text.model import TextModel
from causerie.types import ChatPrompt, Message, TextPrompt
from tests.text import builders

END = "<|endoftext|>"
HI = ChatPrompt((Message("user", "hi"),))


def write(folder: Path, tokenizer: Tokenizer, **files: object) -> Path:
    tokenizer.save(str(folder / "tokenizer.json"))
    for name, content in files.items():
        (folder / f"{name}.json").write_text(json.dumps(content), encoding="utf-8")
    return folder


def load(folder: Path, *eos: int, bos: int | None = None) -> TextModel:
    return TextModel.load(folder, eos_token_ids=frozenset(eos), bos_token_id=bos)


def said(model: TextModel, prompt: ChatPrompt = HI) -> str:
    return "".join(model.token_text(token) for token in model.encode(prompt))


def test_vocabulary_and_merges_are_gpt2s(tmp_path: Path) -> None:
    """DialoGPT's folder: two files, the end-of-text token in the vocabulary, no template."""
    tokens = [*BYTE_CHARACTERS, "Ġh", "Ġhi", "hi", END]
    (tmp_path / "vocab.json").write_text(json.dumps({token: place for place, token in enumerate(tokens)}))
    (tmp_path / "merges.txt").write_text("#version: 0.2\nh i\nĠ h\nĠ hi\n", encoding="utf-8")
    end = tokens.index(END)
    model = load(tmp_path, end)
    turns = ChatPrompt((Message("user", "hi hi"), Message("assistant", f"no{END}")))
    assert [model.token_text(token) for token in model.encode(turns)] == ["hi", " hi", END, "n", "o", *END, END]
    assert model.encode(turns).count(end) == 2
    assert model.vocab_size == 260


@pytest.mark.parametrize(
    "template",
    ["A{{ eos_token }}", [{"name": "tool_use", "template": "B"}, {"name": "default", "template": "A{{ eos_token }}"}]],
)
def test_the_template_of_the_configuration(tmp_path: Path, template: object) -> None:
    config = {"chat_template": template, "eos_token": {"content": END, "lstrip": False}}
    assert said(load(write(tmp_path, builders.byte_level(END), tokenizer_config=config))) == f"A{END}"


def test_the_templates_own_file_comes_first(tmp_path: Path) -> None:
    folder = write(tmp_path, builders.byte_level(END), tokenizer_config={"chat_template": "A"})
    (folder / "chat_template.jinja").write_text("é{{ messages[0].content }}", encoding="utf-8")
    assert said(load(folder)) == "éhi"


def test_a_processors_template_is_read_where_the_tokenizer_has_none(tmp_path: Path) -> None:
    folder = write(tmp_path, builders.byte_level(END), chat_template={"chat_template": "P"})
    assert said(load(folder)) == "P"
    (folder / "tokenizer_config.json").write_text('{"chat_template": "T"}')
    assert said(load(folder)) == "T"


def test_special_tokens_without_a_configuration_are_the_models_ids(tmp_path: Path) -> None:
    tokenizer = builders.byte_level("<s>", "</s>")
    folder = write(tmp_path, tokenizer)
    (folder / "chat_template.jinja").write_text("{{ bos_token }}-{{ eos_token }}", encoding="utf-8")
    model = load(folder, builders.token_id(tokenizer, "</s>"), bos=builders.token_id(tokenizer, "<s>"))
    assert said(model) == "<s>-</s>"


def test_special_tokens_map_names_tokens(tmp_path: Path) -> None:
    folder = write(tmp_path, builders.byte_level(END), special_tokens_map={"bos_token": END})
    (folder / "chat_template.jinja").write_text("{{ bos_token }}x", encoding="utf-8")
    assert said(load(folder)) == f"{END}x"


def test_tokens_that_only_the_older_files_list_are_control_tokens(tmp_path: Path) -> None:
    tokenizer = builders.byte_level()
    size = tokenizer.get_vocab_size()
    listed = {str(size): {"content": "<|im_end|>", "special": True}}
    folder = write(
        tmp_path, tokenizer, tokenizer_config={"added_tokens_decoder": listed}, added_tokens={"<x>": size + 1}
    )
    (folder / "chat_template.jinja").write_text("{{ messages[0].content }}<|im_end|><x>", encoding="utf-8")
    ids = load(folder).encode(ChatPrompt((Message("user", "<|im_end|><x>"),)))
    assert (ids[-2:], ids.count(size), ids.count(size + 1)) == ([size, size + 1], 1, 1)


def test_a_special_token_that_is_only_in_the_vocabulary_is_a_control_token(tmp_path: Path) -> None:
    folder = write(tmp_path, builders.byte_level(), special_tokens_map={"eos_token": "user"})
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    number = builders.token_id(tokenizer, "user")
    assert number in tokenizer.encode("user").ids
    assert number not in load(folder).encode(TextPrompt("user"))


def test_truncation_that_a_tokenizer_brings_along_is_off(tmp_path: Path) -> None:
    tokenizer = builders.byte_level(END)
    tokenizer.enable_truncation(4)
    tokenizer.enable_padding(length=8)
    assert (
        load(write(tmp_path, tokenizer)).encode(TextPrompt("q z" * 9)) == builders.byte_level(END).encode("q z" * 9).ids
    )


def test_added_tokens_that_contradict_the_tokenizer_are_refused(tmp_path: Path) -> None:
    folder = write(tmp_path, builders.byte_level(END), added_tokens={END: 7})
    with pytest.raises(ModelUnavailable, match="two ids"):
        load(folder)


@pytest.mark.parametrize(
    "files",
    [
        {},
        {"tokenizer.json": "{"},
        {"vocab.json": "{}"},
        {"tokenizer.json": "{}"},
        {"vocab.json": "[", "merges.txt": ""},
    ],
)
def test_missing_and_broken_files_are_said_by_the_folders_name(tmp_path: Path, files: dict[str, str]) -> None:
    folder = tmp_path / "org--model"
    folder.mkdir()
    for name, content in files.items():
        (folder / name).write_text(content)
    with pytest.raises(ModelUnavailable, match="org--model") as caught:
        load(folder)
    assert str(tmp_path) not in str(caught.value)


def test_a_broken_configuration_is_said(tmp_path: Path) -> None:
    folder = write(tmp_path, builders.byte_level(END), tokenizer_config=[1])
    with pytest.raises(ModelUnavailable, match="tokenizer_config"):
        load(folder)


def test_a_template_that_is_no_template_is_said(tmp_path: Path) -> None:
    folder = write(tmp_path, builders.byte_level(END), tokenizer_config={"chat_template": "{% for %}"})
    with pytest.raises(ModelUnavailable, match="line 1"):
        load(folder)
