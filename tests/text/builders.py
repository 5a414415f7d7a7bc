"""Small tokenizers of each usual kind, made in the test."""

from __future__ import annotations

from tokenizers import AddedToken, Tokenizer, decoders, normalizers, pre_tokenizers
from tokenizers.models import BPE, Unigram, WordLevel, WordPiece
from tokenizers.trainers import BpeTrainer

SPACE = "\u2581"
CORPUS = [
    "the user said: the cat sat on the mat, 1 23 456\n\n",
    "im_start user end text s> </s> <|im_end|>",
    "naïve 你好 é",
]


def special(*texts: str, normalized: bool = False) -> list[AddedToken]:
    return [AddedToken(text, special=True, normalized=normalized) for text in texts]


def token_id(tokenizer: Tokenizer, text: str) -> int:
    number = tokenizer.token_to_id(text)
    assert number is not None, f"no token {text!r}"
    return number


def byte_level(*specials: str) -> Tokenizer:
    """As GPT-2, SmolLM2 and Qwen have it, with merges that a corpus taught it."""
    tokenizer = Tokenizer(BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = BpeTrainer(vocab_size=340, initial_alphabet=alphabet, show_progress=False, special_tokens=[])
    tokenizer.train_from_iterator(CORPUS, trainer)
    tokenizer.add_special_tokens(special(*specials))
    return tokenizer


def sentencepiece(*specials: str) -> Tokenizer:
    """As Llama 2 has it: spaces as ▁, one in front, unknown characters as bytes; and merges that make ``</s>``."""
    merged = ["he", "ll", "hell", "hello", "s>", "</", "</s>", SPACE + "a", SPACE + SPACE, "<s", "<s>"]
    pairs = [("h", "e"), ("l", "l"), ("he", "ll"), ("hell", "o"), ("s", ">"), ("<", "/"), ("</", "s>")]
    pairs += [(SPACE, "a"), (SPACE, SPACE), ("<", "s"), ("<s", ">")]
    letters = ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256)), SPACE, *"abehlosu</>|é你"]
    vocabulary = {token: number for number, token in enumerate(dict.fromkeys([*letters, *merged]))}
    tokenizer = Tokenizer(BPE(vocabulary, pairs, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend(SPACE), normalizers.Replace(" ", SPACE)])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.add_special_tokens(special("<s>", "</s>", *specials))
    return tokenizer


def unigram(*specials: str) -> Tokenizer:
    """As T5 and its like have it: Metaspace, and control tokens among the pieces that the model itself can find."""
    pieces = ["<unk>", "<s>", "</s>", SPACE, SPACE + "a", "hello", *"abehlosu</>|é你"]
    tokenizer = Tokenizer(Unigram([(piece, -float(place)) for place, piece in enumerate(pieces)], unk_id=0))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    tokenizer.decoder = decoders.Metaspace(prepend_scheme="first")
    tokenizer.add_special_tokens(special("<s>", "</s>", *specials))
    return tokenizer


def compatible_forms(*specials: str) -> Tokenizer:
    """A byte-level tokenizer that looks for its control tokens after NFKC, so that ``＜s＞`` is ``<s>``."""  # noqa: RUF002
    tokenizer = byte_level()
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.add_special_tokens(special(*specials, normalized=True))
    return tokenizer


def words() -> Tokenizer:
    """No decoder at all: words joined by spaces."""
    tokenizer = Tokenizer(WordLevel({"<unk>": 0, "a": 1, "b": 2, "</s>": 3}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.add_special_tokens(special("</s>"))
    return tokenizer


def word_pieces() -> Tokenizer:
    tokenizer = Tokenizer(WordPiece({"<unk>": 0, "a": 1, "##b": 2, "c": 3, "</s>": 4}, unk_token="<unk>"))
    tokenizer.decoder = decoders.WordPiece(cleanup=False)
    tokenizer.add_special_tokens(special("</s>"))
    return tokenizer
