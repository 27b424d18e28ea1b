"""Programs written for llama-cpp-python run after changing the import line only.

Golden values are of llama-cpp-python 0.3.36 on the same file. It rounds activations to 8 bits, so
its log probabilities differ a little.
"""

from __future__ import annotations

import io
import json
import pickle
import sys
from collections.abc import Iterator
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import ROOT

import pywina
from pywina.llama import (
    Llama,
    LlamaGrammar,
    LlamaRAMCache,
    LogitsProcessorList,
    MinTokensLogitsProcessor,
    StoppingCriteriaList,
)

sys.path.insert(0, str(ROOT / "tools"))
import make_llama_golden as golden

sys.path.pop(0)

GREEDY: dict[str, Any] = {"temperature": 0.0, "max_tokens": 6}

SCRIPT = """
from llama_cpp import Llama

llm = Llama(model_path=PATH, n_ctx=512, n_threads=1, seed=1, logits_all=True, verbose=False)
prompt = "The capital of France is"
output = llm(prompt, max_tokens=12, temperature=0.0, stop=["\\n\\n"], logprobs=2)
choice = output["choices"][0]
print(repr(choice["text"]), choice["finish_reason"], output["usage"]["total_tokens"])
print(choice["logprobs"]["tokens"], choice["logprobs"]["text_offset"])
print([round(p, 1) for p in choice["logprobs"]["token_logprobs"][:2]])
print([sorted(top) for top in choice["logprobs"]["top_logprobs"]])
for chunk in llm(prompt, max_tokens=4, temperature=0.0, stream=True):
    print(chunk["choices"][0]["text"], end="")
print("", chunk["choices"][0]["finish_reason"])
messages = [
    {"role": "system", "content": "You are a helpful assistant."},
    {"role": "user", "content": "What is 2 plus 2?"},
]
answer = llm.create_chat_completion(messages=messages, max_tokens=8, temperature=0.0)
print(answer["object"], answer["choices"][0]["message"])
for chunk in llm.create_chat_completion(messages, max_tokens=8, temperature=0.0, stream=True):
    delta = chunk["choices"][0]["delta"]
    if "content" in delta:
        print(delta["content"], end="", flush=True)
print()
tokens = llm.tokenize(b"The capital of France is")
print(tokens, llm.detokenize(tokens), llm.token_eos(), llm.token_bos(), llm.n_vocab(), llm.n_ctx())
llm.reset()
llm.eval(tokens)
print(llm.n_tokens, llm.sample(temp=0.0))
"""

#: what llama-cpp-python printed, but for the order of its chat's near-ties
EXPECTED = """\
' Paris.' stop 9
[' Paris', '.', '\\n', '\\n'] [24, 30, 31, 32]
[-0.3, -0.4]
[[' Paris', ' the'], [',', '.'], ['\\n', ' The'], ['\\n', '-']]
 Paris.

 length
"""


@pytest.fixture(scope="module")
def smol(smollm2_path: Path) -> Iterator[Llama]:
    with Llama(str(smollm2_path), n_ctx=256, seed=1, logits_all=True, embedding=True) as llm:
        yield llm


@pytest.fixture
def llm(tiny_model: Path) -> Iterator[Llama]:
    with Llama(str(tiny_model), n_ctx=128, logits_all=True, embedding=True, seed=3) as model:
        yield model


def test_a_script_for_llama_cpp(smollm2_path: Path) -> None:
    out = io.StringIO()
    script = SCRIPT.replace("from llama_cpp import", "from pywina import")
    with redirect_stdout(out):
        exec(script, {"PATH": str(smollm2_path)})
    printed = out.getvalue()
    assert printed.startswith(EXPECTED)
    chat, streamed, tokens, sampled = printed[len(EXPECTED) :].splitlines()
    content = chat.partition("'content': ")[2].rstrip("}")
    assert chat.startswith("chat.completion {'role': 'assistant'") and content == repr(streamed)
    assert tokens == "[504, 3575, 282, 4649, 314] b'The capital of France is' 2 1 49152 512"
    assert sampled == "5 7042"


def test_numbers_of_llama_cpp(smol: Llama) -> None:
    reply = smol("The capital of France is", max_tokens=3, temperature=0.0, logprobs=2)
    probabilities = reply["choices"][0]["logprobs"]
    assert np.allclose(
        probabilities["token_logprobs"], [-0.2644193, -0.37622768, -1.0251112], atol=0.05
    )
    assert probabilities["top_logprobs"][0][" the"] == pytest.approx(-2.8043325, abs=0.1)
    assert smol.token_nl() == 198
    assert smol.tokenize(b"Hello <|im_end|>", special=True) == [19556, 216, 2]
    generated = smol.generate(smol.tokenize(b"The capital of France is"), temp=0.0)
    assert [next(generated) for _ in range(5)] == [7042, 30, 198, 198, 504]
    vectors, count = smol.embed(["Hello world"], return_count=True)
    assert count == 2 and np.shape(vectors) == (1, 2, 576)
    ours, theirs = vectors[0][-1][:4], [-0.96633136, 0.52794152, -0.42713195, 0.41682181]
    assert np.allclose(ours, theirs, atol=0.1)


def test_echo_has_the_prompt_and_its_probabilities(llm: Llama) -> None:
    text, n = "the sea", len(llm.tokenize(b"the sea"))
    reply = llm(text, echo=True, logprobs=3, **GREEDY)["choices"][0]
    assert reply["text"].startswith(text)
    logprobs = reply["logprobs"]
    assert len(logprobs["tokens"]) == n + 6 and logprobs["text_offset"][0] == 0
    assert logprobs["token_logprobs"][0] is None and logprobs["top_logprobs"][0] is None
    tokens = llm.tokenize(text.encode())
    rows = llm.logits_to_logprobs(llm.model.logits(tokens))
    wanted = [float(rows[i, token]) for i, token in enumerate(tokens[1:])]
    assert np.allclose(logprobs["token_logprobs"][1:n], wanted, atol=1e-4)
    plain = llm(text, logprobs=3, **GREEDY)["choices"][0]
    assert reply["text"] == text + plain["text"]
    assert logprobs["token_logprobs"][n:] == plain["logprobs"]["token_logprobs"]
    assert logprobs["text_offset"][n:] == plain["logprobs"]["text_offset"]
    chunks = list(llm(text, echo=True, logprobs=3, stream=True, **GREEDY))
    assert [
        p for c in chunks[:-1] for p in c["choices"][0]["logprobs"]["token_logprobs"]
    ] == logprobs["token_logprobs"]  # fmt: skip


def test_eval_and_sample(llm: Llama) -> None:
    tokens = llm.tokenize(b"the sea and the land")
    wanted = llm.model.logits(tokens)
    llm.eval(tokens[:3])
    llm("something else", max_tokens=4)  # the context is somebody else's meanwhile
    llm.eval(tokens[3:])
    assert llm.n_tokens == len(tokens) and llm.input_ids.tolist() == tokens
    assert np.array_equal(llm.scores, wanted)
    assert llm.sample(temp=0.0) == int(wanted[-1].argmax())
    assert llm.sample(temp=0.0, idx=1) == int(wanted[1].argmax())
    assert llm.sample(temp=1.0) == llm.sample(temp=1.0)  # the class's seed
    llm.n_tokens = 2
    llm.eval(tokens[2:])
    assert np.array_equal(llm.scores, wanted)
    with pytest.raises(pywina.ContextError):
        llm.eval([1] * 200)
    llm.reset()
    assert llm.n_tokens == 0
    with pytest.raises(pywina.StateError, match="nothing"):
        llm.sample()


def test_sparse_steps_are_those_of_a_stream(tiny_model: Path) -> None:
    with Llama(str(tiny_model), n_ctx=64, sparsity=0.5) as llm:
        tokens = llm.tokenize(b"the sea")
        stream = llm.model.stream(tokens, temperature=0, max_tokens=8, ignore_eog=True)
        wanted = [chunk.token for chunk in stream]
        generated = llm.generate(tokens, temp=0.0)
        first = [next(generated) for _ in range(4)]
        llm("another prompt", max_tokens=3)
        assert first + [next(generated) for _ in range(4)] == wanted
        with pytest.raises(pywina.StateError, match="sparsely"):
            llm.save_state()


def test_tokens_can_be_sent_into_a_generation(llm: Llama) -> None:
    tokens = llm.tokenize(b"the sea")
    generated = llm.generate(tokens, temp=0.0)
    first = next(generated)
    second = generated.send([5, 6])
    assert second == int(llm.model.logits([*tokens, first, 5, 6])[-1].argmax())


def test_state(llm: Llama, tiny_model: Path, write_model: Any) -> None:
    tokens = llm.tokenize(b"the sea and the land")
    llm.eval(tokens)
    state = pickle.loads(pickle.dumps(llm.save_state()))
    assert state.n_tokens == len(tokens) and state.llama_state_size == len(state.llama_state)
    best = llm.sample(temp=0.0)
    llm.eval([7])
    after = llm.scores[-1].copy()
    llm.load_state(state)
    assert llm.n_tokens == len(tokens) and llm.sample(temp=0.0) == best
    with Llama(str(tiny_model), n_ctx=128) as other:
        other.load_state(state)
        other.eval([7])
        assert np.array_equal(other._steps.logits, after)
    with Llama(str(write_model(seed=9)), n_ctx=128) as foreign, pytest.raises(pywina.FormatError):
        foreign.load_state(state)


def test_processors_and_criteria(llm: Llama) -> None:
    seen: list[int] = []

    def forbid(tokens: Any, scores: Any) -> Any:
        seen.append(len(tokens))
        scores[:100] = -np.inf
        return scores

    n = len(llm.tokenize(b"the sea"))
    llm(
        "the sea",
        logits_processor=LogitsProcessorList([forbid]),
        logit_bias={"101": 50.0},
        **GREEDY,
    )
    assert seen == list(range(n, n + 6))
    full = llm(
        "the sea", logits_processor=[MinTokensLogitsProcessor(99, llm.token_eos())], **GREEDY
    )
    assert full["usage"]["completion_tokens"] == 6
    short = llm(
        "the sea", stopping_criteria=StoppingCriteriaList([lambda ids, _: len(ids) >= n + 2]),
        **GREEDY,
    )  # fmt: skip
    assert short["choices"][0]["finish_reason"] == "stop"
    assert short["usage"]["completion_tokens"] == 2
    assert full["choices"][0]["text"].startswith(short["choices"][0]["text"])


def test_seeds(tiny_model: Path) -> None:
    def texts(seed: int, call: int | None = None) -> list[str]:
        with Llama(str(tiny_model), n_ctx=64, seed=seed) as llm:
            replies = [llm("the", max_tokens=12, temperature=2.0, seed=call) for _ in range(2)]
            return [reply["choices"][0]["text"] for reply in replies]

    assert texts(5) == texts(5) != texts(6)
    assert texts(5)[0] != texts(5)[1]
    assert texts(5, 1) == texts(6, 1) and len(set(texts(5, 1))) == 1


def test_embeddings(tiny_model: Path) -> None:
    for pooling, pick in ((1, lambda x: x.mean(0)), (2, lambda x: x[0]), (3, lambda x: x[-1])):
        with Llama(str(tiny_model), n_ctx=64, embedding=True, pooling_type=pooling) as llm:
            reply = llm.create_embedding(["the sea", "land"])
            assert [item["index"] for item in reply["data"]] == [0, 1]
            tokens = llm.tokenize(b"the sea")
            wanted = pick(llm.model.hidden(tokens).astype(np.float64))
            assert np.allclose(reply["data"][0]["embedding"], wanted, atol=1e-5)
            assert reply["usage"]["prompt_tokens"] == len(tokens) + len(llm.tokenize(b"land"))
            unit = llm.embed("the sea", normalize=True)
            assert np.linalg.norm(unit) == pytest.approx(1, abs=1e-5)
    with Llama(str(tiny_model), n_ctx=64) as llm, pytest.raises(pywina.StateError):
        llm.embed("the sea")


def test_grammars_in_gbnf(smol: Llama) -> None:
    pytest.importorskip("llguidance")
    grammar = LlamaGrammar.from_string('root ::= "yes" | "no" [!?]{2}')
    text = smol("Is it?", grammar=grammar, max_tokens=9, temperature=0.0)["choices"][0]["text"]
    assert text in {"yes", *(f"no{a}{b}" for a in "!?" for b in "!?")}
    schema = json.dumps({"type": "object", "properties": {"a": {"type": "boolean"}},
                         "required": ["a"], "additionalProperties": False})  # fmt: skip
    reply = smol.create_chat_completion(
        [{"role": "user", "content": "Answer"}], grammar=LlamaGrammar.from_json_schema(schema),
        max_tokens=40,
    )  # fmt: skip
    assert set(json.loads(reply["choices"][0]["message"]["content"])) == {"a"}
    with pytest.raises(pywina.ArgumentError):
        smol("x", grammar=LlamaGrammar.from_string("root ::= ("), max_tokens=2)


def test_what_would_change_results_is_refused(tiny_model: Path, llm: Llama) -> None:
    path = str(tiny_model)
    for name, value in (("lora_path", "x"), ("rope_freq_base", 1e4), ("type_k", 2)):
        with pytest.raises(pywina.UnsupportedError, match=name):
            Llama(path, **{name: value})
    with pytest.raises(TypeError, match="n_gqa"):
        Llama(path, n_gqa=8)
    with pytest.raises(pywina.UnsupportedError, match="llama-2"):
        Llama(path, chat_format="llama-2")
    for options in ({"tfs_z": 0.5}, {"suffix": "x"}):
        with pytest.raises(pywina.UnsupportedError):
            llm("the", **options)
    with pytest.raises(pywina.UnsupportedError, match="tools"):
        llm.create_chat_completion([{"role": "user", "content": "x"}], functions=[{}])
    with pytest.warns(RuntimeWarning, match="trained for 512"), Llama(path, n_ctx=4096) as long:
        assert long.n_ctx() == 512


def test_what_only_says_how_is_accepted(tiny_model: Path, llm: Llama) -> None:
    with Llama(
        str(tiny_model), n_ctx=0, use_mmap=False, flash_attn=True, n_gpu_layers=-1, numa=True,
        chat_format="chatml", seed=3,
    ) as other:  # fmt: skip
        other.set_cache(LlamaRAMCache())
        assert other.n_ctx() == 512
        messages = [{"role": "user", "content": "the sea"}]
        ours, theirs = (m.create_chat_completion(messages, **GREEDY) for m in (llm, other))
        assert ours["choices"] == theirs["choices"]  # the tiny model's own template is chatml
        copy = pickle.loads(pickle.dumps(other))
        assert copy("the", **GREEDY)["choices"] == other("the", **GREEDY)["choices"]
        copy.close()


GOLDEN = json.loads((ROOT / "tests" / "golden" / "llama.json").read_text("utf-8"))
#: what ours has beyond llama-cpp-python's; all else is alike
MORE = {"usage", "pywina", "content"}


def check_shape(theirs: Any, ours: Any, path: str) -> None:
    if isinstance(theirs, dict):
        assert isinstance(ours, dict) and set(theirs) <= set(ours), (path, theirs, ours)
        assert set(ours) - set(theirs) <= MORE, (path, set(ours) - set(theirs))
        for name, value in theirs.items():
            check_shape(value, ours[name], f"{path}.{name}")
    elif isinstance(theirs, list):
        assert isinstance(ours, list) and len(theirs) == len(ours), (path, theirs, ours)
        for i, value in enumerate(theirs):
            check_shape(value, ours[i], f"{path}[{i}]")
    elif path.endswith(".bytes"):
        assert (theirs, ours) == ("NoneType", ["int"])  # OpenAI's form has the bytes
    else:
        assert theirs == ours, path


def test_shapes_are_those_of_llama_cpp(smol: Llama, smollm2_path: Path) -> None:
    """Keys, types, nesting, roles, finish reasons and the order of chunks of 40 calls."""
    seen = {}
    for name, call in golden.calls(smol):
        seen[name] = golden.shape(call(), name)
        theirs = GOLDEN["shapes"][name]
        if name == "stream, stop at once":  # theirs has a chunk without a text more
            assert theirs[0]["choices"][0]["finish_reason"] is None
            theirs = theirs[1:]
        check_shape(theirs, seen[name], name)
    assert seen.keys() == GOLDEN["shapes"].keys() and len(seen) >= 40

    def make(**options: Any) -> Llama:
        return Llama(**{"model_path": str(smollm2_path), "n_ctx": 64} | options)

    for name, call in golden.failures(smol, make):
        assert set(GOLDEN["errors"][name]) <= set(golden.error_of(call)) != set(), name
