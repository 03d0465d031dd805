"""Writes the pages on file formats: `<!-- fields: MODULE SCHEMA -->` becomes a table for every type in the schema.

Types and defaults come from the published JSON Schema, meanings from the words under each field in the sources.
"""

import ast
import importlib
import inspect
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mkdocs.structure.pages import Page

_MARK = re.compile(r"<!-- fields: (\S+) (\S+) -->")
_DOCS = Path(__file__).parents[1]
_PREFIX = "#/$defs/"


def on_page_markdown(markdown: str, page: "Page", **_: Any) -> str:
    """Put the tables in the place of their mark."""
    return _MARK.sub(lambda found: tables(*found.groups()), markdown)


def tables(module: str, schema: str) -> str:
    """Return the Markdown for every type of the schema, each after the one that first mentions it."""
    document = json.loads((_DOCS / schema).read_text())
    words = field_words(module)
    types = document["$defs"]
    order = [document["$ref"].removeprefix(_PREFIX)]
    for name in order:  # grows while it is walked
        order += [found for found in _mentioned(types[name]) if found not in order]
    return "\n".join(line for name in order for line in _table(name, types[name], words[name]))


def field_words(module: str) -> dict[str, dict[str, str]]:
    """Return the fields of each class of the module, in order, with the text that stands under each."""
    found: dict[str, dict[str, str]] = {}
    for node in ast.parse(inspect.getsource(importlib.import_module(module))).body:
        if isinstance(node, ast.ClassDef):
            found[node.name] = dict(_words_in(node))
    return found


def _words_in(node: ast.ClassDef) -> Iterator[tuple[str, str]]:
    for field, below in zip(node.body, [*node.body[1:], ast.Pass()], strict=True):
        match field, below:
            case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(value=ast.Constant(value=str() as text)):
                yield name, " ".join(text.split())
            case ast.AnnAssign(target=ast.Name(id=name)), _:
                yield name, ""


def _mentioned(schema: Any) -> list[str]:
    text = json.dumps(schema)
    return list(dict.fromkeys(re.findall(r'"#/\$defs/(\w+)"', text)))


def _table(name: str, schema: Any, words: dict[str, str]) -> Iterator[str]:
    yield f"\n## {name}\n"
    yield inspect.cleandoc(schema.get("description", "")) + "\n"
    yield from ("| field | type | unless given | meaning |", "| --- | --- | --- | --- |")
    required = schema.get("required", [])
    for field in words:
        kind = schema["properties"][field]
        default = "*must be there*" if field in required else f"`{json.dumps(kind.get('default'))}`"
        meaning = words[field].replace("|", "\\|")
        yield f"| `{field}` | {shown(kind)} | {default} | {meaning} |"


def shown(kind: Any) -> str:
    """Return a type of the schema in words, such as `list of integer, or null`."""
    if "$ref" in kind:
        name = kind["$ref"].removeprefix(_PREFIX)
        return f"[{name}](#{name.lower()})"
    if "anyOf" in kind:
        return ", or ".join(shown(choice) for choice in kind["anyOf"])
    if "enum" in kind:
        return ", ".join(f"`{value}`" for value in kind["enum"])
    if kind.get("prefixItems"):
        return f"[{', '.join(shown(item) for item in kind['prefixItems'])}]"
    if kind.get("type") == "array":
        return f"list of {shown(kind['items'])}"
    if kind.get("type") == "object":
        return f"map of name to {shown(kind['additionalProperties'])}"
    return str(kind["type"])
