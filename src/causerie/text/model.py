"""All that the service needs of one model's text."""

from __future__ import annotations

import builtins
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import zip_longest
from pathlib import Path

from tokenizers import AddedToken, Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE

from causerie.errors import ContextLengthExceeded, InvalidRequest
from causerie.text.detokenizer import BYTE_CHARACTERS, Detokenization, Detokenizer
from causerie.text.files import TextFiles, read_text_files
from causerie.text.growing import Settled, common_head, is_separable, last_boundary
from causerie.text.template import ChatTemplate
from causerie.text.tokenizer import ControlSpan, ControlTokenizer
from causerie.text.turns import ChatEncoding, Rendered, Seen, agreeing
from causerie.text.veil import Guard, unused_letter
from causerie.types import ChatPrompt, Message, Prompt, TextPrompt

IM_START, IM_END, END_OF_TEXT = 256, 257, 258
"""The control tokens of ``TextModel.bytes()``; its ids 0 to 255 are the bytes."""

_CHATML = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


class TextModel:
    """Turns prompts into token ids and token ids into text, for one model. Its methods are thread-safe.

    It knows nothing of context windows and engines. ``fingerprint`` tells models and templates apart.
    """

    def __init__(
        self, files: TextFiles, *, eos_token_ids: frozenset[int], bos_token_id: int | None, fingerprint: str = ""
    ) -> None:
        self.fingerprint = fingerprint
        tokenizer, source = files.tokenizer, files.chat_template
        self.eos_token_ids = eos_token_ids
        self.vocab_size = 1 + max(tokenizer.get_vocab(with_added_tokens=True).values(), default=-1)
        self._bos = [] if bos_token_id is None else [bos_token_id]
        self._end_of_turn = _end_of_turn(tokenizer, files.special_tokens, eos_token_ids)
        self._template = None if source is None else ChatTemplate(source, self._variables(files, bos_token_id))
        control = eos_token_ids | frozenset(self._bos)
        self._tokenizer = ControlTokenizer(tokenizer, control=control, template=source or "")
        self._guard = Guard(self._tokenizer)
        self._separable = is_separable(self._tokenizer.encode_plain)
        self._detokenization = Detokenization(tokenizer, silent=eos_token_ids)

    @classmethod
    def load(
        cls, folder: Path, *, eos_token_ids: frozenset[int], bos_token_id: int | None, fingerprint: str = ""
    ) -> TextModel:
        """Read a model folder's tokenizer and template.

        ``bos_token_id`` is put before plain text prompts; chat templates write their own. Raises
        ModelUnavailable for missing or unreadable files.
        """
        files = read_text_files(folder)
        return cls(files, eos_token_ids=eos_token_ids, bos_token_id=bos_token_id, fingerprint=fingerprint)

    @classmethod
    def bytes(cls) -> TextModel:
        """A vocabulary of the 256 bytes under their own values, with ChatML's control tokens after them.

        ``<|im_start|>`` is 256, ``<|im_end|>`` 257 (it ends an answer), ``<|endoftext|>`` 258.
        """
        tokenizer = Tokenizer(BPE(dict(BYTE_CHARACTERS), []))
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        tokenizer.add_special_tokens(
            [AddedToken(text, normalized=False) for text in ("<|im_start|>", "<|im_end|>", "<|endoftext|>")]
        )
        return cls(TextFiles(tokenizer, _CHATML, {}), eos_token_ids=frozenset({IM_END}), bos_token_id=None)

    def encode(self, prompt: Prompt, *, limit: int | None = None) -> list[int]:
        """The prompt's token ids.

        A conversation gets the ids of transformers' ``apply_chat_template(add_generation_prompt=True)``, save
        that no text of a message becomes a control token: it is encoded as the plain text it is. Without a
        template, each turn is followed by the end-of-text token, as DialoGPT has it; that does not say who
        speaks, so the roles are ``user`` and ``assistant``, without names. Plain text never gives a control token
        either.

        Raises InvalidRequest for a prompt that is empty, not valid Unicode, out of the vocabulary, refused by the
        template or, without one, more than turns can say; and ContextLengthExceeded for more than ``limit``
        tokens, which for very long prompts is much cheaper than to count the ids.
        """
        if isinstance(prompt, ChatPrompt):
            ids = self._encode_rendered(prompt.messages, self._render(prompt.messages), limit)
        elif isinstance(prompt, TextPrompt):
            ids = self._encode_text(prompt.text, limit)
        else:
            ids = self._check_ids(prompt.ids)
        if limit is not None and len(ids) > limit:
            raise ContextLengthExceeded(
                len(ids), limit, param="messages" if isinstance(prompt, ChatPrompt) else "prompt"
            )
        return ids

    def encode_after(
        self, prompt: ChatPrompt, seen: Seen | None, begun: Settled | None = None, *, limit: int | None = None
    ) -> ChatEncoding:
        """The conversation's ids, beginning with those that the model has ``seen`` of it where that is the same text.

        The ids say what ``encode``'s do, with the same control tokens in the same places; what was generated is
        spelled as it was. ``begun`` is what was ``settled`` while this prompt was written: only what is behind it is
        encoded, where the tokenizer allows. Raises what ``encode`` raises.
        """
        messages = prompt.messages
        rendered = self._render(messages)
        known = self._known(messages, rendered, seen, begun)
        if known is None:
            ids = self._encode_rendered(messages, rendered, limit)
            miss = None if seen is None else seen.miss(self.fingerprint, messages, ids)
        else:
            head, others, behind = known
            left = None if limit is None else max(0, limit - len(head))
            try:
                ids, miss = [*head, *self._encode_rendered(others, behind, left)], None
            except ContextLengthExceeded as error:
                raise ContextLengthExceeded(len(head) + error.prompt_tokens, limit or 0) from None
        if limit is not None and len(ids) > limit:
            raise ContextLengthExceeded(len(ids), limit)
        return ChatEncoding(messages, rendered, ids, miss)

    def seen(self, encoding: ChatEncoding, generated: Sequence[int], delivered: str) -> Seen | None:
        """What the model has seen once ``delivered`` was made of the ids that it ``generated``.

        The delivered text is the truth: ids are kept as far as they spell it in whole characters, and what is left of
        it is encoded anew. None where it cannot be spelled behind the prompt's ids.
        """
        agreed, left = agreeing(generated, delivered, self._spell)
        ids = [*generated[:agreed], *(self._tokenizer.encode_plain(left) if left else ())]
        if b"".join(map(self._spell, ids)) != delivered.encode():
            return None
        before = encoding.rendered
        return Seen(
            self.fingerprint,
            (*encoding.messages, Message("assistant", delivered)),
            before.text + delivered,
            before.spans(self._tokenizer),
            (*encoding.ids, *ids),
        )

    def settled(
        self, prompt: ChatPrompt | TextPrompt, before: Settled | None = None, *, limit: int | None = None
    ) -> Settled:
        """The ids that ``prompt`` begins with however its text, in a conversation the last message's, goes on.

        Its own last words are not among them: what is written next may change them. ``before`` is what was settled
        when the text was shorter; where tokenizer and template allow, only what is new since is encoded. A template
        that rewrites a message by what comes later in it (none of the usual do) can make this wrong; ``encode`` is
        what a prompt's ids are.

        Raises what ``encode`` raises, ContextLengthExceeded only where the settled ids alone are more than ``limit``.
        """
        if isinstance(prompt, TextPrompt):
            _check_unicode(prompt.text, "prompt")
            cut = last_boundary(prompt.text)
            return self._settle(prompt.text[:cut], (), before, limit, self._bos, resumable=cut > 0)
        *earlier, last = prompt.messages
        for message in prompt.messages:
            _check_message(message)
        content = last.content[: last_boundary(last.content)]
        if self._template is None:
            ids = self._encode_turns(earlier, limit) if earlier else []
            left = None if limit is None else max(0, limit - len(ids))
            return Settled(ids + list(self._settle(content, (), None, left, [], resumable=False).ids))
        mark = unused_letter([text for each in prompt.messages for text in (each.content, each.role, each.name or "")])
        messages = (*earlier, replace(last, content=content + mark))
        veil = self._guard.veil(messages)
        written = self._template.render(messages if veil is None else veil.cover(messages))
        head, found, _ = written.partition(mark)
        if not found:
            return Settled([])
        head = head if content else self._before_content(head)
        text, own = (head, None) if veil is None else (veil.lift(head), list(self._tokenizer.spans(head)))
        return self._settle(text, own, before, limit, [], resumable=bool(content))

    def _before_content(self, head: str) -> str:
        """What stays of a template's text before a content that is not known: its last word may go on in that."""
        stripped = head.rstrip()
        ends = (span.end == len(head) for span in self._tokenizer.spans(head))
        return stripped if stripped != head or any(ends) else head[: last_boundary(head)]

    def _settle(
        self,
        text: str,
        own: Sequence[ControlSpan] | None,
        before: Settled | None,
        limit: int | None,
        bos: list[int],
        *,
        resumable: bool,
    ) -> Settled:
        """``own`` are the control tokens that ``text`` has by right; None if it has all that it spells."""
        ids, start = bos, 0
        if self._separable and before is not None and before.text is not None and text.startswith(before.text):
            ids, start = list(before.ids), len(before.text)
        left = None if limit is None else max(0, limit - len(ids))

        def encode(rest: str) -> list[int]:
            if own is None:
                return self._tokenizer.encode(rest, left)
            spans = [ControlSpan(span.id, span.start - start, span.end - start) for span in own if span.start >= start]
            return self._tokenizer.encode_plain(rest, spans, left)

        new = encode(text[start:]) if self._separable else common_head(encode, text)
        return Settled(ids + new, text if resumable and self._separable else None)

    def detokenizer(self) -> Detokenizer:
        """A new one; each sequence needs its own."""
        return self._detokenization.start()

    def token_bytes(self, id: int) -> builtins.bytes:  # noqa: A002
        """The bytes that one token stands for, a control token's by its spelling; none if there is no such token."""
        return self._detokenization.token_bytes(id)

    @property
    def has_vocabulary(self) -> bool:
        """Whether ``vocabulary`` says what answers spell; with some decoders that depends on a token's neighbours."""
        return self._detokenization.is_table

    def vocabulary(self, size: int) -> list[builtins.bytes]:
        """What each id below ``size`` adds to an answer: nothing for a control token, or where there is none."""
        return [self._detokenization.spelled(id_) for id_ in range(size)]

    def token_text(self, id: int) -> str:  # noqa: A002
        """The same as text; a part of a character is U+FFFD."""
        return self.token_bytes(id).decode("utf-8", "replace")

    def _variables(self, files: TextFiles, bos_token_id: int | None) -> Mapping[str, str]:
        """The special tokens as a template asks for them, by the model's ids where the files name none."""
        named = {"bos_token": bos_token_id, "eos_token": self._end_of_turn}
        spelled = {name: files.tokenizer.id_to_token(number) for name, number in named.items() if number is not None}
        return {name: text for name, text in spelled.items() if text is not None} | dict(files.special_tokens)

    def _render(self, messages: Sequence[Message]) -> Rendered:
        if not messages:
            raise InvalidRequest("There are no messages: give at least one.", param="messages")
        for message in messages:
            _check_message(message)
        if self._template is None:
            return Rendered("", ())
        written = self._template.render(messages)
        veil = self._guard.veil(messages)
        if veil is None:
            return Rendered(written)
        veiled = self._template.render(veil.cover(messages))
        found, own = self._tokenizer.spans(written), tuple(self._tokenizer.spans(veiled))
        text = veil.lift(veiled)
        # Where the template treated the veiled conversation differently, their places cannot be compared.
        same_places = text == written
        if all(a == b if same_places else a and b and a.id == b.id for a, b in zip_longest(found, own)):
            return Rendered(written)
        return Rendered(text, own)

    def _encode_rendered(self, messages: Sequence[Message], rendered: Rendered, limit: int | None) -> list[int]:
        if self._template is None:
            return self._encode_turns(messages, limit)
        if rendered.own is not None:
            return self._tokenizer.encode_plain(rendered.text, rendered.own, limit)
        return self._tokenizer.encode(rendered.text, limit)

    def _known(
        self, messages: Sequence[Message], rendered: Rendered, seen: Seen | None, begun: Settled | None
    ) -> tuple[Sequence[int], Sequence[Message], Rendered] | None:
        """Ids that the prompt begins with, and what is left to encode behind them; None where none are known."""
        if begun is not None and begun.text and rendered.own is None and rendered.text.startswith(begun.text):
            ids = () if seen is None else seen.ids
            if tuple(begun.ids[: len(ids)]) == ids:
                return begun.ids, messages, Rendered(rendered.text[len(begun.text) :])
        rest = None if seen is None else self._rest(messages, rendered, seen)
        return None if seen is None or rest is None else (seen.ids, *rest)

    def _rest(
        self, messages: Sequence[Message], rendered: Rendered, seen: Seen
    ) -> tuple[Sequence[Message], Rendered] | None:
        """What is left to encode behind ``seen``; None unless all up to a control token behind it is the same.

        No merge reaches across a control token, so the rest has the ids by itself that it has in the whole.
        """
        if seen.fingerprint != self.fingerprint:
            return None
        if self._template is not None:
            rest = seen.rest(rendered, self._tokenizer)
            return None if rest is None else (messages, rest)
        if tuple(messages[: len(seen.messages)]) != seen.messages:
            return None
        # An empty turn is the end of the last answer's.
        return (Message("assistant", ""), *messages[len(seen.messages) :]), rendered

    def _spell(self, id_: int) -> builtins.bytes:
        """What an id stands for in a text; nothing for a control token."""
        return b"" if self._detokenization.is_silent(id_) else self.token_bytes(id_)

    def _encode_turns(self, messages: Sequence[Message], limit: int | None) -> list[int]:
        if self._end_of_turn is None:
            raise InvalidRequest(
                "This model has no chat template and no end-of-text token. Give it plain text to continue instead.",
                param="messages",
            )
        ids: list[int] = []
        over = 0
        for message in messages:
            _check_turn(message)
            try:
                left = None if limit is None else max(0, limit - len(ids))
                ids += self._tokenizer.encode_plain(message.content, limit=left)
            except ContextLengthExceeded as error:
                over += error.prompt_tokens
            ids.append(self._end_of_turn)
        if limit is not None and over:
            raise ContextLengthExceeded(len(ids) + over, limit)
        return ids

    def _encode_text(self, text: str, limit: int | None) -> list[int]:
        _check_unicode(text, "prompt")
        if not text:
            raise InvalidRequest("The prompt is empty.", param="prompt")
        try:
            return self._bos + self._tokenizer.encode_plain(text, limit=limit)
        except ContextLengthExceeded as error:
            raise ContextLengthExceeded(
                len(self._bos) + error.prompt_tokens, error.context_window, param="prompt"
            ) from None

    def _check_ids(self, ids: Sequence[int]) -> list[int]:
        if not ids:
            raise InvalidRequest("The prompt is empty.", param="prompt")
        if min(ids) < 0 or max(ids) >= self.vocab_size:
            raise InvalidRequest(
                f"The prompt's token ids must be from 0 to {self.vocab_size - 1}, this model's vocabulary.",
                param="prompt",
            )
        return list(ids)


def _end_of_turn(tokenizer: Tokenizer, special_tokens: Mapping[str, str], eos_token_ids: frozenset[int]) -> int | None:
    """The one of the ids that end an answer which the tokenizer calls its end-of-text token."""
    named = tokenizer.token_to_id(special_tokens.get("eos_token", ""))
    return named if named in eos_token_ids else min(eos_token_ids, default=None)


def _check_message(message: Message) -> None:
    for text in (message.role, message.content, message.name or ""):
        _check_unicode(text, "messages")


def _check_turn(message: Message) -> None:
    if message.role not in ("user", "assistant"):
        raise InvalidRequest(
            "This model has no chat template: it knows turns of user and assistant, and no other role.",
            param="messages",
        )
    if message.name is not None:
        raise InvalidRequest("This model has no chat template, so it knows no names.", param="messages")


def _check_unicode(text: str, param: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InvalidRequest(
            f"The text has half of a surrogate pair (U+{ord(text[error.start]):04X} at character {error.start}), "
            "which is no character. Send valid Unicode.",
            param=param,
        ) from None
