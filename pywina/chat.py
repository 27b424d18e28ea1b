"""Chat templates: messages to prompt tokens.

The template is code from a file that nobody vouches for, so it runs in jinja2's immutable sandbox.
What people type is not trusted either: text in messages never becomes a control token. Before
rendering, every control token's text inside a message is broken by a private mark (a character
that occurs nowhere else); control tokens are then recognised in the rendered text only where they
stand unbroken, that is, where the template itself wrote them; then the mark is removed. Text
without control tokens goes through untouched, so the tokens are those of the reference.
"""

from __future__ import annotations

import datetime
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jinja2
import jinja2.ext
import jinja2.nodes
import jinja2.parser
import jinja2.sandbox

from .errors import ArgumentError, TemplateError

Message = Mapping[str, Any]

MAX_PROMPT_CHARS = 16 << 20
_ROLE = re.compile(r"\w[\w .-]*")


def _tojson(value: Any, indent: int | None = None, **options: Any) -> str:
    """JSON as it is written in prompts: not escaped for HTML, not only ASCII."""
    return json.dumps(value, ensure_ascii=False, indent=indent, **options)


def _raise_exception(text: str) -> None:
    raise TemplateError(f"the chat template refused the messages: {text}")


def _strftime_now(form: str) -> str:
    return datetime.datetime.now().strftime(form)


class _Generation(jinja2.ext.Extension):
    """``{% generation %}``, by which templates mark what a model is trained on: rendered as is."""

    tags = {"generation"}  # noqa: RUF012  (jinja2 declares it so)

    def parse(self, parser: jinja2.parser.Parser) -> list[jinja2.nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _environment() -> jinja2.sandbox.ImmutableSandboxedEnvironment:
    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[jinja2.ext.loopcontrols, _Generation]
    )
    environment.filters["tojson"] = _tojson
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = _strftime_now
    return environment


def check_messages(messages: object) -> list[dict[str, Any]]:
    """A copy of messages, if they have the form of a chat. Content that is given as a list of text
    parts becomes one string."""
    if isinstance(messages, (str, bytes, Mapping)) or not isinstance(messages, Sequence):
        raise ArgumentError('messages must be a list such as [{"role": "user", "content": "Hi"}]')
    if not messages:
        raise ArgumentError("messages is empty; give at least one message")
    result = []
    for i, message in enumerate(messages):
        if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
            raise ArgumentError(f'messages[{i}] is not of the form {{"role": ..., "content": ...}}')
        if not _ROLE.fullmatch(message["role"]):
            raise ArgumentError(f"messages[{i}] has the role {message['role']!r}: not a plain word")
        if "content" not in message and "tool_calls" not in message:
            raise ArgumentError(f"messages[{i}] has no content")
        copy = dict(message)
        copy["content"] = _content_text(i, copy.get("content"))
        result.append(copy)
    return result


def _content_text(i: int, content: object) -> str | None:
    if content is None or isinstance(content, str):
        return content
    if isinstance(content, Sequence) and not isinstance(content, bytes):
        texts = [p.get("text") if isinstance(p, Mapping) else None for p in content]
        if all(isinstance(text, str) for text in texts):
            return "".join(texts)  # type: ignore[arg-type]
    raise ArgumentError(f"the content of messages[{i}] is not text")


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from _strings(key)
            yield from _strings(item)
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _strings(item)


def _map_strings(value: Any, change: Callable[[str], str]) -> Any:
    """value with every string in it, keys included, changed; as plain dicts and lists."""
    if isinstance(value, str):
        return change(value)
    if isinstance(value, Mapping):
        return {_map_strings(k, change): _map_strings(v, change) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_map_strings(item, change) for item in value]
    return value


class _Breaker:
    """Puts a mark into every control token of a text, and into what could become one: templates
    strip content and may change its case, so neither matters here."""

    def __init__(self, control: Mapping[str, int]) -> None:
        texts = sorted((text for text in control if text), key=len, reverse=True)
        alternatives = "|".join(map(re.escape, texts)) or r"(?!)"
        self.pattern = re.compile(alternatives)
        self._any_case = re.compile(alternatives, re.IGNORECASE)
        self._lower = [text.lower() for text in texts]
        self._longest = max(map(len, self._lower), default=0)
        self._starts = {text[:n] for text in self._lower for n in range(1, len(text))}
        self._ends = {text[n:] for text in self._lower for n in range(1, len(text))}

    def inside(self, text: str, mark: str) -> str:
        """Breaks whole control tokens, overlapping ones too."""
        parts, start = [], 0
        while match := self._any_case.search(text, start):
            cut = match.start() + 1
            parts += [text[start:cut], mark]
            start = cut
        return "".join(parts) + text[start:]

    def content(self, text: str, mark: str) -> str:
        """Breaks also what only the text before or after would complete: "<|im_" at the end of
        one message and "end|>" at the start of the next."""
        core = text.strip()
        if not core:
            return text
        begin = text.index(core)
        edges = core.lower()
        sizes = range(1, min(self._longest, len(edges)) + 1)
        after = any(edges[-n:] in self._starts for n in sizes)
        before = any(edges[:n] in self._ends for n in sizes) or (
            len(edges) < self._longest and any(edges in control for control in self._lower)
        )
        broken = self.inside(core, mark)
        return (
            text[:begin]
            + (mark if before else "")
            + broken
            + (mark if after else "")
            + text[begin + len(core) :]
        )


def _private_mark(strings: Sequence[str]) -> str:
    """A private-use character that occurs in none of the strings."""
    used = set().union(*strings)
    for code in range(0xF0000, 0xFFFFE):
        if chr(code) not in used:
            return chr(code)
    raise ArgumentError("the messages use every private-use character there is")


class ChatTemplate:
    """A compiled template and the control tokens of its model's vocabulary.

    source: jinja text. control: from the text of each control token to its id.
    """

    def __init__(
        self,
        source: str,
        control: Mapping[str, int],
        *,
        bos_token: str = "",
        eos_token: str = "",
    ) -> None:
        self.source = source
        self._control = dict(control)
        self._breaker = _Breaker(control)
        self._globals = {"bos_token": bos_token, "eos_token": eos_token}
        try:
            self._template = _environment().from_string(source)
        except jinja2.TemplateError as error:
            raise TemplateError(f"the chat template is not valid: {error}") from error

    def _render(self, variables: Mapping[str, Any]) -> str:
        parts, size = [], 0
        try:
            for part in self._template.generate(**self._globals, **variables):
                size += len(part)
                if size > MAX_PROMPT_CHARS:
                    raise TemplateError(
                        f"the chat template wrote more than {MAX_PROMPT_CHARS} characters"
                    )
                parts.append(part)
        except TemplateError:
            raise
        except Exception as error:  # a template can raise anything
            raise TemplateError(f"the chat template failed on these messages: {error}") from error
        return "".join(parts)

    def _render_marked(
        self, messages: object, add_generation_prompt: bool, variables: Mapping[str, Any]
    ) -> tuple[str, str]:
        """Rendered text, in which no control token comes from a message, and its mark."""
        checked = check_messages(messages)
        mark = _private_mark([self.source, *_strings(checked), *_strings(variables)])
        breaker = self._breaker
        safe = []
        for message in checked:
            content = message.pop("content")
            broken = _map_strings(message, lambda text: breaker.inside(text, mark))
            if content is not None:
                content = breaker.content(content, mark)
            safe.append({"content": content, **broken})
        values = _map_strings(dict(variables), lambda text: breaker.inside(text, mark))
        values |= {"messages": safe, "add_generation_prompt": add_generation_prompt}
        return self._render(values), mark

    def render(
        self, messages: object, *, add_generation_prompt: bool = True, **variables: Any
    ) -> str:
        """The prompt as text, to look at. ``encode`` is what may be run: in this text, what was
        typed and what the template wrote can no longer be told apart."""
        text, mark = self._render_marked(messages, add_generation_prompt, variables)
        return text.replace(mark, "")

    def encode(
        self,
        messages: object,
        tokenize: Callable[[str], list[int]],
        *,
        add_generation_prompt: bool = True,
        **variables: Any,
    ) -> list[int]:
        """The prompt as token ids. tokenize: turns plain text into ids, parsing no control tokens.
        variables: further names that the template knows, such as ``tools``."""
        text, mark = self._render_marked(messages, add_generation_prompt, variables)
        tokens: list[int] = []
        start = 0
        for match in self._breaker.pattern.finditer(text):
            if plain := text[start : match.start()].replace(mark, ""):
                tokens += tokenize(plain)
            tokens.append(self._control[match.group()])
            start = match.end()
        if plain := text[start:].replace(mark, ""):
            tokens += tokenize(plain)
        return tokens
