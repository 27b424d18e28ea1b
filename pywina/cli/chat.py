"""pywina chat: a conversation on the terminal, with commands that begin with a slash."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path

from .._replace import replacing
from ..errors import ArgumentError, ContextError, FileError, TemplateError, WinaError
from ..generation import Stream, Timings
from ..model import Model
from .common import (
    announce,
    generate_options,
    load_model,
    note,
    pieces,
    prompt_of,
    read_text,
    summary,
)
from .terminal import Answer, Lines, dim

_HELP = """\
/sparsity X   skip this share of the weights' bytes from now on, 0 <= X < 1; 0: dense
/stats        what the last answer took, and how full the context is
/system TEXT  set the system message; without a text: remove it
/clear        forget the conversation, but not the system message (also /new)
/save FILE    write the conversation to a file, as JSON
/load FILE    go on with a saved conversation
/help         this list
/exit         end (also /quit, Ctrl-D)
A line that ends in a backslash goes on in the next one; so does text between \"\"\" and \"\"\".
A message that begins with a slash is written with two. Ctrl-C stops an answer."""

_ROLES = ("system", "user", "assistant")


def _say(text: str) -> None:
    sys.stdout.flush()
    print(dim(text), file=sys.stderr, flush=True)


def check_messages(value: object) -> list[dict[str, str]]:
    """Messages as /save writes them; FileError if value is something else."""
    messages = value.get("messages") if isinstance(value, dict) else value
    if not isinstance(messages, list):
        raise FileError("it holds no conversation: a list of messages is missing")
    for message in messages:
        if (
            not isinstance(message, dict)
            or message.get("role") not in _ROLES
            or not isinstance(message.get("content"), str)
        ):
            raise FileError("it holds no conversation: a message has no role or no content")
    return [{"role": m["role"], "content": m["content"]} for m in messages]


class Conversation:
    """The messages so far, the sparsity in force, and what commands do with them."""

    def __init__(self, model: Model, args: argparse.Namespace, *, interactive: bool) -> None:
        self.model, self.args, self.interactive = model, args, interactive
        self.messages: list[dict[str, str]] = []
        self.sparsity = model.sparsity
        self.timings: Timings | None = None
        self.done = False
        if args.system:
            self.set_system(args.system)

    # ---- commands ----------------------------------------------------------------------------

    def command(self, line: str) -> None:
        """Does what a line such as ``/save FILE`` says."""
        name, _, rest = line[1:].partition(" ")
        if name not in COMMANDS:
            _say(f"there is no command /{name}; /help lists them, // begins a message with a slash")
            return
        try:
            COMMANDS[name](self, rest.strip())
        except WinaError as error:
            _say(f"/{name}: {error}")

    def set_sparsity(self, text: str) -> None:
        if text:
            try:
                number = float(text)
            except ValueError as error:
                raise ArgumentError(f"{text!r} is no number") from error
            self.sparsity = self.sparsity.replace(sparsity=number)
        _say(f"sparsity {self.sparsity.sparsity:g}: {self.model.describe_rule(self.sparsity)}")

    def show_stats(self) -> None:
        _say("no answer yet" if self.timings is None else summary(self.timings))
        used = len(self.model.chat_tokens(self.messages)) if self.messages else 0
        _say(f"{used} of {self.model.info.n_ctx} tokens of context used, "
             f"{len(self.messages)} messages, sparsity {self.sparsity.sparsity:g}")  # fmt: skip

    def set_system(self, text: str) -> None:
        self.messages = [m for m in self.messages if m["role"] != "system"]
        if text:
            self.messages.insert(0, {"role": "system", "content": text})

    def change_system(self, text: str) -> None:
        self.set_system(text)
        _say("the system message is set" if text else "there is no system message now")

    def clear(self) -> None:
        self.messages = [m for m in self.messages if m["role"] == "system"]
        self.timings = None
        _say("the conversation is forgotten")

    def end(self) -> None:
        self.done = True

    def save(self, name: str) -> None:
        path = self._path(name)
        text = json.dumps(
            {
                "model": Path(self.model.path).name,
                "sparsity": self.sparsity.sparsity,
                "messages": self.messages,
            },
            ensure_ascii=False,
            indent=1,
        )
        if os.path.exists(path) and not os.path.isfile(path):
            raise ArgumentError(f"{path} is no file")
        with replacing(path) as file:
            file.write(text.encode("utf-8") + b"\n")
        _say(f"{len(self.messages)} messages written to {path}")

    def load(self, name: str) -> None:
        path = self._path(name)
        try:
            messages = check_messages(json.loads(read_text(path)))
        except ValueError as error:
            raise FileError(f"{path} holds no JSON: {error}") from error
        except RecursionError as error:
            raise FileError(f"{path} holds no conversation") from error
        self.messages, self.timings = messages, None
        _say(f"{len(messages)} messages read from {path}")

    @staticmethod
    def _path(name: str) -> Path:
        if not name or "\0" in name:
            raise ArgumentError("give the name of a file")
        try:
            return Path(name).expanduser()
        except RuntimeError as error:
            raise ArgumentError(str(error)) from error

    # ---- answers -----------------------------------------------------------------------------

    def _so_far(self, stream: Stream | None) -> Timings | None:
        """What an answer took that was stopped."""
        if stream is None or not stream.tokens:
            return None
        stats = self.model.stats
        return Timings(
            load_s=self.model.load_s,
            prefill_s=stats.prefill_s,
            decode_s=stats.decode_s,
            total_s=stats.prefill_s + stats.decode_s,
            prompt_tokens=len(stream.prompt),
            tokens=len(stream.tokens),
            prefill_tok_s=stats.n_prefill / (stats.prefill_s or 1),
            decode_tok_s=stats.n_decode / (stats.decode_s or 1),
            kept_fraction=stats.kept_fraction,
        )

    def ask(self, text: str) -> None:
        """Sends a message and prints the answer; what Ctrl-C leaves of one is kept."""
        asked = [*self.messages, {"role": "user", "content": text}]
        options = generate_options(self.args)
        options["sparsity"] = self.sparsity
        parts: list[str] = []
        answer = Answer(markdown=not self.args.no_markdown)
        stream: Stream | None = None
        try:
            with self.model.chat(asked, stream=True, **options) as stream:
                for chunk in pieces(stream):
                    parts.append(chunk.text)
                    answer.write(chunk.text)
            self.timings = stream.timings
            answer.end()
            if sys.stderr.isatty() and stream.timings is not None:
                _say(f"[{summary(stream.timings)}]")
            if stream.finish_reason == "context":
                _say("the context is full; /clear starts over, -c N gives more room")
        except KeyboardInterrupt:
            if not self.interactive:
                raise
            answer.end()
            _say("[stopped]")
            self.timings = self._so_far(stream)
            if not "".join(parts).strip():
                return
        except (ContextError, TemplateError) as error:
            note(f"{error}; /clear starts over")
            return
        self.messages = [*asked, {"role": "assistant", "content": "".join(parts)}]


#: name: what it does with the rest of the line
COMMANDS: dict[str, Callable[[Conversation, str], None]] = {
    "help": lambda talk, _: _say(_HELP),
    "sparsity": Conversation.set_sparsity,
    "stats": lambda talk, _: talk.show_stats(),
    "system": Conversation.change_system,
    "clear": lambda talk, _: talk.clear(),
    "new": lambda talk, _: talk.clear(),
    "save": Conversation.save,
    "load": Conversation.load,
    "exit": lambda talk, _: talk.end(),
    "quit": lambda talk, _: talk.end(),
}


def _turn(lines: Lines, conversation: Conversation) -> None:
    """Reads one line and does what it asks for."""
    line = lines.read()
    if line.startswith("//"):
        conversation.ask(line[1:])
    elif line.startswith("/"):
        conversation.command(line)
    elif line:
        conversation.ask(line)


def main(args: argparse.Namespace) -> int:
    first = prompt_of(args)
    lines = Lines()
    with load_model(args) as model:
        if model.chat_template is None:
            raise TemplateError(f"{model.path} has no chat template; `pywina run` continues a text")
        announce(model)
        conversation = Conversation(model, args, interactive=lines.interactive)
        if lines.interactive:
            _say("/help lists the commands; Ctrl-C stops an answer, Ctrl-D ends the conversation.")
        try:
            if first:
                conversation.ask(first)
            while not conversation.done:
                try:
                    _turn(lines, conversation)
                except KeyboardInterrupt:
                    if not lines.interactive:
                        raise
                    print(file=sys.stderr)
                    _say("Ctrl-D or /exit ends the conversation.")
        except EOFError:
            if lines.interactive:
                print(file=sys.stderr)
        finally:
            lines.close()
    return 0
