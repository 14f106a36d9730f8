"""
Strict settings: YAML checked by pydantic, every mistake named by key, value and rule.

Shared by the config of an experiment and the settings of plugins. Relative paths are relative to
the YAML file; ``${NAME}`` in a path stands for an environment variable.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_args, get_origin

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    PlainValidator,
    ValidationError,
    ValidationInfo,
)
from pydantic.fields import FieldInfo

from butterfly_sdm.errors import ConfigError, MissingFileError, did_you_mean


def _resolve(path: Path, info: ValidationInfo) -> Path:
    text = str(path)
    for name in re.findall(r"\$\{(\w+)\}", text):
        if name not in os.environ:
            raise ValueError(
                f"the environment variable {name} is not set; set it to the folder meant by it"
            )
        text = text.replace(f"${{{name}}}", os.environ[name])
    base = (info.context or {}).get("base")
    return Path(base, text) if base is not None else Path(text)


def _resolve_source(value: Any, info: ValidationInfo) -> Path | str:
    if not isinstance(value, str | Path):
        raise ValueError("input should be a path, or an address that begins with https://")
    return (
        value
        if isinstance(value, str) and ("://" in value or value.startswith("/vsi"))
        else _resolve(Path(value), info)
    )


LARGEST_BYTES = 1 << 20
MOST_VALUES = 100_000
# what yaml raises for 2018-13-45 or !!bool x
_BAD_SCALAR = (
    ValueError,
    TypeError,
    KeyError,
    AttributeError,
    OverflowError,
)

InputPath = Annotated[Path, AfterValidator(_resolve)]
# text where it lies on the network
InputSource = Annotated[Path | str, PlainValidator(_resolve_source)]
Fraction = Annotated[float, Field(ge=0, le=1)]


def _resolve_name(text: str, info: ValidationInfo) -> str:
    place, colon, function = text.partition(":")
    base = Path((info.context or {}).get("base") or ".")
    if colon and re.fullmatch(r"[\w.]+", place) and function.isidentifier():
        beside = base / f"{place.replace('.', '/')}.py"
        return f"{beside}:{function}" if beside.is_file() else text
    return str(_resolve(Path(text), info)) if "." in text or "/" in text or "$" in text else text


# A file beside the YAML, ``module:function`` (a module beside the YAML first), or a plain name.
FileOrName = Annotated[str, AfterValidator(_resolve_name)]


def _resolve_option(text: str, info: ValidationInfo) -> str:
    return str(_resolve(Path(text), info)) if "${" in text else text


# Of a baseline: text with ${NAME} in it is a path.
Options = dict[str, float | int | bool | Annotated[str, AfterValidator(_resolve_option)]]


class _Loader(yaml.SafeLoader):
    """
    Plain values only, each key once. What YAML 1.1 takes for a number and YAML 1.2 does not, as
    190:20:30 (to the base of 60) and 010 (eight), is text; 1e-5 is a number.
    """

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        """Refuse a second value of a key, which would take the place of the first in silence."""
        node: yaml.MappingNode = super().compose_mapping_node(anchor)
        lines: dict[str, int] = {}
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode) or key.tag == "tag:yaml.org,2002:merge":
                continue
            if key.value in lines:
                problem = (
                    f"the key {key.value!r} is given a second time, first at line "
                    f"{lines[key.value]}; keep one of the two"
                )
                raise yaml.constructor.ConstructorError(None, None, problem, key.start_mark)
            lines[key.value] = key.start_mark.line + 1
        return node


_NUMBERS = ("tag:yaml.org,2002:int", "tag:yaml.org,2002:float")
_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in known if tag not in _NUMBERS]
    for first, known in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:int",
    re.compile(r"[-+]?(0|[1-9][0-9_]*|0b[01_]+|0x[0-9a-fA-F_]+)$"),
    list("-+0123456789"),
)
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(
        r"[-+]?([0-9][0-9_]*\.[0-9_]*([eE][-+]?[0-9]+)?|\.[0-9][0-9_]*([eE][-+]?[0-9]+)?"
        r"|[0-9]+[eE][-+]?[0-9]+|\.(inf|Inf|INF))$|\.(nan|NaN|NAN)$"
    ),
    list("-+0123456789."),
)


def unset(value: object) -> bool:
    """
    Tell whether a setting is null: as ``exclude_if`` of a field it keeps what is newer than the key
    of finished work out of what is stored, while nobody asks for it.
    """
    return value is None


def empty(value: object) -> bool:
    """Tell whether a setting is null, false, zero or holds nothing; see :func:`unset`."""
    return not value


class Section(BaseModel):
    """Base of all sections: no unknown keys, no silent conversion, no change after loading."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


S = TypeVar("S", bound=Section)


def load_settings(
    model: type[S],
    source: str | Path | Mapping[str, Any],
    overrides: Iterable[str] = (),
    *,
    example: str = "key=value",
    starter: str = "butterfly-sdm init",
) -> tuple[S, Path | None]:
    """
    Read and check settings.

    Parameters
    ----------
    model
        What they have to be.
    source
        YAML file, or its content as a mapping (paths then relative to the working directory).
    overrides
        ``key=value`` pairs with dotted keys, values as YAML.
    example
        An override that makes sense here, for the message about one that does not.
    starter
        The command that writes a first file, for the message that there is none.

    Returns
    -------
    settings, folder
        ``folder`` is that of the file; None for a mapping.

    Raises
    ------
    MissingFileError
        The file does not exist.
    ConfigError
        It is not YAML, or a key, type or value is wrong.
    """
    base: Path | None = None
    label = "the config"
    if isinstance(source, Mapping):
        value = _plain(source)
    else:
        path = Path(source)
        if (path / "config.yaml").is_file():
            raise MissingFileError(
                f"{path} is a folder. Give the YAML itself, such as {path / 'config.yaml'}."
            )
        if not path.is_file():
            raise MissingFileError(
                f"There is no config file {path}. Write a first one with: {starter}"
            )
        label, base = str(path), path.resolve().parent
        value = _read_yaml(path, model)
    for override in overrides:
        _override(value, override, example)
    try:
        # JSON mode: strict about types, yet a YAML list may stand for a tuple and text for a path.
        # Paths become absolute: a run keeps its config in a folder of its own, where relative ones
        # would mean something else.
        context = {"base": base if base is not None else Path.cwd()}
        return model.model_validate_json(json.dumps(value, default=str), context=context), base
    except ValidationError as error:
        raise ConfigError(_explain(error, label, model)) from None


def _plain(source: Mapping[str, Any]) -> Any:
    """Return a copy of settings given as a mapping, as they would come from a file."""
    try:
        _weigh(dict(source), [MOST_VALUES])
        return json.loads(json.dumps(dict(source), default=str))
    except ValueError as error:
        raise ConfigError(f"the config cannot be read: {error}.") from error


def commented(section: type[Section], indent: int, skip: Iterable[str] = ()) -> list[str]:
    """Return one YAML line per plain setting: its default, commented out, and its meaning."""
    lines = []
    for key, field in section.model_fields.items():
        default = field.get_default(call_default_factory=True)
        if key in skip or isinstance(default, BaseModel) or field.is_required():
            continue
        value = json.dumps(default, default=_as_json, ensure_ascii=False)
        notes = [note for note in (_choices(field.annotation), field.description) if note]
        lines.append(f"{' ' * indent}# {key}: {value}{'    # ' if notes else ''}{'; '.join(notes)}")
    return lines


def _as_json(value: Any) -> Any:
    return value.model_dump(mode="json") if isinstance(value, BaseModel) else str(value)


def _choices(annotation: Any) -> str:
    """Return the values a setting may have, if they can be listed."""
    choices = [
        value
        for part in (annotation, *get_args(annotation))
        if get_origin(part) is Literal
        for value in get_args(part)
    ]
    return "one of " + ", ".join(map(str, choices)) if len(choices) > 1 else ""


def _read_yaml(path: Path, model: type[BaseModel]) -> dict[str, Any]:
    size = path.stat().st_size
    if size > LARGEST_BYTES:
        raise ConfigError(
            f"{path} has {size:,} bytes; a config has at most {LARGEST_BYTES:,}. Is it the file "
            "you mean?"
        )
    try:
        value = _parse(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ConfigError(f"{path} is not YAML{error}") from error
    if value is None:
        value = {}
    if not isinstance(value, dict):
        raise ConfigError(
            f"{path} holds a {type(value).__name__}; a config is a mapping with the keys "
            f"{_names(model)}."
        )
    return value


def _parse(text: str) -> Any:
    """Return what a YAML text holds; a ValueError says where and why it cannot be read."""
    try:
        value = yaml.load(text, Loader=_Loader)
        _weigh(value, [MOST_VALUES])
    except RecursionError as error:
        raise ValueError(": it is nested too deeply, or holds itself.") from error
    except (yaml.YAMLError, *_BAD_SCALAR) as error:
        where = getattr(error, "problem_mark", None)
        line = f" at line {where.line + 1}" if where is not None else ""
        raise ValueError(f"{line}: {getattr(error, 'problem', None) or error}.") from error
    return value


def _weigh(value: Any, left: list[int]) -> None:
    """
    Refuse keys that are no text, and more values than a config has: aliases of aliases make
    billions of a few lines.
    """
    left[0] -= 1
    if left[0] < 0:
        raise ValueError(
            f"it stands for more than {MOST_VALUES:,} values, by aliases of aliases or of itself"
        )
    if isinstance(value, int) and abs(value) >= 1 << 63:
        raise ValueError(f"a number of {value.bit_length()} bits stands there; 63 are the most")
    if isinstance(value, dict):
        for key, item in value.items():
            if not isinstance(key, str | int | float | None):
                raise ValueError(f"the key {key!r} is a {type(key).__name__}; keys are text")
            _weigh(item, left)
    elif isinstance(value, list | tuple | set):
        for item in value:
            _weigh(item, left)


def _override(value: dict[str, Any], override: str, example: str) -> None:
    key, separator, text = override.partition("=")
    if not separator or not key.strip():
        raise ConfigError(f"--set {override!r} is not key=value, such as --set {example}")
    try:
        new = _parse(text)
    except ValueError as error:
        raise ConfigError(f"--set {override!r}: the value is not YAML{error}") from error
    *parents, last = key.strip().split(".")
    for parent in parents:
        child = value.get(parent)
        if child is None:
            child = value[parent] = {}
        if not isinstance(child, dict):
            raise ConfigError(
                f"--set {override!r}: {parent} holds the value {child!r}, it has no key {last!r}."
            )
        value = child
    value[last] = new


def _names(model: type[BaseModel]) -> str:
    return ", ".join(model.model_fields)


def _explain(error: ValidationError, label: str, model: type[BaseModel]) -> str:
    """Say each problem as key, value, rule and, for an unknown key, the nearest one."""
    lines = []
    for problem in error.errors(include_url=False):
        # Members of a union appear as parts such as "tuple[...]" or "int": no keys of the file.
        members = {"int", "str", "float", "bool"}
        location = tuple(
            part for part in problem["loc"] if "[" not in str(part) and part not in members
        )
        key = ".".join(map(str, location)) or "the whole file"
        if problem["type"] == "extra_forbidden":
            known = _known_keys(model, problem["loc"][:-1])
            hint = (
                did_you_mean(problem["loc"][-1], known).strip()
                or f"Known keys: {', '.join(known)}."
            )
            lines.append(f"{key} is an unknown key; {hint[0].lower()}{hint[1:]}")
        elif problem["type"] == "missing":
            lines.append(f"{key} is missing; it is required.")
        else:
            message = problem["msg"].removeprefix("Value error, ")
            message = message[0].lower() + message[1:]
            if problem["type"] in ("dict_type", "model_type", "model_attributes_type"):
                message = f"a mapping is needed, {_meaning(model, problem['loc'])}"
            choices = (
                re.findall(r"'([^']+)'", message) if problem["type"] == "literal_error" else []
            )
            hint = did_you_mean(problem["input"], choices)
            given = json.dumps(problem["input"], default=str)[:80]
            is_said = f"{key} is empty" if problem["input"] is None else f"{key} = {given}"
            lines.append(f"{is_said}: {message}.{hint}")
    unique = list({line.split(" ", 1)[0]: line for line in reversed(lines)}.values())[::-1]
    return f"{label}: " + (
        unique[0]
        if len(unique) == 1
        else "\n".join(["several problems", *(f"  {u}" for u in unique)])
    )


def _meaning(model: Any, location: tuple[int | str, ...]) -> str:
    """Return what a mapping of settings holds: its keys, or what its field says."""
    section, field = _reached(model, location)
    if field is not None and dict in (field.annotation, get_origin(field.annotation)):
        return f"key: value ({field.description})"
    return f"with keys such as {', '.join(list(section.model_fields)[:5])}"


def _known_keys(model: Any, location: tuple[int | str, ...]) -> list[str]:
    return list(_reached(model, location)[0].model_fields)


def _reached(model: Any, location: tuple[int | str, ...]) -> tuple[Any, FieldInfo | None]:
    """Return the section that a location leads to, and the last field on the way."""
    field = None
    for part in location:
        found = getattr(model, "model_fields", {}).get(part)
        if found is None:
            continue
        field = found
        for candidate in (field.annotation, *getattr(field.annotation, "__args__", ())):
            if isinstance(candidate, type) and issubclass(candidate, BaseModel):
                model = candidate
    return model, field
