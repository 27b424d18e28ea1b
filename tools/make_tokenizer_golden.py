"""Writes the golden files of the tokenizer tests from other people's tokenizers.

    tests/golden/pretok.txt          words of random texts, per pre-tokenizer, in hexadecimal
    tests/golden/pretokenizers.json  how tokenizer.json describes each pre-tokenizer
    tests/golden/tokenizer.json      token ids of random texts, per vocabulary

Byte-level BPE comes from Hugging Face's `tokenizers`, built from the vocabulary and merges in the
GGUF file and the regular expressions that the models' own tokenizer.json files have; SPM comes from
`sentencepiece`, whose model is rebuilt from the pieces and scores in the GGUF file. Texts are
random over all planes and categories, with a fixed seed.

    pip install tokenizers sentencepiece protobuf gguf unicodedata2==16.0.0
    python tools/make_tokenizer_golden.py gpt-2=ggml-vocab-gpt-2.gguf smollm2=smollm2-135m.gguf ...

Each argument names a vocabulary of the tests and the file that holds it.
"""

from __future__ import annotations

import argparse
import json
import random
import re
from collections.abc import Callable
from pathlib import Path

import gguf
import sentencepiece
import unicodedata2
from sentencepiece import sentencepiece_model_pb2
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers

GOLDEN = Path(__file__).resolve().parent.parent / "tests" / "golden"
SEED = 20250
N_TEXTS = 220
N_PRETOK_TEXTS = 120
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)

_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_MODERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}%s|"
    r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_DIGITS = pre_tokenizers.Digits(individual_digits=True)


def _split(pattern: str) -> pre_tokenizers.PreTokenizer:
    return pre_tokenizers.Split(Regex(pattern), "isolated")


_SUFFIX = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
_PREFIX = r"[^\r\n\p{L}\p{N}]?"
_NO_LOWER, _NO_UPPER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_TAIL = r" ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_GPT4O = (
    f"{_PREFIX}{_NO_LOWER}*{_NO_UPPER}+{_SUFFIX}|{_PREFIX}{_NO_LOWER}+{_NO_UPPER}*{_SUFFIX}|"
    rf"\p{{N}}{{1,3}}|{_TAIL}"
)
_TEKKEN = (
    f"{_PREFIX}{_NO_LOWER}*{_NO_UPPER}+|{_PREFIX}{_NO_LOWER}+{_NO_UPPER}*|" rf"\p{{N}}|{_TAIL}"
)
_QWEN35 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}|"
    r" ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_SEED = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1}|"
    r" ?[^\s\p{L}\p{N}\r\n]+|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_CL100K = (
    r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}%s| ?[^\s\p{L}\p{N}]++[\r\n]*|"
    r"\s*[\r\n]|\s+(?!\S)|\s+"
)
_DEEPSEEK3 = (
    '[!"#$%&'
    r"'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+|"
    r" ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
# First and last code points of the letters in deepseek-llm's expression.
_CASED = (
    "41 5A 61 7A B5 B5 C0 D6 D8 F6 F8 1BA 1BC 1BF 1C4 293 295 2AF 370 373 376 376 377 377 37B 37D "
    "37F 37F 386 386 388 38A 38C 38C 38E 3A1 3A3 3F5 3F7 481 48A 52F 531 556 10A0 10C5 13A0 13F5 "
    "13F8 13FD 1C90 1CBA 1CBD 1CBF 1D00 1D2B 1D6B 1D77 1D79 1D9A 1E00 1F15 1F18 1F1D 1F20 1F45 "
    "1F48 1F4D 1F50 1F57 1F59 1F59 1F5B 1F5B 1F5D 1F5D 1F5F 1F7D 1F80 1FB4 1FB6 1FBC 1FBE 1FBE "
    "1FC2 1FC4 1FC6 1FCC 1FD0 1FD3 1FD6 1FDB 1FE0 1FEC 1FF2 1FF4 1FF6 1FFC 2102 2102 2107 2107 "
    "210A 2113 2115 2115 2119 211D 2124 2124 2126 2126 2128 2128 212A 212D 212F 2134 2139 2139 "
    "213C 213F 2145 2149 214E 214E 2183 2183 2184 2184 2C00 2C7B 2C7E 2CE4 2CEB 2CEE 2CF2 2CF2 "
    "2CF3 2CF3 A640 A66D A680 A69B A722 A76F A771 A787 A78B A78E AB70 ABBF FB00 FB06 FB13 FB17 "
    "FF21 FF3A FF41 FF5A 10400 1044F 104B0 104D3 104D8 104FB 10C80 10CB2 10CC0 10CF2 118A0 118DF "
    "1E900 1E943"
).split()
_CASED_SET = "".join(
    f"{chr(int(first, 16))}-{chr(int(last, 16))}"
    for first, last in zip(_CASED[::2], _CASED[1::2], strict=True)
)
_BLOOM = " ?[^(\\s|[.,!?\u2026\u3002\uff0c\u3001\u0964\u06d4\u060c])]+"
_BYTES = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)

# What cuts text into words. One name for each expression.
CUTTERS: dict[str, list[pre_tokenizers.PreTokenizer]] = {
    "gpt-2": [_split(_GPT2)],
    "smollm": [_DIGITS, _split(_GPT2)],
    "starcoder": [_DIGITS, _split(_GPT2)],
    "llama-bpe": [_split(_MODERN % "{1,3}")],
    "dbrx": [_split(_CL100K % "{1,3}")],
    "qwen2": [_split(_MODERN % "")],
    "bailingmoe": [_split(_CL100K % "")],
    "qwen35": [_split(_QWEN35)],
    "seed-coder": [_split(_SEED)],
    "minicpm5": [_split(r"\p{N}{1,3}"), _split(_MODERN % "+")],
    "gpt-4o": [_split(_GPT4O)],
    "tekken": [_split(_TEKKEN)],
    "deepseek-llm": [
        _split(r"[\r\n]"),
        _split(rf"\s?[{_CASED_SET}]+"),
        _split("\\s?[!-/:-~\uff01-\uff0f\uff1a-\uff5e\u2018-\u201f\u3000-\u3002]+"),
        _split(r"\s+$"),
        _split(r"[一-龥ࠀ-一가-퟿]+"),
        _DIGITS,
    ],
    "deepseek-coder": [
        _split(r"[\r\n]"),
        _split(r"\s?\p{L}+"),
        _split(r"\s?\p{P}+"),
        _split(r"[一-龥ࠀ-一가-퟿]+"),
        _DIGITS,
    ],
    "deepseek-v3": [
        _split(r"\p{N}{1,3}"),
        _split("[\u4e00-\u9fa5\u3040-\u309f\u30a0-\u30ff]+"),
        _split(_DEEPSEEK3),
    ],
    "falcon": [
        pre_tokenizers.Punctuation("contiguous"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
        pre_tokenizers.Digits(individual_digits=False),
        _split("[0-9][0-9][0-9]"),
    ],
    "bloom": [_split(_BLOOM)],
    "viking": [_split(_BLOOM), _DIGITS],
}


def _byte_of() -> dict[str, int]:
    """The byte that each character of byte-level BPE stands for."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(b): b for b in printable} | {chr(256 + i): b for i, b in enumerate(others)}


_BYTE_OF = _byte_of()


def words(pre: str, text: str) -> list[bytes]:
    """The words that a pre-tokenizer cuts text into."""
    cutters = CUTTERS[pre] if pre == "falcon" else [*CUTTERS[pre], _BYTES]
    found = pre_tokenizers.Sequence(cutters).pre_tokenize_str(text)
    return [bytes(_BYTE_OF[c] for c in word) for word, _ in found]


class Vocabulary:
    """tokenizer.ggml.* of a GGUF file."""

    def __init__(self, path: Path) -> None:
        self._reader = gguf.GGUFReader(path)
        self.model = self.value("model")
        self.pre = self.value("pre")
        self.architecture = self._reader.fields["general.architecture"].contents()
        field = self._reader.fields["tokenizer.ggml.tokens"]
        self.texts = [bytes(field.parts[i]).decode() for i in field.data]
        self.types = [int(t) for t in self.value("token_type")]
        if self.model == "gpt2" and "<|EOT|>" in self.texts:
            self.types[self.texts.index("<|EOT|>")] = CONTROL  # it ends a generation

    def value(self, key: str) -> object:
        """A value under tokenizer.ggml., None if absent."""
        field = self._reader.fields.get(f"tokenizer.ggml.{key}")
        return None if field is None else field.contents()

    def specials(self, types: tuple[int, ...]) -> list[str]:
        """Texts of the tokens of these types."""
        return [text for text, kind in zip(self.texts, self.types, strict=True) if kind in types]


def bpe_encoder(vocab: Vocabulary, parse_special: bool) -> Callable[[str], list[int]]:
    """Hugging Face's byte-level BPE over the file's vocabulary and merges."""
    ids = {text: i for i, text in enumerate(vocab.texts)}
    merges = [tuple(merge.split(" ")) for merge in vocab.value("merges")]
    tokenizer = Tokenizer(models.BPE(ids, merges, ignore_merges=vocab.pre == "llama-bpe"))
    if vocab.pre in ("gpt-2", "smollm", "starcoder"):
        # As in those models' own files: the expression is the one built into ByteLevel.
        last = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
        cutters = CUTTERS[vocab.pre][:-1]
    else:
        last = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        cutters = CUTTERS[vocab.pre]
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([*cutters, last])
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_tokens(
        [AddedToken(text, normalized=False) for text in vocab.specials((USER_DEFINED,))]
    )
    if parse_special:
        tokenizer.add_special_tokens(
            [AddedToken(text, normalized=False) for text in vocab.specials((CONTROL, UNKNOWN))]
        )
    return lambda text: tokenizer.encode(text, add_special_tokens=False).ids


def spm_encoder(vocab: Vocabulary) -> Callable[[str], list[int]]:
    """SentencePiece's BPE over the file's pieces and scores; control tokens are never parsed."""
    model = sentencepiece_model_pb2.ModelProto()
    model.trainer_spec.model_type = sentencepiece_model_pb2.TrainerSpec.BPE
    model.trainer_spec.byte_fallback = True
    unknown = vocab.value("unknown_token_id") or 0
    model.trainer_spec.unk_id = unknown
    model.normalizer_spec.name = "identity"
    model.normalizer_spec.add_dummy_prefix = vocab.value("add_space_prefix") is not False
    model.normalizer_spec.remove_extra_whitespaces = False
    model.normalizer_spec.escape_whitespaces = True
    rows = zip(vocab.texts, vocab.value("scores"), vocab.types, strict=True)
    for text, score, kind in rows:
        # Exactly one token must be unknown there; others of that type, and unused ones, are
        # written as control tokens, which text cannot become either.
        if len(model.pieces) == unknown:
            kind = UNKNOWN
        elif kind in (UNKNOWN, UNUSED):
            kind = CONTROL
        if kind == USER_DEFINED:
            text = text.replace(" ", "\u2581")
        model.pieces.add(piece=text, score=score, type=kind)
    processor = sentencepiece.SentencePieceProcessor(model_proto=model.SerializeToString())
    if vocab.architecture != "phi3":
        return processor.encode
    # There, text is cut at user-defined tokens, which swallow the spaces after them; each piece is
    # then a text of its own.
    end = re.compile(r"</s>[\t-\r \x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000]*")

    def encode(text: str) -> list[int]:
        pieces = [processor.encode(piece) for piece in end.split(text)]
        return [token for piece in pieces for token in (2, *piece)][1:]

    return encode


def encoder(vocab: Vocabulary, parse_special: bool) -> Callable[[str], list[int]]:
    """The reference for a vocabulary."""
    return spm_encoder(vocab) if vocab.model == "llama" else bpe_encoder(vocab, parse_special)


_BY_CATEGORY: dict[str, list[int]] = {}
_SPACES = [0x9, 0xA, 0xB, 0xC, 0xD, 0x20, 0x85, 0xA0, 0x1680, 0x2000, 0x2009, 0x2028, 0x2029]
_SPACES += [0x202F, 0x205F, 0x3000, 0x1C, 0x1F, 0x180E, 0x200B, 0x200D, 0xFEFF]
_NEWLINES = ["\n", "\r\n", "\r", "\n\n", "  \n", "\n  ", "\t\n"]
_APOSTROPHES = ["'s", "'S", "'t", "'RE", "'re", "'Ve", "'ve", "'ll", "'LL", "'d", "'D", "'m"]
_APOSTROPHES += ["'ſ", "'K", "'", "''", "’s", "'ß", "'r", "'l", "'v", "'lL", "'é"]
_CLUSTERS = ["👨\u200d👩\u200d👧", "🏳️\u200d🌈", "🇩🇪", "e\u0301", "가각", "日本語", "ไทย", "कि"]
_EDGES = [0x7FF, 0x800, 0x4E00, 0x9FA5, 0x9FA6, 0xABFF, 0xAC00, 0xD7FF]
_ENGLISH = "The old house stood by the river; its windows shone like 1234 lamps, didn't they"


def random_text(rng: random.Random, n_pieces: int) -> str:
    """A few pieces of every kind that a tokenizer may get wrong."""
    if not _BY_CATEGORY:
        for cp in range(0x110000):
            category = unicodedata2.category(chr(cp))
            # Unassigned code points differ between Unicode versions, surrogates are no text.
            if category not in ("Cn", "Cs"):
                _BY_CATEGORY.setdefault(category, []).append(cp)

    def one_of(category: str) -> str:
        return chr(rng.choice(_BY_CATEGORY[category]))

    makers: list[Callable[[], str]] = [
        lambda: one_of(rng.choice(list(_BY_CATEGORY))),
        lambda: rng.choice("abzABZ stdmrevl019.,!?-_<>|\"'"),
        lambda: rng.choice("abzABZ stdmrevl019.,!?-_<>|\"'"),
        lambda: chr(rng.choice(_SPACES)) * rng.randint(1, 3),
        lambda: rng.choice(_NEWLINES),
        lambda: rng.choice(_APOSTROPHES) + rng.choice(["", "a", "s", " ", "ſ"]),
        lambda: "".join(one_of(rng.choice(["Nd", "Nd", "Nl", "No"])) for _ in range(3)),
        lambda: "".join(rng.choice("0123456789") for _ in range(rng.randint(1, 7))),
        lambda: "".join(one_of(rng.choice(["Lo", "Mn", "Mc", "Lu"])) for _ in range(3)),
        lambda: chr(rng.choice(_EDGES)),
        lambda: rng.choice(_CLUSTERS),
        lambda: " " * rng.randint(1, 6),
        lambda: rng.choice(_ENGLISH.split()),
        lambda: " " + rng.choice(_ENGLISH.split()),
        lambda: " " + rng.choice(_ENGLISH.split()),
    ]
    return "".join(rng.choice(makers)() for _ in range(n_pieces))


def make_texts(n: int, seed: int, specials: list[str] | None = None) -> list[str]:
    """n random texts; with specials, some of those are strewn in, whole or cut short."""
    rng = random.Random(seed)
    texts = []
    for _ in range(n):
        text = random_text(rng, rng.randint(1, 16))
        for _ in range(rng.randint(1, 4) if specials else 0):
            special, at = rng.choice(specials), rng.randint(0, len(text))
            if rng.random() < 0.2:
                special = special[: rng.randint(1, len(special))]
            text = text[:at] + special + text[at:]
        texts.append(text)
    return texts


def write_pretok() -> None:
    """One line per pre-tokenizer and text: the name, then each word in hexadecimal."""
    lines = [
        " ".join([pre, *(word.hex() for word in words(pre, text))])
        for pre in CUTTERS
        if pre != "starcoder"  # cuts as smollm does
        for text in make_texts(N_PRETOK_TEXTS, SEED)
    ]
    (GOLDEN / "pretok.txt").write_text("\n".join(lines) + "\n")


def write_descriptions() -> None:
    """The pre-tokenizers as `tokenizers` writes them."""
    found = {}
    for name, cutters in CUTTERS.items():
        tokenizer = Tokenizer(models.BPE())
        last = [] if name == "falcon" else [_BYTES]
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence([*cutters, *last])
        found[name] = json.loads(tokenizer.to_str())["pre_tokenizer"]
    (GOLDEN / "pretokenizers.json").write_text(json.dumps(found, indent=1) + "\n")


def write_ids(files: dict[str, Path]) -> None:
    """For each vocabulary: ids of the common texts, and of texts with special tokens in them."""
    texts = make_texts(N_TEXTS, SEED + 1)
    golden: dict[str, object] = {"texts": texts}
    for name, path in files.items():
        vocab = Vocabulary(path)
        plain = encoder(vocab, parse_special=False)
        entry: dict[str, object] = {"ids": [plain(text) for text in texts]}
        if vocab.model != "llama":
            parse = encoder(vocab, parse_special=True)
            special = make_texts(30, SEED + 2, vocab.specials((CONTROL, USER_DEFINED))[:40])
            entry["special"] = [[text, parse(text)] for text in special]
        golden[name] = entry
    # One text or one list of ids per line, so that a change can be read.
    text = json.dumps(golden, ensure_ascii=True, separators=(",", ":"))
    text = text.replace("],[", "],\n[").replace('","', '",\n"').replace('"ids":', '\n"ids":\n')
    if json.loads(text) != golden:
        raise RuntimeError("line breaks changed the content")
    (GOLDEN / "tokenizer.json").write_text(text + "\n")


def main() -> None:
    """Writes the files."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("vocabularies", nargs="*", metavar="NAME=FILE")
    files = dict(item.split("=", 1) for item in parser.parse_args().vocabularies)
    write_pretok()
    write_descriptions()
    if files:
        write_ids({name: Path(path) for name, path in files.items()})


if __name__ == "__main__":
    main()
