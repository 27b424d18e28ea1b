"""asyncio, batches of prompts, and models from the hub (which is played by functions here)."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path
from typing import Any

import huggingface_hub
import huggingface_hub.constants
import pytest
from huggingface_hub.errors import LocalEntryNotFoundError, RepositoryNotFoundError

import pywina
from pywina._native import lib
from pywina.hub.pretrained import choose_file

OPTIONS: dict[str, Any] = {"max_tokens": 12, "seed": 4, "ignore_eog": True}


def test_async_pieces_are_those_of_a_stream(tiny: pywina.Model) -> None:
    async def read() -> tuple[list[int | None], set[int]]:
        tokens, threads = [], set()
        async for chunk in tiny.astream("the sea", **OPTIONS):
            tokens.append(chunk.token)
            threads.add(threading.get_ident())
        return tokens, threads

    tokens, threads = asyncio.run(read())
    assert tokens == [chunk.token for chunk in tiny.stream("the sea", **OPTIONS)]
    assert threads == {threading.get_ident()}


def test_a_cancelled_task_stops_a_prompt(write_model: Any) -> None:
    path = write_model(n_embd=256, n_layer=8, n_ff=1024, n_ctx=4096)
    with pywina.load(path, n_threads=1) as model:

        async def read() -> None:
            async for _ in model.astream([5] * 4000, **OPTIONS):
                pass

        async def cancelled() -> None:
            task = asyncio.create_task(read())
            await asyncio.sleep(0.05)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task

        asyncio.run(cancelled())
        with model._handle.run() as session:
            assert lib.wina_session_n_past(session) < 4000
        assert model.generate("the sea", **OPTIONS)  # free again


def test_leaving_an_async_loop_frees_the_model(tiny: pywina.Model) -> None:
    async def first() -> str:
        stream = tiny.astream("the sea", **OPTIONS)
        async for chunk in stream:
            await stream.aclose()
            return chunk.text
        return ""

    asyncio.run(first())
    assert tiny.generate("the sea", **OPTIONS)


def test_errors_reach_the_async_reader(tiny: pywina.Model) -> None:
    async def read() -> None:
        async for _ in tiny.astream([1] * 600):
            pass

    with pytest.raises(pywina.ContextError):
        asyncio.run(read())


def test_a_batch_gives_the_single_answers(tiny: pywina.Model) -> None:
    start = "the sea and the land and the rain " * 8
    prompts: list[Any] = [start + "in", "of", start + "on", tiny.tokenize("to the"), start, "of"]
    for options in ({}, {"temperature": 0.0}, {"sparsity": 0.5}, {"stop": ["e"]}):
        wanted = [tiny.generate(prompt, **OPTIONS, **options) for prompt in prompts]
        assert tiny.generate_batch(prompts, **OPTIONS, **options) == wanted
        assert tiny.generate_batch(prompts, batch_size=2, **OPTIONS, **options) == wanted
        assert pywina.generate_batch(tiny, prompts, **OPTIONS, **options) == wanted
    assert tiny.generate_batch([]) == []
    with pytest.raises(pywina.ArgumentError, match="list"):
        tiny.generate_batch("the sea")
    with pytest.raises(pywina.ArgumentError, match="batch_size"):
        tiny.generate_batch(["the sea"], batch_size=0)
    with pytest.raises(pywina.ArgumentError, match="empty"):
        tiny.generate_batch(["the sea", ""])


def test_a_batch_evaluates_what_prompts_share_once(tiny: pywina.Model) -> None:
    start = tiny.tokenize("the sea and the land and the rain " * 10)
    evaluated = 0
    original = tiny._begin_prompt

    def count(session: Any, prompt: list[int], sparsity: Any, **options: Any) -> int:
        nonlocal evaluated
        held = original(session, prompt, sparsity, **options)
        evaluated += len(prompt) - held
        return held

    tiny._begin_prompt = count  # type: ignore[method-assign]
    if tiny.info.backend != "cpu":
        pytest.skip("on a GPU nothing is used again")
    tiny.generate_batch([[*start, i] for i in range(20, 30)], **OPTIONS)
    assert evaluated == len(start) + 10


def test_a_failing_batch_leaves_the_model_usable(tiny: pywina.Model) -> None:
    def fail(tokens: Any, logits: Any) -> Any:
        if len(tokens) > 8:
            raise ValueError("enough")
        return logits

    wanted = tiny.generate("the sea", **OPTIONS)
    with pytest.raises(ValueError, match="enough"):
        tiny.generate_batch(["the sea"] * 5, logits_processors=fail, max_tokens=20, seed=1)
    with pytest.raises(pywina.ContextError):
        tiny.generate_batch(["the sea", [5] * 600], **OPTIONS)
    assert tiny.generate_batch(["the sea"] * 3, **OPTIONS) == [wanted] * 3


NAMES = ["README.md", "sub/m-Q4_K_M.gguf", "m-Q4_0.gguf", "m-Q8_0.gguf"]


def test_a_pattern_matches_one_file() -> None:
    assert choose_file("a/b", NAMES, "*Q4_K_M.gguf") == "sub/m-Q4_K_M.gguf"
    assert choose_file("a/b", NAMES, "*q8_0*") == "m-Q8_0.gguf"
    assert choose_file("a/b", NAMES, "m-Q4_0.gguf") == "m-Q4_0.gguf"
    assert choose_file("a/b", NAMES[:2], None) == "sub/m-Q4_K_M.gguf"
    with pytest.raises(pywina.ArgumentError, match=r"2 files of a/b match .*m-Q4_0.gguf"):
        choose_file("a/b", NAMES, "*Q4*")
    with pytest.raises(pywina.ModelNotFoundError, match=r"no file of a/b matches .*m-Q8_0.gguf"):
        choose_file("a/b", NAMES, "*Q5*")
    with pytest.raises(pywina.ModelNotFoundError, match="no GGUF files"):
        choose_file("a/b", ["README.md"], None)


class Hub:
    """Stands for the hub: lists NAMES, and has one file."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, path: Path) -> None:
        self.calls: list[dict[str, Any]] = []
        self.path, self.failure = path, None
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(huggingface_hub.HfApi, "list_repo_files", self.list)
        monkeypatch.setattr(huggingface_hub, "hf_hub_download", self.download)

    def list(self, repo_id: str, **options: Any) -> list[str]:
        if self.failure is not None:
            raise self.failure
        return NAMES

    def download(self, repo_id: str, filename: str, **options: Any) -> str:
        self.calls.append({"repo_id": repo_id, "filename": filename, **options})
        return str(self.path)


def test_from_pretrained(monkeypatch: pytest.MonkeyPatch, tiny_model: Path) -> None:
    hub = Hub(monkeypatch, tiny_model)
    with pywina.Model.from_pretrained(
        "a/b", "*Q4_K_M.gguf", token="secret", revision="v1", n_ctx=64, sparsity=0.3
    ) as model:
        assert model.info.n_ctx == 64 and model.sparsity.sparsity == 0.3
    (call,) = hub.calls
    assert call["filename"] == "sub/m-Q4_K_M.gguf" and call["repo_id"] == "a/b"
    assert call["token"] == "secret" and call["revision"] == "v1"
    assert call["local_files_only"] is False
    with pywina.Llama.from_pretrained(repo_id="a/b", filename="*Q8_0.gguf", n_ctx=64) as llm:
        assert llm.n_ctx() == 64
    with pytest.raises(pywina.ArgumentError, match="3 files"):
        pywina.Model.from_pretrained("a/b")


def test_without_the_hub(monkeypatch: pytest.MonkeyPatch, tiny_model: Path, tmp_path: Path) -> None:
    hub = Hub(monkeypatch, tiny_model)
    hub.failure = ConnectionError("no route")
    snapshot = tmp_path / "snapshot"
    (snapshot / "sub").mkdir(parents=True)
    (snapshot / "sub" / "m-Q4_K_M.gguf").symlink_to(tiny_model)

    def cached(repo_id: str, **options: Any) -> str:
        assert options["local_files_only"]
        if repo_id != "a/b":
            raise LocalEntryNotFoundError("not here")
        return str(snapshot)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", cached)
    with pywina.Model.from_pretrained("a/b", "*Q4_K_M.gguf", n_ctx=64):
        assert hub.calls[-1]["local_files_only"] is True
    with pytest.raises(pywina.FetchError, match=r"not in the cache.*no route"):
        pywina.Model.from_pretrained("c/d", "*Q4_K_M.gguf")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pywina.Model.from_pretrained("a/b", n_ctx=64):
        assert hub.calls[-1]["local_files_only"] is True
    with pytest.raises(pywina.FetchError, match="HF_HUB_OFFLINE"):
        pywina.Model.from_pretrained("c/d")


def test_answers_of_the_hub(monkeypatch: pytest.MonkeyPatch, tiny_model: Path) -> None:
    hub = Hub(monkeypatch, tiny_model)
    missing = RepositoryNotFoundError.__new__(RepositoryNotFoundError)
    Exception.__init__(missing, "404")
    hub.failure = missing
    with pytest.raises(pywina.ModelNotFoundError, match="no repository a/b"):
        pywina.Model.from_pretrained("a/b", "*.gguf")
    monkeypatch.undo()
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(pywina.ArgumentError, match="not the id"):
        pywina.Model.from_pretrained("a/b/c", "*.gguf")
