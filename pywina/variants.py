"""Generation in other ways: for programs that use asyncio, and over many prompts.

:class:`Variants` is the part of :class:`pywina.Model` that does this.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence
from typing import TYPE_CHECKING, Unpack

from . import _values
from .batch import generate_together
from .errors import ArgumentError
from .generation import Chunk
from .params import GenerateOptions

if TYPE_CHECKING:
    from .model import Model


class Variants:
    """Mixed into :class:`pywina.Model`."""

    async def astream(
        self: Model,
        prompt: str | Sequence[int],
        **options: Unpack[GenerateOptions],
    ) -> AsyncIterator[Chunk]:
        """:meth:`stream` for ``async for``: the event loop goes on while a piece is computed, in a
        thread. Cancelling the task stops the computation, a prompt's too."""
        stream = self.stream(prompt, **options)
        loop = asyncio.get_running_loop()
        try:
            while True:
                pending = loop.run_in_executor(None, next, stream, None)
                try:
                    chunk = await asyncio.shield(pending)
                except asyncio.CancelledError:
                    stream.cancel()
                    with contextlib.suppress(Exception):
                        await pending
                    raise
                if chunk is None:
                    return
                yield chunk
        finally:
            stream.close()

    def generate_batch(
        self: Model,
        prompts: Sequence[str | Sequence[int]],
        *,
        batch_size: int = 16,
        **options: Unpack[GenerateOptions],
    ) -> list[str]:
        """The answers to prompts, in their order; each is what ``generate`` gives for its prompt.

        Up to batch_size answers are made at the same time, and what they read of the weights is
        read once for all; each has a KV cache of its own meanwhile. What prompts have in common at
        their beginning (instructions, examples, a document) is evaluated once. On a GPU answers are
        made one after the other. All prompts are checked before the first one is evaluated.
        """
        _values.integer("batch_size", batch_size, 1, 1024)
        if isinstance(prompts, (str, bytes)):
            raise ArgumentError("prompts is one text; give a list of prompts")
        tokens = [self._prompt_tokens(prompt) for prompt in prompts]
        answers = [""] * len(tokens)
        with self._handle.run():
            if self.info.backend == "cpu" and min(batch_size, len(tokens)) > 1:
                return generate_together(self, tokens, options, batch_size)
            for i in sorted(range(len(tokens)), key=lambda i: tokens[i]):
                answers[i] = self.generate(tokens[i], **options)
        return answers
