"""Compares our tokenizers with Hugging Face's `tokenizers` and `sentencepiece` on random strings.

    pip install tokenizers sentencepiece protobuf gguf unicodedata2==16.0.0
    python tools/compare_tokenizers.py [-n 100000] words [NAME ...]
    python tools/compare_tokenizers.py [-n 100000] ids NAME=FILE.gguf ...
    python tools/compare_tokenizers.py [-n 100000] json NAME=tokenizer.json ...
    python tools/compare_tokenizers.py [-n 100000] tekken NAME=tekken.json ...

`words` compares what pre-tokenizers cut (the regular expressions themselves, no vocabulary needed),
`ids` the tokens of whole vocabularies, `json` those of a model's own tokenizer.json as `pywina
convert` understands it, with the special tokens that a text holds, `tekken` those of Mistral's
files, with `tiktoken` (pip install it) as Mistral does. Texts come from eleven kinds of generators,
in turn. Prints one line for each name and every difference up to ten; exit code 1 if there is one.
Needs `make`.
"""

from __future__ import annotations

import argparse
import base64
import json
import random
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from itertools import pairwise
from pathlib import Path

import make_tokenizer_golden as golden
import tokenizers
import unicodedata2

ROOT = Path(__file__).resolve().parent.parent
_VECTORS = ROOT.parent / "shared" / "data" / "tokenizer-vectors"
_SPACES = ["", " ", "  ", "\n", "\r\n", "\t", " \n", "\n ", "\u00a0", "\u3000", "\x85"]
_LETTER_OF = {byte: letter for letter, byte in golden._BYTE_OF.items()}
_FALLBACK = "the of and to in is \u00fcber \u4e2d\u6587 na\u00efve 123 3.14 don't".split()


class Texts:
    """Random texts; words and added: pieces of a vocabulary and its special tokens."""

    def __init__(
        self, seed: int, words: list[str], added: list[str], assigned_only: bool = False
    ) -> None:
        self._assigned_only = assigned_only
        self._rng = random.Random(seed)
        self._words = words
        self._added = added or ["<s>"]
        self._next_cp = 0
        self._kinds: list[Callable[[], str]] = [
            self._custom, self._edge_cases, self._vocabulary_words, self._spaces_around,
            self._apostrophes, self._added_beside_spaces, self._ascii, self._all_code_points,
            self._code_points, self._pieces, self._mixed,
        ]  # fmt: skip
        self._custom_texts = self._read_custom()

    def _read_custom(self) -> list[str]:
        texts = [golden._ENGLISH, *golden._CLUSTERS]
        for path in sorted(_VECTORS.glob("*gpt-2.gguf.inp")):
            texts += path.read_bytes().decode().split("\n__ggml_vocab_test__\n")
        for path in sorted(ROOT.glob("docs/*.md")):
            texts += path.read_text().split("\n\n")
        return [text for text in texts if text]

    def __iter__(self) -> Iterator[str]:
        while True:
            for kind in self._kinds:
                yield kind()

    def _count(self, most: int) -> range:
        return range(self._rng.randint(1, most))

    def _custom(self) -> str:
        text = self._rng.choice(self._custom_texts)
        start = self._rng.randrange(len(text))
        return text[start : start + self._rng.randint(1, 200)]

    def _edge_cases(self) -> str:
        return golden.random_text(self._rng, self._rng.randint(1, 16))

    def _vocabulary_words(self) -> str:
        return self._rng.choice(self._words)

    def _spaces_around(self) -> str:
        rng = self._rng
        parts = [rng.choice(_SPACES), chr(rng.randint(0x21, 0x7E)), rng.choice(_SPACES)]
        return "".join(parts * rng.randint(1, 3))

    def _apostrophes(self) -> str:
        rng = self._rng
        ends = [*golden._APOSTROPHES, "'\u212a", "'LLx", "\u02bcs", "'\u017f\u017f"]
        return "".join(
            rng.choice(["", " ", "a", "I", "1", "\u4e2d", "!", "\u0301"]) + rng.choice(ends)
            for _ in self._count(5)
        )

    def _added_beside_spaces(self) -> str:
        rng = self._rng
        return "".join(
            rng.choice(_SPACES) + rng.choice(self._added) + rng.choice([*_SPACES, "a", "z9"])
            for _ in self._count(3)
        )

    def _ascii(self) -> str:
        return "".join(chr(self._rng.randrange(128)) for _ in self._count(60))

    def _all_code_points(self) -> str:
        """The next 64 of all code points but surrogates, round and round."""
        start = self._next_cp
        self._next_cp = (start + 64) % 0x110000
        if 0xD800 <= start < 0xE000:
            return "a"
        return self._join(range(start, start + 64))

    def _code_points(self) -> str:
        limits = [0x250, 0x3000, 0x10000, 0x20000, 0x110000]
        cps = [self._rng.randrange(self._rng.choice(limits)) for _ in self._count(24)]
        return self._join(cps)

    def _join(self, cps: Iterable[int]) -> str:
        wrong = ("Cs", "Cn") if self._assigned_only else ("Cs",)
        return "".join(chr(cp) for cp in cps if unicodedata2.category(chr(cp)) not in wrong)

    def _pieces(self) -> str:
        return "".join(self._rng.choice(self._words) for _ in self._count(12))

    def _mixed(self) -> str:
        kinds = [kind for kind in self._kinds if kind != self._mixed]
        return "".join(self._rng.choice(kinds)()[:20] for _ in self._count(6))


def take(texts: Texts, n: int) -> list[str]:
    return [text for text, _ in zip(texts, range(n), strict=False)]


def report(name: str, n: int, wrong: list[tuple[str, object, object]], started: float) -> bool:
    print(f"{name}: {n} texts, {len(wrong)} differences, {time.time() - started:.0f} s", flush=True)
    for text, theirs, ours in wrong[:10]:
        print(f"    {text!a}\n      theirs {theirs}\n      ours   {ours}")
    return not wrong


def build_cutter(folder: Path) -> Path:
    program = folder / "pretok_words"
    subprocess.run(
        ["gcc", "-O2", "-Inative/include", "-Inative/src", "tools/pretok_words.c",
         "build/lib/libwina.a", "-lm", "-pthread", "-ldl", "-o", program],
        check=True, cwd=ROOT,
    )  # fmt: skip
    return program


def cut(program: Path, name: str, texts: list[str]) -> Iterator[list[bytes]]:
    """Our words of each text."""
    encoded = [text.encode() for text in texts]
    data = b"".join(struct.pack("=I", len(text)) + text for text in encoded)
    out = subprocess.run([program, name], input=data, capture_output=True, check=True).stdout
    numbers = iter(memoryview(out).cast("I"))
    for text in encoded:
        found, at = [], 0
        for _ in range(next(numbers)):
            n = next(numbers)
            found.append(text[at : at + n])
            at += n
        assert at == len(text)
        yield found


def vocabulary_words(texts: list[str]) -> list[str]:
    """Tokens of byte-level BPE as text, those that are."""
    words = []
    for text in texts:
        if all(c in golden._BYTE_OF for c in text):
            data = bytes(golden._BYTE_OF[c] for c in text)
            words.append(data.decode("utf-8", "ignore"))
    return [word for word in words if word]


def compare_words(names: list[str], n: int) -> bool:
    path = _VECTORS / "ggml-vocab-gpt-2.gguf"
    words = vocabulary_words(golden.Vocabulary(path).texts) if path.is_file() else _FALLBACK
    good = True
    with tempfile.TemporaryDirectory() as folder:
        program = build_cutter(Path(folder))
        for seed, name in enumerate(names or golden.CUTTERS):
            started = time.time()
            # Digits has other Unicode tables than the regular expressions.
            assigned_only = golden._DIGITS in golden.CUTTERS[name]
            texts = take(Texts(seed, words, ["<|im_end|>", "</s>"], assigned_only), n)
            ours = cut(program, name, texts)
            wrong = [
                (text, theirs, mine)
                for text, mine in zip(texts, ours, strict=True)
                if mine != (theirs := golden.words(name, text))
            ]
            good &= report(name, n, wrong, started)
    return good


def our_encoder(path: str, parse_special: bool = False) -> Callable[[str], list[int]]:
    """Our tokenizer alone, without weights."""
    from pywina._native import check, ffi, lib

    params, out = ffi.new("wina_model_params *"), ffi.new("wina_model **")
    lib.wina_model_params_init(params)
    params.vocab_only = 1
    check(lib.wina_model_load(path.encode(), params, out))
    count = ffi.new("size_t *")
    flags = lib.WINA_TOKENIZE_PARSE_SPECIAL if parse_special else 0

    def encode(text: str) -> list[int]:
        data = text.encode()
        tokens = ffi.new("int32_t[]", 3 * len(data) + 8)
        check(lib.wina_tokenize(out[0], data, len(data), flags, tokens, len(tokens), count))
        return ffi.unpack(tokens, count[0]) if count[0] else []

    return encode


def compare_ids(files: list[str], n: int) -> bool:
    good = True
    for seed, item in enumerate(files):
        name, path = item.split("=", 1)
        vocab = golden.Vocabulary(Path(path))
        spm = vocab.model == "llama"
        words = [t.replace("\u2581", " ") for t in vocab.texts] if spm else None
        special = vocab.specials((golden.CONTROL, golden.USER_DEFINED, golden.UNKNOWN))
        words = words or vocabulary_words(vocab.texts)
        texts = take(Texts(seed, words, special[:200], assigned_only=not spm), n)
        encode = golden.encoder(vocab, parse_special=False)
        started, wrong = time.time(), []
        ours = our_encoder(path)
        for text in texts:
            theirs, mine = encode(text), ours(text)
            if theirs != mine:
                wrong.append((text, theirs, mine))
        good &= report(name, n, wrong, started)
    return good


def converted(source: Path, target: Path) -> None:
    """The vocabulary of a tokenizer.json as a GGUF file without weights."""
    from pywina.convert import checkpoint, gguffile

    content = json.loads(source.read_text(encoding="utf-8"))
    ids = [*content["model"]["vocab"].values(), *(t["id"] for t in content["added_tokens"])]
    file = gguffile.GgufFile({})
    file.set("general.architecture", "llama")
    checkpoint._tokenizer(source.parent, max(ids) + 1, file.values)
    gguffile.write(target, file)


def compare_json(files: list[str], n: int) -> bool:
    good = True
    for seed, item in enumerate(files):
        name, path = item.split("=", 1)
        theirs = tokenizers.Tokenizer.from_file(path)
        spm = bool(json.loads(theirs.to_str())["model"].get("byte_fallback"))
        if theirs.normalizer is not None and not spm:  # there it writes spaces as U+2581
            print(f"{name}: without its normalizer {theirs.normalizer}")
            theirs.normalizer = None
        with tempfile.TemporaryDirectory() as folder:
            target = Path(folder) / "vocabulary.gguf"
            converted(Path(path), target)
            vocab, ours = golden.Vocabulary(target), our_encoder(str(target), True)
        special = vocab.specials((golden.CONTROL, golden.USER_DEFINED))
        spaced = [text.replace("\u2581", " ") for text in vocab.texts]
        words = spaced if spm else vocabulary_words(vocab.texts)
        digits = any("Digits" in step for step in str(theirs.pre_tokenizer).split("("))
        texts = take(Texts(seed, words, special[:200], assigned_only=digits), n)
        started, wrong = time.time(), []
        for text in texts:
            wanted, mine = theirs.encode(text, add_special_tokens=False).ids, ours(text)
            if wanted != mine:
                wrong.append((text, wanted, mine))
        good &= report(f"{name} ({vocab.pre}, {len(vocab.texts)} tokens)", n, wrong, started)
    return good


def merges_of(ranks: dict[bytes, int]) -> list[str]:
    """The merges that ranks stand for: each token's last two parts, by tiktoken's rule."""
    merges = []
    for token, rank in sorted(ranks.items(), key=lambda item: item[1]):
        parts = [token[i : i + 1] for i in range(len(token))]
        while len(parts) > 2:
            joined = [ranks.get(a + b, rank) for a, b in pairwise(parts)]
            if min(joined) >= rank:
                break  # only taken whole
            at = joined.index(min(joined))
            parts[at : at + 2] = [parts[at] + parts[at + 1]]
        if len(parts) == 2:
            merges.append(" ".join(letters(part) for part in parts))
    return merges


def letters(data: bytes) -> str:
    """Bytes as byte-level BPE writes them."""
    return "".join(_LETTER_OF[byte] for byte in data)


def compare_tekken(files: list[str], n: int) -> bool:
    import tiktoken

    good = True
    for seed, item in enumerate(files):
        name, path = item.split("=", 1)
        source = json.loads(Path(path).read_text(encoding="utf-8"))
        config = source["config"]
        first = config["default_num_special_tokens"]
        kept = source["vocab"][: config["default_vocab_size"] - first]
        ranks = {base64.b64decode(token["token_bytes"]): token["rank"] for token in kept}
        theirs = tiktoken.Encoding(
            name, pat_str=config["pattern"], mergeable_ranks=ranks, special_tokens={}
        )
        vocab = {letters(token): first + rank for token, rank in ranks.items()}
        split = {"type": "Split", "pattern": {"Regex": config["pattern"]}, "behavior": "Isolated"}
        level = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False}
        special = [{"id": i, "content": f"<SPECIAL_{i}>", "special": True} for i in range(first)]
        content = {
            "model": {"type": "BPE", "ignore_merges": True, "vocab": vocab,
                      "merges": merges_of(ranks)},
            "pre_tokenizer": {"type": "Sequence", "pretokenizers": [split, level]},
            "added_tokens": special,
        }  # fmt: skip
        with tempfile.TemporaryDirectory() as folder:
            own, target = Path(folder) / "tokenizer.json", Path(folder) / "vocabulary.gguf"
            own.write_text(json.dumps(content), encoding="utf-8")
            converted(own, target)
            texts, ours = golden.Vocabulary(target), our_encoder(str(target))
        started, wrong = time.time(), []
        for text in take(Texts(seed, vocabulary_words(texts.texts), ["<s>", "[INST]"]), n):
            wanted, mine = [first + t for t in theirs.encode_ordinary(text)], ours(text)
            if wanted != mine:
                wrong.append((text, wanted, mine))
        good &= report(f"{name} ({texts.pre}, {len(texts.texts)} tokens)", n, wrong, started)
    return good


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=("words", "ids", "json", "tekken"))
    parser.add_argument("names", nargs="*", metavar="NAME")
    parser.add_argument("-n", type=int, default=100_000, help="texts for each; 100000")
    args = parser.parse_args()
    sys.path.insert(0, str(ROOT))
    compare = {
        "words": compare_words, "ids": compare_ids, "json": compare_json,
        "tekken": compare_tekken,
    }  # fmt: skip
    return 0 if compare[args.what](args.names, args.n) else 1


if __name__ == "__main__":
    sys.exit(main())
