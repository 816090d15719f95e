"""The settings of a command as a value: a frozen model made from its signature, which files can fill and keep.

A command is a function whose options are declared once, as typer reads them. `settled` gives it ``--config`` and
``--save-config``, checks what comes in by a pydantic model of the same names and types, and calls it with the values.
"""

from __future__ import annotations

import inspect
import re
import types
from collections.abc import Callable, Mapping
from copy import copy
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Union, get_args, get_origin, get_type_hints

import typer

from ..errors import mistake
from ..signatures import REQUIRED, arguments
from .values import assignments, number, tables
from .vocabulary import SETTINGS_FILES, Former, Vocabulary

if TYPE_CHECKING:
    from pydantic import BaseModel

PANEL = "Settings file"
COMMAND = "command"
"""The key that says whose settings a file holds."""

NAMED = {
    float: "a number or a fraction such as 8/255",
    int: "a whole number",
    bool: "true or false",
    str: "text",
    Path: "a path",
}
_SET = "--set"
_EXPONENT = re.compile(r"[-+]?(?:\d+\.?\d*|\.\d+)[eE][-+]?\d+\Z")
_TAG = re.compile(r"(?<!\\)\[(?=[a-z#/@])")


def settled(
    command: Callable[..., None], former: Former | None = None, bare: str | None = None
) -> Callable[..., None]:
    """``command`` with ``--config`` and ``--save-config``; its numbers may be written as fractions.

    ``former`` are old spellings of its options and their new ones, which ``Vocabulary`` reads; ``bare`` is the kind of
    settings by ``--set`` that name none.
    """
    hints = get_type_hints(command, include_extras=True)
    hints.pop("return", None)
    taken = arguments(command)
    about = About(command.__name__, hints, taken, dict(former or {}), bare)

    def run(ctx: typer.Context, config_file: Path | None, save_config: Path | None, **values: Any) -> None:
        settings = about.settings(_with_set(ctx, about, values))
        if save_config is not None:
            write(save_config, _command_of(ctx), about, settings)
        command(**{name: getattr(settings, name) for name in taken})

    own = [
        inspect.Parameter(
            name, inspect.Parameter.KEYWORD_ONLY, default=taken[name], annotation=_shown(hints[name])
        )
        for name in taken
    ]
    added = [
        inspect.Parameter("ctx", inspect.Parameter.KEYWORD_ONLY, annotation=typer.Context),
        _added(
            "config_file",
            "--config",
            "Take settings from this .toml or .yaml file; options given here win over it.",
            callback=_reader(about),
            is_eager=True,
        ),
        _added("save_config", "--save-config", "Write all settings to this .toml or .yaml file, and go on."),
    ]
    run.__name__, run.__doc__ = command.__name__, _escaped(_flowing(command.__doc__))
    run.__signature__ = inspect.Signature([*own, *added])  # type: ignore[attr-defined]
    run.__annotations__ = {p.name: p.annotation for p in (*own, *added)}
    run.about = about  # type: ignore[attr-defined]
    return run


def register(
    app: typer.Typer,
    name: str,
    command: Callable[..., None],
    former: Former | None = None,
    bare: str | None = None,
) -> None:
    """Make ``command`` one of ``app``, with settings files and its old spellings."""
    app.command(name, cls=Vocabulary)(settled(command, former, bare))


class About:
    """What a command takes.

    Attributes:
        hints, taken: types and defaults by parameter.
        former: old spellings of options -> new ones.
        bare: the kind of a setting by ``--set`` that names none; None if it must.
        keys: names in files -> parameters.
    """

    def __init__(
        self,
        name: str,
        hints: Mapping[str, Any],
        taken: Mapping[str, Any],
        former: Mapping[str, str],
        bare: str | None = None,
    ) -> None:
        self.name, self.hints, self.taken, self.former = name, dict(hints), dict(taken), dict(former)
        self.bare = bare
        self.options = {parameter: _option(parameter, hint) for parameter, hint in hints.items()}
        self.keys = {_key(option): parameter for parameter, option in self.options.items()}

    @cache  # noqa: B019 - as many as there are commands, and they live as long
    def model(self) -> type[BaseModel]:
        """The model: frozen, of the command's parameters and nothing else."""
        from pydantic import ConfigDict, create_model

        config = ConfigDict(
            frozen=True,
            extra="forbid",
            coerce_numbers_to_str=True,
            arbitrary_types_allowed=True,
            protected_namespaces=(),
        )
        fields: dict[str, Any] = {
            name: (_checked(hint), ... if self.taken[name] is REQUIRED else self.taken[name])
            for name, hint in self.hints.items()
        }
        return create_model(f"{self.name.title().replace('_', '')}Settings", __config__=config, **fields)

    def settings(self, values: Mapping[str, Any], file: Path | None = None) -> BaseModel:
        """The model of these values by parameter.

        Raises:
            ValueError: one cannot be read; the message names the option, or the key of ``file``.
        """
        from pydantic import ValidationError

        try:
            return self.model()(**values)
        except ValidationError as error:
            wrong = error.errors()[0]
            parameter = str(wrong["loc"][0])
            option = self.options.get(parameter, parameter)
            said = option if file is None else _key(option)
            text = mistake(said, self._expected(parameter, wrong["msg"]), repr(wrong["input"]))
            raise ValueError(text if file is None else f"{file}: {text}") from None

    def _expected(self, parameter: str, otherwise: str) -> str:
        kind = _plain(self.hints.get(parameter))
        if get_origin(kind) is list:
            return "a list"
        return NAMED.get(kind, otherwise)


def read(path: Path, command: str, about: About) -> dict[str, Any]:
    """The settings in a file, by parameter, checked one by one.

    Raises:
        ValueError: no settings file, one of another command, an unknown key, or a value of another kind.
    """
    found = _load(path)
    meant = found.pop(COMMAND, command)
    if meant != command:
        remedy = f"Take out the line `{COMMAND}` if its settings are meant all the same"
        raise ValueError(f"{path}: {mistake(COMMAND, repr(command), repr(meant), remedy)}")
    values = {}
    for key, value in found.items():
        parameter = _parameter(path, str(key), about)
        if parameter in values:
            raise ValueError(f"{path}: `{about.options[parameter]}` is set twice, the second time by `{key}`")
        values[parameter] = value
    missing = {name for name, default in about.taken.items() if default is REQUIRED} - values.keys()
    stand_in = {name: _nothing(about.hints[name]) for name in missing}
    settings = about.settings({**values, **stand_in}, path)
    return {name: getattr(settings, name) for name in values}


def write(path: Path, command: str, about: About, settings: BaseModel) -> None:
    """Keep the settings in a file; one that is there already must hold the same.

    Raises:
        ValueError: no name of a settings file, or another file of that name.
    """
    from ..files import replace_file

    kept: dict[str, Any] = {COMMAND: command}
    for name, value in settings.model_dump(mode="json", exclude_none=True).items():
        option = about.options[name]
        if option == _SET:
            value = tables(value, about.bare)
        if value not in ([], {}):
            kept[_key(option)] = value
    data = _dumped(path, kept).encode()
    if path.exists() and path.read_bytes() != data:
        raise ValueError(
            mistake("--save-config", "a new file", f"{path}, which holds other settings", "Remove it first")
        )
    replace_file(path, data)


def _reader(about: About) -> Callable[[typer.Context, Path | None], Path | None]:
    """Values of the file become the defaults of the options: what is given explicitly wins."""

    def into(ctx: typer.Context, value: Path | None) -> Path | None:
        if value is not None and not ctx.resilient_parsing:
            found = read(value, _command_of(ctx), about)
            ctx.default_map = {parameter: _typed(one) for parameter, one in found.items()}
        return value

    return into


def _with_set(ctx: typer.Context, about: About, values: dict[str, Any]) -> dict[str, Any]:
    """Settings by ``--set`` on the command line come on top of those of the file, which the option would replace."""
    for parameter, option in about.options.items():
        of_file = (ctx.default_map or {}).get(parameter)
        if option == _SET and of_file and values[parameter] != of_file:
            return {**values, parameter: [*of_file, *values[parameter]]}
    return values


def _command_of(ctx: Any) -> str:
    """ "evaluate", "train denoiser": without the name of the program."""
    words, at = [], ctx
    while at.parent is not None:
        words.append(str(at.info_name))
        at = at.parent
    return " ".join(reversed(words)) or str(ctx.info_name)


def _parameter(path: Path, key: str, about: About) -> str:
    from ..words import did_you_mean

    plain = key.replace("-", "_")
    now = about.former.get(f"--{plain.replace('_', '-')}")
    if plain not in about.keys and now is not None:
        typer.echo(f"fastpure: {path}: {key} is now called {_key(now)}", err=True)
        plain = _key(now)
    if plain not in about.keys:
        hint = did_you_mean(plain, about.keys) or f"There are {', '.join(sorted(about.keys))}"
        raise ValueError(
            f"{path}: `{key}` is no setting of `fastpure {about.name.replace('_', ' ')}`. {hint}"
        )
    return about.keys[plain]


def _load(path: Path) -> dict[str, Any]:
    text = path.read_text(encoding="utf-8")
    try:
        if _kind(path) == ".toml":
            import tomlkit

            found: Any = tomlkit.parse(text).unwrap()
        else:
            import yaml

            found = yaml.load(text, _with_exponents(yaml.SafeLoader))
    except Exception as error:
        if type(error).__module__.split(".")[0] not in ("tomlkit", "yaml"):
            raise
        raise ValueError(f"{path} cannot be read: {' '.join(str(error).split())}") from None
    if found is not None and not isinstance(found, dict):
        raise ValueError(mistake(str(path), "names with values", type(found).__name__))
    return dict(found or {})


def _dumped(path: Path, kept: Mapping[str, Any]) -> str:
    if _kind(path) == ".toml":
        import tomlkit

        return tomlkit.dumps(kept)
    import yaml

    dumper = _with_exponents(yaml.SafeDumper)
    return str(yaml.dump(dict(kept), Dumper=dumper, sort_keys=False, allow_unicode=True))


def _with_exponents(kind: Any) -> Any:
    """A reader or writer of YAML to which 1e-3 is a number: for YAML 1.1 one without a point is text."""
    own: Any = type(kind.__name__, (kind,), {})
    own.add_implicit_resolver("tag:yaml.org,2002:float", _EXPONENT, list("-+.0123456789"))
    return own


def _kind(path: Path) -> str:
    if path.suffix.lower() not in SETTINGS_FILES:
        raise ValueError(mistake("--config", f"a file that ends in {', '.join(SETTINGS_FILES)}", str(path)))
    return path.suffix.lower()


def _typed(value: Any) -> Any:
    """A value of the model as one would type it."""
    if isinstance(value, list):
        return [str(one) for one in value]
    return value if value is None or isinstance(value, bool) else str(value)


def _nothing(hint: Any) -> Any:
    """Something of that kind, in place of what a file need not hold."""
    return [] if get_origin(_plain(hint)) is list else {int: 0, float: 0.0, bool: False}.get(_plain(hint), "")


def _plain(hint: Any) -> Any:
    """``int`` of ``Annotated[int | None, ...]``."""
    if get_origin(hint) is Annotated:
        hint = get_args(hint)[0]
    if get_origin(hint) in (Union, types.UnionType):
        others = [one for one in get_args(hint) if one is not type(None)]
        return others[0] if len(others) == 1 else hint
    return hint


def _info(hint: Any) -> Any:
    """typer's declaration in a type, None if there is none."""
    marks = get_args(hint)[1:] if get_origin(hint) is Annotated else ()
    return next((mark for mark in marks if hasattr(mark, "param_decls")), None)


def _option(parameter: str, hint: Any) -> str:
    """The option's spelling; an argument's is its name."""
    info = _info(hint)
    # In an annotation the first of the spellings stands where a default would.
    spelt = [getattr(info, "default", None), *(getattr(info, "param_decls", None) or ())]
    for word in spelt:
        if isinstance(word, str) and word.startswith("--"):
            return word.split("/")[0]
    return parameter if type(info).__name__ == "ArgumentInfo" else "--" + parameter.replace("_", "-")


def _key(option: str) -> str:
    return option.removeprefix("--").replace("-", "_")


def _shown(hint: Any) -> Any:
    """The type for the command line: numbers are text there, which the model reads, and help keeps its brackets."""
    info = _info(hint)
    if info is None:
        return hint
    kept = copy(info)
    kept.help = _escaped(info.help)
    if _plain(hint) is not float:
        return Annotated[get_args(hint)[0], kept]
    kept.metavar = info.metavar or "<number>"
    optional = type(None) in get_args(get_args(hint)[0])
    return Annotated[str | None if optional else str, kept]


def _checked(hint: Any) -> Any:
    """The type for the model: numbers may be fractions, and ``--set`` may be a table of tables."""
    from pydantic import BeforeValidator

    bare = get_args(hint)[0] if get_origin(hint) is Annotated else hint
    if _plain(hint) is float:
        return Annotated[bare, BeforeValidator(_number)]
    if _option("", hint) == _SET:
        return Annotated[bare, BeforeValidator(assignments)]
    return bare


def _number(value: Any) -> Any:
    return number(value) if isinstance(value, str) else value


def _added(name: str, option: str, help: str, **more: Any) -> inspect.Parameter:
    declared = typer.Option(option, help=help, metavar="<file>", rich_help_panel=PANEL, **more)
    kind = Annotated[Path | None, declared]
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=kind)


def _flowing(text: str | None) -> str:
    """Paragraphs as one line each, which the terminal breaks; what is indented keeps its lines."""
    paragraphs = inspect.cleandoc(text or "").split("\n\n")
    return "\n\n".join(p if p.startswith(" ") else " ".join(p.split("\n")) for p in paragraphs)


def _escaped(text: str | None) -> str | None:
    """Names of extras in brackets are no markup."""
    return None if text is None else _TAG.sub(r"\\[", text)
