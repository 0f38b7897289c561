"""Chat templates: messages become the text and the ids that a chat model was trained on.

A template is Jinja that a stranger wrote. It runs in Jinja's sandbox: it sees the messages and nothing of Python. The
length of what it writes is bounded; the time and memory that it takes on the way there are not.
"""

from __future__ import annotations

import dataclasses
import datetime
import functools
import json
import re
from pathlib import Path

import numpy as np

from llmlab.data.encoder import Encoder, Marks
from llmlab.interop.safetensors import FileError
from llmlab.interop.specials import CONFIG, EXTRA, read_json

FILE = "chat_template.jinja"
LIMIT = 4 << 20  # characters of a chat at most
# Unicode keeps these characters for inner use: no text has them.
INNER = [chr(code) for code in (*range(0xFDD0, 0xFDF0), *range(0x1FFFE, 0x110000, 0x10000))]
PLAIN = (
    "{% for message in messages %}{{ message.role | capitalize }}: {{ message.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}Assistant:{% endif %}"
)


class ChatError(FileError):
    """A template that cannot be used, or messages that it does not take."""


@dataclasses.dataclass(frozen=True)
class Chat:
    """template: compiled. encoder: the tokenizer. name: where the template comes from, for messages."""

    template: object
    encoder: Encoder
    name: str

    def render(self, messages: list[dict], answer: bool = True, **variables) -> str:
        """The text of the messages, [{"role": "user", "content": ...}, ...]. answer: the model's turn is begun."""
        roles = {f"{role}_token": text for role, text in self.encoder.specials.roles.items()}
        given = {"tools": None, "documents": None, **roles, **variables}
        parts, size = [], 0
        try:
            for part in self.template.generate(messages=messages, add_generation_prompt=answer, **given):
                size += len(part)
                if size > LIMIT:
                    raise ChatError(f"{self.name} writes more than {LIMIT} characters for {len(messages)} messages")
                parts.append(part)
        except ChatError:
            raise
        except Exception as error:  # whatever a stranger's template raises
            raise ChatError(f"{self.name} refuses these messages: {error}") from error
        return "".join(parts)

    def encode(self, messages: list[dict], answer: bool = True, **variables) -> np.ndarray:
        """int32 ids of the same. Special tokens are those that the template writes; in a message they are text."""
        veil = Veil(self.encoder.specials.marks, messages)
        return self.encoder.encode_marked(self.render(veil.hide(messages), answer, **variables), veil.show)

    @functools.cached_property
    def endings(self) -> tuple[tuple[int, ...], tuple[str, ...]]:
        """What the template writes after an answer, so that it ends one: (ids, texts), texts where it has no id."""
        answer, after = INNER[-2:]
        said = [{"role": "user", "content": "?"}, {"role": "assistant", "content": answer}]
        try:
            text = self.render([*said, {"role": "user", "content": after}], answer=False)
        except ChatError:
            return (), ()
        rest = text.rpartition(answer)[2].partition(after)[0]
        first = next(iter(self.encoder.specials.marks.split(rest.lstrip())), "")
        if isinstance(first, int):
            return (first,), ()
        return (), (rest.rstrip(),) if rest.strip() else ()


class Veil:
    """Hides written forms of special ids in messages while a template is rendered, so that no message forges one."""

    def __init__(self, marks: Marks, messages: list[dict]):
        texts = [mark.text for mark in marks.all if mark.control]
        firsts, given = sorted({text[0] for text in texts}), json.dumps(messages, ensure_ascii=False, default=str)
        free = [character for character in INNER if character not in given]
        if len(free) < len(firsts):
            raise ChatError("the messages hold characters that Unicode keeps for inner use (U+FDD0 and others)")
        self.hidden = dict(zip(firsts, free))
        self.shown = str.maketrans(dict(zip(free, firsts)))
        either = "|".join(map(re.escape, texts)) or "(?!)"
        self.pattern = re.compile(f"(?={either})(.)", re.DOTALL)  # ahead: forms may overlap

    def hide(self, value):
        """The messages with the first character of each special token's form replaced."""
        if isinstance(value, str):
            return self.pattern.sub(lambda match: self.hidden[match[1]], value)
        if isinstance(value, dict):
            return {key: self.hide(item) for key, item in value.items()}
        return [self.hide(item) for item in value] if isinstance(value, list | tuple) else value

    def show(self, text: str) -> str:
        return text.translate(self.shown)


def load_chat(directory: str | Path, encoder: Encoder, name: str = "default") -> Chat:
    """The chat template of a checkpoint's directory. name: which, where it has several.

    Raises ChatError when it has none.
    """
    found = templates(Path(directory))
    if name not in found:
        has = f"it has {', '.join(found)}" if found else f"looked for {FILE} and chat_template in {CONFIG}"
        raise ChatError(f"{directory} has no chat template {name!r}; {has}")
    where, text = found[name]
    return Chat(compile_template(text, where), encoder, where)


def templates(directory: Path) -> dict[str, tuple[str, str]]:
    """{name: (where it stands, its text)} of all templates of a directory."""
    told, where = read_json(directory / CONFIG).get("chat_template"), f"the chat_template of {directory / CONFIG}"
    listed = {"default": told} if isinstance(told, str) else {}
    if isinstance(told, list):
        try:
            listed = {str(one["name"]): str(one["template"]) for one in told}
        except (TypeError, KeyError) as error:
            raise ChatError(f"{where} is no list of names and templates ({error!r})") from error
    found = {name: (where, text) for name, text in listed.items()}
    files = [directory / FILE, *sorted((directory / "additional_chat_templates").glob("*.jinja"))]
    for file in files:
        if file.is_file():
            found["default" if file.name == FILE else file.stem] = (str(file), file.read_text(encoding="utf-8"))
    return found


def compile_template(text: str, where: str):
    """The template of a text. Raises ChatError when it is no Jinja."""
    try:
        import jinja2
        import jinja2.ext
    except ImportError as error:
        raise ImportError(f"{EXTRA} (there is no jinja2)") from error
    try:
        return sandbox().from_string(text)
    except jinja2.TemplateSyntaxError as error:
        raise ChatError(f"{where}, line {error.lineno}: {error.message}") from error


def sandbox():
    """The environment that published templates are written for, without a way out of it."""
    import jinja2
    from jinja2.ext import Extension, loopcontrols
    from jinja2.sandbox import ImmutableSandboxedEnvironment, safe_range

    class Generation(Extension):
        """{% generation %} around what the model wrote, which only training on chats would use."""

        tags = {"generation"}

        def parse(self, parser):
            next(parser.stream)
            return parser.parse_statements(("name:endgeneration",), drop_needle=True)

    class Sandbox(ImmutableSandboxedEnvironment):
        intercepted_binops = frozenset(("*", "**"))

        def call_binop(self, context, operator, left, right):
            """Refuses one product that is larger than any chat."""
            sizes = [len(side) if hasattr(side, "__len__") else side for side in (left, right)]
            product = sizes[0] * sizes[1] if operator == "*" else max(map(abs, sizes))
            if product > LIMIT:
                raise jinja2.exceptions.SecurityError(f"a product of {product} is too large for a chat")
            return super().call_binop(context, operator, left, right)

    class Names(jinja2.utils.Namespace):
        def __init__(self, **named):
            super().__init__()
            for name, value in named.items():
                self[name] = value

        def __setitem__(self, name, value):
            if str(name).startswith("_"):
                raise jinja2.exceptions.SecurityError(f"a template sets no name such as {name!r}")
            super().__setitem__(name, value)

    def refuse(message):
        raise jinja2.TemplateError(message)

    def to_json(value, ensure_ascii=False, indent=None, separators=None, sort_keys=False):
        return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)

    found = Sandbox(trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols])
    found.filters["tojson"] = to_json  # Jinja's own escapes what HTML would misread
    found.globals = {
        "range": safe_range,
        "dict": lambda *pairs, **named: dict(*pairs, **named),
        "namespace": lambda **named: Names(**named),
        "raise_exception": refuse,
        "strftime_now": lambda form: datetime.datetime.now().strftime(form),
    }
    return found
