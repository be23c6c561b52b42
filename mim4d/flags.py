"""Command lines by tyro: numbers as people write them, and errors of one line that name the flag.

Libraries name settings, not flags: errors begin with ``name = value``, such as ``lift.depth_step = 0 must be more than
0``, or name a setting in backquotes. :func:`name_flags` is the one place where a setting's name becomes its flag. Only
:func:`parse_flags` needs tyro, which the base install does not have.
"""

import argparse
import ast
import dataclasses
import inspect
import io
import math
import os
import re
import shutil
import sys
import textwrap
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, NoReturn, TypeVar, cast, get_type_hints

from .errors import UserError, printable, shortage

Settings = TypeVar("Settings")

LARGEST = 2**63 - 1
"""Whole numbers beyond it fit no integer of a tensor."""


def whole_number(text: str) -> int:
    """Parse a whole number, also written as ``1e6``.

    Raises:
        ValueError: If it is none, or fits no 64-bit integer.
    """
    try:
        value = int(text)
    except ValueError:
        try:
            number = float(text)
        except ValueError:
            number = math.nan
        if not number.is_integer():
            raise ValueError(f"expected a whole number, got {text!r}") from None
        value = int(number)
    if abs(value) > LARGEST:
        raise ValueError(f"expected a whole number below 2^63, got {text}")
    return value


def finite_number(text: str) -> float:
    """Parse a number that is neither NaN nor infinite.

    Raises:
        ValueError: If it is none.
    """
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise ValueError(f"expected a finite number, got {text!r}")
    return value


def _registry() -> Any:
    from tyro.constructors import ConstructorRegistry, PrimitiveConstructorSpec, PrimitiveTypeInfo

    registry = ConstructorRegistry()
    for kind, read in ((int, whole_number), (float, finite_number)):

        def rule(info: PrimitiveTypeInfo, kind: Any = kind, read: Any = read) -> PrimitiveConstructorSpec[Any] | None:
            if info.type is not kind:
                return None
            return PrimitiveConstructorSpec(
                nargs=1,
                metavar=kind.__name__.upper(),
                instance_from_str=lambda args: read(args[0]),
                is_instance=lambda value: isinstance(value, kind) or (kind is float and isinstance(value, int)),
                str_from_instance=lambda value: [str(value)],
            )

        registry.primitive_rule(rule)
    return registry


def parse_flags(
    kind: type[Settings],
    argv: Sequence[str],
    *,
    prog: str,
    default: Settings | None = None,
    first: Sequence[str] = (),
    example: str = "",
) -> Settings:
    """Read a command line into settings.

    Args:
        kind: A dataclass of settings.
        argv: The arguments after the command's name.
        prog: The command's name.
        default: Values of flags that are left out; None for the fields' own defaults.
        first: Fields that ``--help`` lists first; the others follow as expert options, then the sections. Needs
            ``default``. Empty: in the order of the fields.
        example: A command line for ``--help``.

    Raises:
        UserError: If a flag or a value is wrong, in one line that names it.
        SystemExit: After ``--help``.
    """
    import tyro

    paragraphs = [*inspect.cleandoc(kind.__doc__ or "").split("\n\n"), *([f"Example: {example}"] if example else [])]
    description = "\n\n".join(" ".join(paragraph.split()) for paragraph in paragraphs)
    page, printed = io.StringIO(), io.StringIO()
    try:
        with _registry(), redirect_stdout(page), redirect_stderr(printed):
            if first and default is not None:
                given = tyro.cli(_grouped(default, first), args=argv, prog=prog, description=description)
                values = {**vars(given), **vars(given.expert)}
                return kind(**{field.name: values[field.name] for field in dataclasses.fields(cast(Any, kind))})
            given = tyro.cli(kind, args=argv, prog=prog, description=description, **_given(default))
            return cast(Settings, given)
    except SystemExit as stop:
        if stop.code != 2:
            width = shutil.get_terminal_size().columns
            for line in page.getvalue().splitlines():  # tyro leaves the description in one line per paragraph
                print(textwrap.fill(line, width, break_on_hyphens=False) if len(line) > width else line)
            raise
        raise UserError(_one_line(printed.getvalue(), prog)) from stop
    except ValueError as error:  # the settings' own checks
        raise UserError(name_flags(str(error), kind)) from error


def _given(default: Any) -> dict[str, Any]:
    return {} if default is None else {"default": default}


def _grouped(default: Any, first: Sequence[str]) -> type[Any]:
    """Return a dataclass of the same flags, which tyro lists as ``first``, "expert options" and the sections."""
    import tyro

    kind = type(default)
    hints, docs = get_type_hints(kind, include_extras=True), field_docs(kind)

    def entry(name: str) -> tuple[str, Any, Any]:
        value = getattr(default, name)
        hint = hints[name]
        if not dataclasses.is_dataclass(value):
            hint = Annotated[hint, tyro.conf.arg(help=docs[name])]
        return name, hint, dataclasses.field(default_factory=lambda: value)

    names = [field.name for field in dataclasses.fields(kind)]
    sections = [name for name in names if dataclasses.is_dataclass(getattr(default, name))]
    others = [name for name in names if name not in (*first, *sections)]
    expert = dataclasses.make_dataclass("Expert", [entry(name) for name in others], kw_only=True)
    group = ("expert", Annotated[expert, tyro.conf.OmitArgPrefixes], dataclasses.field(default_factory=expert))
    fields = [*map(entry, first), group, *map(entry, sections)]
    return dataclasses.make_dataclass(kind.__name__, fields, kw_only=True)


def field_docs(kind: type[Any]) -> dict[str, str]:
    """Return the docstrings below the fields of a dataclass and of its base classes, as one line each."""
    docs: dict[str, str] = {}
    for base in reversed([base for base in kind.__mro__ if dataclasses.is_dataclass(base)]):
        (tree,) = ast.parse(inspect.cleandoc(inspect.getsource(base))).body
        for node, after in pairwise(cast(ast.ClassDef, tree).body):
            if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and isinstance(after, ast.Expr):
                docs[node.target.id] = " ".join(str(cast(ast.Constant, after.value).value).split())
    return docs


def _one_line(printed: str, prog: str) -> str:
    """Shorten tyro's boxed error to one line: its first section, and the flag that it suggests."""
    sections: list[str] = [""]
    for row in printed.splitlines()[1:]:  # after the title
        row = re.sub(r"\x1b\[[0-9;]*m", "", row).strip("│|+╭╮╰╯ \t")
        if row.strip("─-"):
            sections[-1] = f"{sections[-1]} {row}".strip()
        elif row:
            sections.append("")
    message, *others = [section for section in sections if section] or [printed]
    rest = " ".join(others)
    message = re.sub(r"^Error parsing (?!-)\S+: ", "", message)  # a section's name: the setting's follows
    message = message.removeprefix("Error parsing ")
    several = re.match(r"(--\S+): Could not parse arguments \[(.*)\] into ", message)
    if several:
        flag, values = several[1], several[2].replace("'", "").replace(",", "")
        form = re.search(rf"{re.escape(flag)} ((?:[A-Z]+\b ?)+)", rest)
        message = f"{flag} {values}: expected {form[1].strip() if form else 'values of another type'}"
    meant = re.search(r"Perhaps you meant: (--[\w.-]+)", rest)
    return f"{message}; did you mean {meant[1]}?" if meant else f"{message.rstrip('.')} (see {prog} --help)"


class ArgumentParser(argparse.ArgumentParser):
    """Report a wrong flag or value as one line on stderr and exit with code 2; end ``--help`` with an example."""

    def __init__(self, *, example: str = "", **others: Any) -> None:
        """Build the parser.

        Args:
            example: A command line for ``--help``.
            **others: See :class:`argparse.ArgumentParser`.
        """
        super().__init__(formatter_class=_HelpFormatter, epilog=f"Example: {example}" if example else None, **others)

    def error(self, message: str) -> NoReturn:
        """Print the message, without ``argument`` before the flag, and exit."""
        line = f"error: {message.removeprefix('argument ')} (see {self.prog} --help)"
        print(printable(" ".join(line.split())), file=sys.stderr)
        sys.exit(2)


class _HelpFormatter(argparse.HelpFormatter):
    """Break lines at spaces only, because a flag broken at a hyphen cannot be copied."""

    def _split_lines(self, text: str, width: int) -> list[str]:
        return textwrap.wrap(" ".join(text.split()), width, break_on_hyphens=False)

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        return "\n".join(indent + line for line in self._split_lines(text, width - len(indent)))


def text(value: str) -> str:
    """Return an argument that is a name or a path.

    Raises:
        argparse.ArgumentTypeError: If it is empty or blank, or has characters that cannot be printed.
    """
    if not value.strip():
        raise argparse.ArgumentTypeError("expected a value, got an empty one")
    if not value.isprintable():
        raise argparse.ArgumentTypeError(f"{value!a} has characters that cannot be printed")
    return value


@contextmanager
def report_user_errors(remedy: str = "use smaller inputs", settings: type[Any] | None = None) -> Iterator[None]:
    """Print UserError, OSError and out-of-memory errors as one line on stderr and exit with code 2.

    Args:
        remedy: What to lower if memory runs out.
        settings: The dataclass that the command's flags set: messages then name flags in place of settings.
    """
    try:
        yield
    except (UserError, OSError, RuntimeError, MemoryError) as error:
        short = None if isinstance(error, UserError) else shortage(error, remedy)
        if short is None and not isinstance(error, (UserError, OSError)):
            raise
        message = short or str(error)
        if isinstance(error, OSError) and error.filename and error.strerror and not short:
            message = f"{error.filename}: {error.strerror}"
        message = name_flags(message, settings)
        print(f"error: {printable(' '.join(message.split()))}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)


def name_flags(message: str, settings: type[Any] | None = None) -> str:
    """Replace the names of settings in an error by their flags.

    A name counts at the beginning of a message, in ``name = value``, and anywhere in backquotes. Without ``settings``
    every such name is a flag.
    """
    found = re.match(r"(?:these settings make no model: )?([a-z_]+(?:\.[a-z_]+)*)(?:\.\d+)? = ", message)
    flag = found and (flag_of(found[1], settings) if settings else as_flag(found[1]))
    if found and flag:
        message = f"{flag} {message[found.end() :]}"

    def named(quoted: re.Match[str]) -> str:
        return (settings and flag_of(quoted[1], settings)) or as_flag(quoted[1])

    return re.sub(r"`([a-z_]+(?:\.[a-z_]+)*)`", named, message)


def as_flag(name: str) -> str:
    """Return the flag of a setting: ``--lift.depth-step`` for ``lift.depth_step``."""
    return f"--{name.replace('_', '-')}"


def flag_of(name: str, kind: type[Any]) -> str | None:
    """Find the flag of a setting: ``--method.lift.depth-step`` for ``lift.depth_step``; None if there is none.

    Args:
        name: Name of the field, after enough of its sections to be unique.
        kind: Dataclass of the settings.
    """
    fitting = [known for known in setting_names(kind) if f".{known}".endswith(f".{name}")]
    if fitting:
        return as_flag(min(fitting, key=len))
    rest = name.partition(".")[2]  # mim4d-world's flags have no section
    return flag_of(rest, kind) if rest else None


def setting_names(kind: type[Any], prefix: str = "") -> list[str]:
    """Return the dotted names of all settings of a dataclass and of the dataclasses in it."""
    names = []
    for field in dataclasses.fields(kind):
        name = f"{prefix}{field.name}"
        inner = field.default_factory if isinstance(field.default_factory, type) else None
        if inner is None and field.default_factory is not dataclasses.MISSING:
            inner = type(field.default_factory())
        names += setting_names(inner, f"{name}.") if dataclasses.is_dataclass(inner) else [name]
    return names


def installed(name: str) -> str:
    """Return how to start a command of this Python environment: its name, or its path if it is not on PATH."""
    file = Path(sys.executable).parent / name
    return os.path.relpath(file) if file.is_file() and not shutil.which(name) else name
