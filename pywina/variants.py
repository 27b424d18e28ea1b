"""Generation in other ways: for programs that use asyncio, and over many prompts.

:class:`Variants` is the part of :class:`pywina.Model` that does this.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence
from typing import TYPE_CHECKING, Unpack

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
        **options: Unpack[GenerateOptions],
    ) -> list[str]:
        """The answers to prompts, in their order; each is what ``generate`` gives for its prompt.

        Prompts run one after the other, sorted so that what they have in common at their beginning
        (instructions, examples, a document) is evaluated once. All are checked before the first.
        """
        if isinstance(prompts, (str, bytes)):
            raise ArgumentError("prompts is one text; give a list of prompts")
        tokens = [self._prompt_tokens(prompt) for prompt in prompts]
        answers = [""] * len(tokens)
        with self._handle.run():
            for i in sorted(range(len(tokens)), key=lambda i: tokens[i]):
                answers[i] = self.generate(tokens[i], **options)
        return answers
