"""Templates are rendered as transformers renders them."""

from __future__ import annotations

import re
from datetime import datetime

import pytest

from causerie.errors import InvalidRequest
from causerie.text.template import ChatTemplate
from causerie.types import Message

USER = Message("user", "a<b>\u00e9")


def render(source: str, *messages: Message, **variables: str) -> str:
    return ChatTemplate(source, variables).render(messages or [USER])


@pytest.mark.parametrize(
    ("source", "rendered"),
    [
        ("{{ messages[0] | tojson }}", '{"role": "user", "content": "a<b>é"}'),
        ("{{ messages | tojson(indent=1) }}", '[\n {\n  "role": "user",\n  "content": "a<b>é"\n }\n]'),
        ("  {% if true %}\nx\n  {% endif %}\ny", "x\ny"),
        ("{% for m in [1, 2, 3] %}{% if m == 2 %}{% break %}{% endif %}{{ m }}{% endfor %}", "1"),
        ("{% for m in messages %}{% generation %}{{ m.content }}{% endgeneration %}{% endfor %}", "a<b>é"),
        ("{{ bos_token }}{{ eos_token }}{{ pad_token }}", "<s>"),
        ("{{ tools is none }} {{ documents is none }} {{ add_generation_prompt }}", "True True True"),
        ("{{ messages[0].name is defined }}", "False"),
        ("{% set ns = namespace(x=1) %}{% set ns.x = 2 %}{{ ns.x }}", "2"),
        ("{{ messages[0].content[::-1] }}", "é>b<a"),
    ],
)
def test_what_templates_use(source: str, rendered: str) -> None:
    assert render(source, bos_token="<s>") == rendered


def test_a_name_is_there_if_given() -> None:
    assert render("{{ messages[0].name }}", Message("user", "hi", "Ada")) == "Ada"


def test_the_date_is_todays() -> None:
    assert re.fullmatch(rf"{datetime.now().year - 1}|{datetime.now().year}", render("{{ strftime_now('%Y') }}"))


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("{{ raise_exception('No such role: ' ~ messages[0].role) }}", "No such role: user"),
        ("{{ messages[3].content.x }}", "cannot render"),
        ("{{ 1 + messages[0].content }}", "cannot render"),
        ("{{ 1 / 0 }}", "cannot render"),
        ("{{ messages.append(1) }}", "cannot render"),
        ("{{ ''.__class__.__mro__ }}", "cannot render"),
        ("{{ range(10 ** 9) | list }}", "cannot render"),
    ],
)
def test_what_a_template_cannot_do_is_the_requests_fault(source: str, message: str) -> None:
    with pytest.raises(InvalidRequest, match=message) as caught:
        render(source)
    assert caught.value.param == "messages"
