"""Chat templates: a checkpoint's own Jinja text turns a list of messages into the prompt that it was trained on.

A template comes with the weights and is code that somebody else wrote, so it runs in jinja2's immutable sandbox. The helpers
are those that templates on the hub expect: `raise_exception`, `strftime_now`, `tojson`, `break` and `continue`, the
`{% generation %}` tag, and the special tokens by name (`bos_token`, `eos_token`, ...).
"""

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, ClassVar

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from jaxinterp.errors import CheckpointError, InputError


class GenerationTag(Extension):
    """`{% generation %} ... {% endgeneration %}` marks what the assistant wrote; the text inside is rendered as it stands."""

    tags: ClassVar[set[str]] = {"generation"}

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        return nodes.Scope(parser.parse_statements(("name:endgeneration",), drop_needle=True), lineno=line)


def _raise_exception(message: str) -> None:
    raise jinja2.TemplateError(message)


def _strftime_now(form: str) -> str:
    return datetime.now().strftime(form)


def _to_json(value: Any, ensure_ascii: bool = False, indent: int | None = None, separators: Any = None, sort_keys: bool = False) -> str:
    # jinja2's own filter escapes HTML, which no model was trained on.
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def compile_template(source: str) -> jinja2.Template:
    """Compile a chat template in the sandbox.

    Args:
        source: the Jinja text.

    Raises:
        CheckpointError: the text is not valid Jinja.
    """
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[GenerationTag, "jinja2.ext.loopcontrols"])
    environment.filters["tojson"] = _to_json
    environment.globals.update(raise_exception=_raise_exception, strftime_now=_strftime_now)
    try:
        return environment.from_string(source)
    except jinja2.TemplateSyntaxError as error:
        raise CheckpointError(f"the model's chat template is not valid Jinja: line {error.lineno}: {error.message}") from error


def render(
    template: jinja2.Template, messages: Sequence[Mapping[str, Any]], add_generation_prompt: bool, special_tokens: Mapping[str, str]
) -> str:
    """Render messages as one prompt.

    Args:
        template: from `compile_template`.
        messages: mappings with a "role" and usually a "content", in order.
        add_generation_prompt: end with the opening of the assistant's turn.
        special_tokens: "bos_token" -> its text and so on; a template sees a name that is absent as undefined (empty).

    Raises:
        InputError: messages of the wrong form, or messages that the template refuses (with the template's own words).
    """
    if isinstance(messages, (str, Mapping)) or not all(isinstance(message, Mapping) and "role" in message for message in messages):
        raise InputError(f"a chat is a list of messages such as {{'role': 'user', 'content': 'Hello'}}, got {messages!r}")
    try:
        return template.render(
            messages=list(messages), tools=None, documents=None, add_generation_prompt=add_generation_prompt, **special_tokens
        )
    except Exception as error:  # a template is somebody else's code: whatever it raises is its refusal of these messages
        raise InputError(f"the model's chat template refuses these messages: {error}") from error
