"""YAML as a recipe's author means it: PyYAML's safe loader without its surprises.

`1e-4` is a number (YAML 1.1 makes it text); `2024-01-01`, `1:30` and `017` are text (YAML 1.1 makes them a date, 90 and
15); and a key that stands twice in one mapping is an error, where the first value would be lost in silence.
"""

from __future__ import annotations

import re
from typing import Any

import yaml

_INT = re.compile(r"^[-+]?(?:0|[1-9][0-9_]*)$|^0x[0-9a-fA-F]+$")
_FLOAT = re.compile(
    r"""^(?:[-+]?(?:[0-9][0-9_]*\.[0-9_]*|\.[0-9][0-9_]*|[0-9][0-9_]*)(?:[eE][-+]?[0-9]+)
        |[-+]?(?:[0-9][0-9_]*\.[0-9_]*|\.[0-9][0-9_]*)
        |[-+]?\.(?:inf|Inf|INF)
        |\.(?:nan|NaN|NAN))$""",
    re.VERBOSE,
)


class _Loader(yaml.SafeLoader):
    """SafeLoader with our numbers, no dates, and no key twice."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """The mapping, after its own keys have been looked through."""
        seen: set[str] = set()
        for key, _ in node.value:
            # `<<` merges another mapping and may stand more than once.
            if isinstance(key, yaml.ScalarNode) and key.tag != "tag:yaml.org,2002:merge":
                if key.value in seen:
                    raise yaml.constructor.ConstructorError(
                        "while reading a mapping",
                        node.start_mark,
                        f"the key {key.value!r} stands in it twice; keep one",
                        key.start_mark,
                    )
                seen.add(key.value)
        return super().construct_mapping(node, deep)


class _Dumper(yaml.SafeDumper):
    """SafeDumper that quotes what `_Loader` would not read back as text."""

    def increase_indent(self, flow: bool = False, indentless: bool = False) -> None:
        """Lists stand further right than the key that they belong to."""
        super().increase_indent(flow, False)

    def represent_text(self, text: str) -> yaml.ScalarNode:
        """A string; with the rare line separators of Unicode in double quotes, where they are escaped."""
        style = '"' if any(mark in text for mark in "\x85\u2028\u2029\ufeff") else None
        return self.represent_scalar("tag:yaml.org,2002:str", text, style=style)


class _InlineDumper(_Dumper):
    """A _Dumper that keeps line breaks out of the line."""

    def represent_text(self, text: str) -> yaml.ScalarNode:
        """A string; in double quotes, where line breaks are escaped, if it has any."""
        if "\n" in text:
            return self.represent_scalar("tag:yaml.org,2002:str", text, style='"')
        return super().represent_text(text)


_Dumper.add_representer(str, _Dumper.represent_text)
_InlineDumper.add_representer(str, _InlineDumper.represent_text)

_REPLACED = {f"tag:yaml.org,2002:{kind}" for kind in ("int", "float", "timestamp", "value")}
_Resolvers = dict[str, list[tuple[str, re.Pattern[str]]]]


def _resolvers(base: _Resolvers) -> _Resolvers:
    """PyYAML's table (first character -> what a plain word may be) with our numbers and without dates."""
    table = {first: [pair for pair in pairs if pair[0] not in _REPLACED] for first, pairs in base.items()}
    for first in "-+.0123456789":
        table[first] = [("tag:yaml.org,2002:int", _INT), ("tag:yaml.org,2002:float", _FLOAT), *table.get(first, [])]
    return table


_Loader.yaml_implicit_resolvers = _resolvers(yaml.SafeLoader.yaml_implicit_resolvers)
_Dumper.yaml_implicit_resolvers = _resolvers(yaml.SafeDumper.yaml_implicit_resolvers)
_InlineDumper.yaml_implicit_resolvers = _Dumper.yaml_implicit_resolvers


def read_yaml(text: str) -> Any:
    """Plain values from YAML text. Raises ValueError with the place and the reason."""
    try:
        return yaml.load(text, Loader=_Loader)  # _Loader is a SafeLoader
    except yaml.YAMLError as error:
        raise ValueError(str(error)) from error
    except RecursionError as error:
        raise ValueError("nested too deeply") from error
    except (ValueError, LookupError, TypeError, AttributeError) as error:  # `!!int x` and its like
        raise ValueError(f"a value does not fit the tag before it ({error})") from error


def write_yaml(value: Any) -> str:
    """YAML text of plain values, in their order; `read_yaml` gives them back."""
    return yaml.dump(value, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=110)


def write_inline(value: Any) -> str:
    """`write_yaml` on one line, for a value inside a file that is put together line by line."""
    text = yaml.dump(
        value, Dumper=_InlineDumper, sort_keys=False, allow_unicode=True, width=2**20, default_flow_style=True
    )
    return text.removesuffix("\n").removesuffix("\n...")
