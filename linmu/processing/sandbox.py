"""Chat templates come with models, from strangers: jinja's sandbox with limits on time, loops, texts and numbers.

Jinja's own sandbox keeps a template from reaching Python; it does not keep it from running forever or from asking for
gigabytes. Every loop and macro is made to count its rounds, and what can make a text longer than what went in is
checked before it runs. The limits hold in every thread and need no signal.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import wraps
from itertools import islice
from typing import Any

import jinja2
import jinja2.ext
import jinja2.sandbox
from jinja2 import nodes
from jinja2.utils import Namespace
from jinja2.visitor import NodeTransformer

MAX_SOURCE = 1 << 20  # characters of a template; published ones have at most some 30,000
MAX_ROUNDS = 1_000_000  # of all loops and macros
MAX_CHARACTERS = 1 << 24  # of one text, of the output, and of what is written to the output and to buffers
MAX_WORK = 1 << 27  # characters of all texts that are made on the way
MAX_SECONDS = 10.0
MAX_ARGUMENT = 10_000  # of a filter or method that pads, indents, wraps or repeats
MAX_BITS = 4096  # of an integer
PADDING = ("center", "ljust", "rjust", "zfill", "expandtabs")
SMALL_ARGUMENTS = ("batch", "center", "format", "indent", "round", "slice", "tojson", "truncate", "wordwrap")
LAZY_FILTERS = ("first", "map", "reject", "rejectattr", "select", "selectattr")  # one element after the other
REMOVED_FILTERS = ("urlize", "xmlattr", "pprint")
_WIDE = re.compile(r"\d{5,}|\*|\{[^{}]*\{")  # widths of 10,000 and more, and widths that are arguments


class TemplateLimit(jinja2.TemplateError):
    """A template that asks for more than any chat needs."""


@dataclass
class _Budget:
    rounds: int = field(default_factory=lambda: MAX_ROUNDS)
    work: int = field(default_factory=lambda: MAX_WORK)
    written: int = field(default_factory=lambda: MAX_CHARACTERS)
    deadline: float = field(default_factory=lambda: time.monotonic() + MAX_SECONDS)


_BUDGET: ContextVar[_Budget] = ContextVar("budget of the chat template that is running")


def _budget() -> _Budget:
    return _BUDGET.get(None) or _Budget()


def run(template: jinja2.Template, variables: Mapping[str, Any]) -> str:
    """The text of a template; raises TemplateLimit, and whatever the template's own mistakes raise."""
    token = _BUDGET.set(_Budget())
    try:
        return template.render(variables)
    finally:
        _BUDGET.reset(token)


class LimitedEnvironment(jinja2.sandbox.ImmutableSandboxedEnvironment):
    """The immutable sandbox within the limits of this module. Nothing is evaluated when a template is compiled."""

    intercepted_binops = frozenset(("*", "**", "+", "%"))

    def __init__(self, extensions: Sequence[Any]):
        super().__init__(
            trim_blocks=True, lstrip_blocks=True, extensions=list(extensions), optimized=False, finalize=self._written
        )
        self.globals.pop("lipsum", None)
        for name in REMOVED_FILTERS:
            self.filters.pop(name)
        for name, function in list(self.filters.items()):
            self.add_filter(name, function)

    def add_filter(self, name: str, function: Callable[..., Any]) -> None:
        """Register a filter within the limits."""
        skip = 1 if hasattr(function, "jinja_pass_arg") else 0  # an environment or a context comes first

        @wraps(function)
        def limited(*args: Any, **kwargs: Any) -> Any:
            if len(args) > skip and isinstance(args[skip], Iterator) and name not in LAZY_FILTERS:
                args = (*args[:skip], [*islice(args[skip], MAX_ROUNDS)], *args[skip + 1 :])
            _check_filter(name, args[skip:], kwargs)
            return _made(function(*args, **kwargs))

        self.filters[name] = limited

    def tick(self, written: int) -> None:
        """One round of a loop or macro whose own text has `written` characters."""
        budget = _budget()
        budget.rounds -= 1
        if budget.rounds < 0:
            raise TemplateLimit(f"more than {MAX_ROUNDS} rounds of its loops")
        if time.monotonic() > budget.deadline:
            raise TemplateLimit(f"more than {MAX_SECONDS:g} seconds")
        _spend(budget, written)

    def join_texts(self, *values: Any) -> str:
        """The operator ~ ."""
        _weigh(values)
        return str(_made("".join(map(str, values))))

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        """An arithmetic operator, unless its result would be too large."""
        _check_operator(operator, left, right)
        return _made(super().call_binop(context, operator, left, right))

    def call(self, context: Any, obj: Any, /, *args: Any, **kwargs: Any) -> Any:  # noqa: D102
        owner, name = getattr(obj, "__self__", None), getattr(obj, "__name__", "")
        if isinstance(owner, str | bytes):
            args = _check_method(owner, name, args, kwargs)
        return _made(super().call(context, obj, *args, **kwargs))

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:  # noqa: D102
        wrapped = super().wrap_str_format(value)
        if wrapped is None:
            return None

        def limited(*args: Any, **kwargs: Any) -> str:
            _check_format(value.__self__, [*args, *kwargs.values()])
            return wrapped(*args, **kwargs)

        return limited

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        if len(source) > MAX_SOURCE:
            raise TemplateLimit(f"a template of {len(source)} characters (at most {MAX_SOURCE})")
        return _Counted().visit(super()._parse(source, name, filename))

    @jinja2.pass_context  # which also keeps jinja from putting constants out when it compiles
    def _written(self, _: Any, value: Any) -> str:
        """What `{{ }}` puts out, as text."""
        _weigh(value)
        text = str(value)
        _spend(_budget(), len(text))
        return text


class _Counted(NodeTransformer):
    """Puts a count in front of the body of every loop and macro, and a checked call in the place of `~`."""

    def visit_For(self, node: nodes.For) -> nodes.Node:  # noqa: N802, D102
        return self._counted(node)

    def visit_Macro(self, node: nodes.Macro) -> nodes.Node:  # noqa: N802, D102
        return self._counted(node)

    def visit_CallBlock(self, node: nodes.CallBlock) -> nodes.Node:  # noqa: N802, D102
        return self._counted(node)

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:  # noqa: N802, D102
        self.generic_visit(node)
        return _own_call("join_texts", node.nodes, node.lineno)

    def _counted(self, node: Any) -> nodes.Node:
        self.generic_visit(node)
        written = sum(len(data.data) for data in node.find_all(nodes.TemplateData))
        call = _own_call("tick", [nodes.Const(written)], node.lineno)
        node.body.insert(0, nodes.ExprStmt(call, lineno=node.lineno))
        return node


def _own_call(name: str, arguments: list[nodes.Expr], line: int) -> nodes.Call:
    call = nodes.Call(nodes.EnvironmentAttribute(name), arguments, [], None, None)
    call.set_lineno(line)
    return call


def _spend(budget: _Budget, written: int) -> None:
    budget.written -= written
    if budget.written < 0:
        raise TemplateLimit(f"more than {MAX_CHARACTERS} characters of output")


def _made(value: Any) -> Any:
    """`value`, its text counted."""
    if isinstance(value, str | bytes | list | tuple):
        budget = _budget()
        budget.work -= len(value)
        most = MAX_CHARACTERS if isinstance(value, str | bytes) else MAX_ROUNDS
        if budget.work < 0 or len(value) > most:
            raise TemplateLimit(f"values of more than {MAX_CHARACTERS} characters or {MAX_ROUNDS} elements")
    return value


def _weigh(value: Any) -> int:
    """About how many characters `str(value)` has; raises TemplateLimit before anyone makes a text that is too long."""
    total, visited, stack = 0, 0, [value]
    while stack:
        item, visited = stack.pop(), visited + 1
        total += len(item) if isinstance(item, str | bytes) else 1
        if isinstance(item, Mapping):
            stack += [*item.keys(), *item.values()]
        elif isinstance(item, Namespace):
            stack.append(item._Namespace__attrs)
        elif isinstance(item, list | tuple | set | frozenset | type({}.keys()) | type({}.values()) | type({}.items())):
            stack += item
        if total > MAX_CHARACTERS or visited + len(stack) > MAX_ROUNDS:
            raise TemplateLimit(f"a value of more than {MAX_CHARACTERS} characters or {MAX_ROUNDS} elements")
    return total


def _at_most(wanted: int, what: str, limit: int = MAX_CHARACTERS) -> None:
    if wanted > limit:
        raise TemplateLimit(f"{what} {wanted} (at most {limit})")


def _check_operator(operator: str, left: Any, right: Any) -> None:
    numbers = isinstance(left, int) and isinstance(right, int)
    if operator == "**" and numbers:
        _at_most(abs(left).bit_length() * abs(right), "a number with bits:", MAX_BITS)
    elif operator == "*" and numbers:
        _at_most(left.bit_length() + right.bit_length(), "a number with bits:", MAX_BITS)
    elif operator == "*":
        for many, times in ((left, right), (right, left)):
            if isinstance(times, int) and isinstance(many, str | bytes | list | tuple):
                most = MAX_CHARACTERS if isinstance(many, str | bytes) else MAX_ROUNDS
                _at_most(len(many) * times, "repeated to a length of", most)
    elif operator == "+" and isinstance(left, str | list | tuple) and isinstance(right, str | list | tuple):
        _at_most(len(left) + len(right), "a sum of length")
    elif operator == "%" and isinstance(left, str | bytes):
        _check_format(left, right)


def _check_format(pattern: Any, values: Any) -> None:
    """A %-pattern or a format string: no wide fields, and values that fit."""
    text = str(pattern)
    if _WIDE.search(text):
        raise TemplateLimit(f"the format {text[:40]!r}")
    weight = _weigh(values)
    fields = text.count("%") + text.count("{") + 1
    _at_most(len(text) + weight * fields, "a formatted text of")


def _check_method(owner: Any, name: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[Any, ...]:
    """Arguments of a text's method; an iterable to be joined comes back as a list."""
    if name in PADDING:
        _small((*args, *kwargs.values()))
        _at_most(len(owner) * MAX_ARGUMENT if name == "expandtabs" else 0, "a text with wide tabs of")
    elif name == "replace" and len(args) >= 2:
        _check_replace(owner, args[0], args[1])
    elif name == "join" and args:
        return ([*_check_join(owner, args[0])], *args[1:])
    elif name in ("format", "format_map"):
        _check_format(owner, [*args, *kwargs.values()])
    elif name == "translate":
        raise TemplateLimit("the method translate")
    return args


def _check_replace(text: Any, old: Any, new: Any) -> None:
    if all(isinstance(item, str) for item in (text, old, new)):
        count = text.count(old) if old else len(text) + 1
        _at_most(len(text) + count * len(new), "a replaced text of")


def _check_join(separator: Any, items: Iterable[Any]) -> list[Any]:
    values = list(items)
    _at_most(_weigh(values) + len(str(separator)) * len(values), "a joined text of")
    return values


def _check_filter(name: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
    value, rest = (args[0] if args else None), (*args[1:], *kwargs.values())
    if name in SMALL_ARGUMENTS and name != "format":
        _small(rest)
    if name == "format":
        _check_format(value, list(rest))
    elif name == "replace" and len(rest) >= 2:
        _check_replace(str(value), rest[0], rest[1])
    elif name == "join":
        if isinstance(value, list | tuple | str | Mapping):
            _at_most(_weigh(value) + max([1, *map(len, _texts(rest))]) * len(value), "a joined text of")
    elif name == "sum" and any(isinstance(item, list | tuple) for item in rest):
        raise TemplateLimit("a sum of lists")
    elif name in ("indent", "wordwrap", "tojson"):
        longest = max(
            (item if isinstance(item, int) else len(item) for item in rest if isinstance(item, int | str)), default=4
        )
        _at_most(_weigh(value) * (1 if name == "wordwrap" and not _texts(rest) else 1 + longest), "a text of about")
    else:
        _weigh(value)


def _texts(values: Iterable[Any]) -> list[str]:
    return [value for value in values if isinstance(value, str)]


def _small(values: Iterable[Any]) -> None:
    for value in values:
        size = value if isinstance(value, int | float) else len(value) if isinstance(value, str | list | tuple) else 0
        if size > MAX_ARGUMENT:
            raise TemplateLimit(f"an argument of {size} (at most {MAX_ARGUMENT})")
