"""A plug-in for simonw's ``llm``: the models of this machine, with the sparsity as an option.

    llm install pywina
    llm -m pywina/smollm2-135m "Why is the sky blue?" -o sparsity 0.4

``llm`` finds it through the entry point in pyproject.toml. There are ``pywina/NAME`` for known
models, which are fetched on first use, ``pywina/OWNER/REPO/FILE`` for GGUF files in the cache of
the hub, and ``pywina`` for what ``$PYWINA_MODEL`` names. The model asked last stays loaded.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterable, Iterator
from typing import Any, cast

import llm
from llm.models import EmbeddingModel
from llm.parts import TextPart
from pydantic import Field

from .api import load
from .errors import ContextError, WinaError
from .hub.catalog import CATALOG
from .hub.pretrained import cached_models
from .model import Model as WinaModel
from .params import GenerateOptions, Params

_loaded: dict[str, WinaModel] = {}


def _model(source: str) -> WinaModel:
    """The model of a path or a known name; one at a time is kept."""
    if source not in _loaded:
        while _loaded:
            _loaded.popitem()[1].close()
        _loaded[source] = load(source)
    return _loaded[source]


def sources() -> dict[str, str]:
    """What stands behind every model id: a path or a known name."""
    found = {f"pywina/{known.name}": known.name for known in CATALOG.values()}
    for repo_id, path in cached_models():
        found[f"pywina/{repo_id}/{path.name}"] = str(path)
    chosen = os.environ.get("PYWINA_MODEL")
    return found | ({"pywina": chosen} if chosen else {})


def _messages(prompt: llm.Prompt) -> list[dict[str, str]]:
    """The conversation as the chat template takes it. Parts that are no text do not come here:
    llm refuses attachments and tools for a model that does not say it has them."""
    found = []
    for message in prompt.messages:
        texts = [part.text for part in message.parts if isinstance(part, TextPart)]
        found.append({"role": message.role, "content": "\n".join(texts)})
    return found


class Pywina(llm.Model):
    """A GGUF file, as llm sees it. Without a chat template it continues the last message."""

    can_stream = True
    supports_schema = importlib.util.find_spec("llguidance") is not None

    class Options(llm.Options):
        """The options of `llm -o`."""

        sparsity: float | None = Field(
            None, ge=0, lt=1, description="share of the weights' bytes that is skipped"
        )
        max_tokens: int | None = Field(
            None, ge=1, description="length of the answer; default: what the context has room for"
        )
        temperature: float = Field(Params.temperature, ge=0, description="0: the likeliest token")
        top_k: int = Field(Params.top_k, description="0: all")
        top_p: float = Field(Params.top_p, description="1: all")
        min_p: float = Field(Params.min_p, description="0: all")
        repeat_penalty: float = Field(Params.repeat_penalty, description="1: none")
        seed: int | None = Field(None, ge=0, description="the same seed gives the same answer")
        stop: str | None = Field(None, description="a text that ends the answer")

    def __init__(self, model_id: str, source: str) -> None:
        self.model_id, self._source = model_id, source

    def execute(
        self,
        prompt: llm.Prompt,
        stream: bool,
        response: llm.Response,
        conversation: llm.Conversation | None,
    ) -> Iterator[str]:
        """Yields the pieces of an answer. llm shows a ModelError in one line."""
        try:
            yield from self._answer(_model(self._source), prompt, response)
        except ContextError as error:
            raise llm.ModelError(f"{error}; begin a new conversation") from error
        except WinaError as error:
            raise llm.ModelError(str(error)) from error

    def _answer(
        self, model: WinaModel, prompt: llm.Prompt, response: llm.Response
    ) -> Iterator[str]:
        options = cast(GenerateOptions, prompt.options.model_dump())
        messages = _messages(prompt)
        if model.chat_template is not None:
            tokens = model.chat_tokens(messages)
        else:
            tokens = model.tokenize(messages[-1]["content"])
        if isinstance(prompt.schema, dict):
            from .grammar import Grammar

            grammar = Grammar.from_json_schema(prompt.schema)
            options["logits_processors"] = [grammar.processor(model, len(tokens))]
        with model.stream(tokens, **options) as pieces:
            for chunk in pieces:
                yield chunk.text
        timings = pieces.timings
        if timings is None:
            return
        response.set_usage(input=timings.prompt_tokens, output=timings.tokens)
        response.response_json = {
            "finish_reason": pieces.finish_reason,
            "decode_tok_s": timings.decode_tok_s,
            "kept_fraction": timings.kept_fraction,
        }


class PywinaEmbedding(EmbeddingModel):
    """Mean of the last hidden states, of length 1."""

    def __init__(self, model_id: str, source: str) -> None:
        self.model_id, self._source = model_id, source

    def embed_batch(
        self, items: Iterable[str | bytes], *, key: str | None = None
    ) -> Iterator[list[float]]:
        model = _model(self._source)
        for item in items:
            text = item.decode("utf-8", "replace") if isinstance(item, bytes) else item
            yield model.embed(text).tolist()


@llm.hookimpl
def register_models(register: Any) -> None:
    for model_id, source in sources().items():
        register(Pywina(model_id, source))


@llm.hookimpl
def register_embedding_models(register: Any) -> None:
    for model_id, source in sources().items():
        register(PywinaEmbedding(model_id, source))
