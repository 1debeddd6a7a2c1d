"""JSON Schema as HTML, for `page`."""

import json
import re
from html import escape
from typing import Any

from ojs_fast.api.openapi.schema import DURATION, PERIOD, Schema

_LINK = re.compile(r"\[([^\]]+)\]\((https://[^)]+)\)")
_CODE = re.compile(r"`([^`]+)`")
_NAMED = {DURATION: "ISO 8601 duration", PERIOD: "ISO 8601 duration"}
_LIMITS = (
    ("minLength", "maxLength", "characters"),
    ("minItems", "maxItems", "elements"),
    ("minProperties", "maxProperties", "members"),
    ("minimum", "maximum", ""),
)


def prose(text: str) -> str:
    """A sentence with `code` and links as HTML."""
    linked = _LINK.sub(r'<a href="\2">\1</a>', escape(text, quote=False))
    return _CODE.sub(r"<code>\1</code>", linked)


def anchor(name: str) -> str:
    """Where a shared shape stands on the page."""
    return f"shape-{name}"


def link(name: str) -> str:
    """A link to a shared shape."""
    return f'<a href="#{anchor(name)}">{escape(name)}</a>'


def tree(schema: Schema) -> str:
    """A whole shape: its facts, then its members, with theirs inside."""
    inside = _inside(schema)
    is_plain = bool(inside) and schema.get("type") == "object"
    about = " ".join(part for part in ("" if is_plain else facts(schema), _text(schema)) if part)
    return f'<div class="tree">{about}{inside}</div>'


def facts(schema: Schema) -> str:
    """What a value must be, in one line."""
    if "$ref" in schema:
        return link(schema["$ref"].rpartition("/")[2])
    if "const" in schema:
        return f"<code>{_json(schema['const'])}</code>"
    kind = schema.get("type", "")
    kinds = kind if isinstance(kind, list) else [kind] if kind else []
    words = [_kind(schema, one) for one in kinds if one != "null"]
    if not kinds and "anyOf" in schema and not _has_parts(schema):
        words = [" or ".join(facts(one) for one in schema["anyOf"] if one != {"type": "null"})]
    told = " ".join([*words, *_bounds(schema)])
    if "default" in schema:
        told += f' <span class="default">default <code>{_json(schema["default"])}</code></span>'
    return f'<span class="facts">{told}</span>' if told else ""


def _kind(schema: Schema, kind: str) -> str:
    if "enum" in schema:
        return " · ".join(f"<code>{escape(str(one))}</code>" for one in schema["enum"])
    if kind == "array":
        inner = facts(schema["items"]) if schema.get("items") else "anything"
        return f"array of {inner or 'objects'}"
    if kind == "object" and isinstance(schema.get("additionalProperties"), dict) and "properties" not in schema:
        return f"object of {facts(schema['additionalProperties']) or 'objects'}"
    return _NAMED.get(schema.get("pattern", ""), schema.get("format") or kind)


def _bounds(schema: Schema) -> list[str]:
    found = []
    for low, high, unit in _LIMITS:
        least, most = schema.get(low), schema.get(high)
        if least is None and most is None:
            continue
        text = f"{least:,} to {most:,}" if None not in (least, most) else (
            f"from {least:,}" if most is None else f"up to {most:,}"
        )  # fmt: skip
        if most is not None and most >= 10**16:
            text = f"from {least:,}"
        found.append(f"{text} {unit}".strip())
    pattern = schema.get("pattern")
    if pattern and pattern not in _NAMED and schema.get("format") != "uuid":
        found.append(f'<code class="pattern">{escape(pattern)}</code>')
    return found


def _has_parts(schema: Schema) -> bool:
    """Whether one of several shapes has members of its own to show."""
    return any("properties" in one or "allOf" in one for one in schema.get("anyOf", []))


def _inside(schema: Schema) -> str:
    if "allOf" in schema and "properties" not in schema:
        return "".join(tree(one) for one in schema["allOf"])
    if "anyOf" in schema and _has_parts(schema) and "properties" not in schema:
        parts = [one for one in schema["anyOf"] if one != {"type": "null"}]
        return '<div class="or">or</div>'.join(tree(one) for one in parts)
    if schema.get("type") == "array" or "array" in (schema.get("type") or []):
        return _inside(schema.get("items", {}))
    members = schema.get("properties", {})
    if not members:
        return ""
    required = schema.get("required", [])
    rows = [_row(name, one, is_required=name in required) for name, one in members.items()]
    return f'<div class="members">{"".join(rows)}</div>'


def _row(name: str, schema: Schema, *, is_required: bool) -> str:
    mark = '<b class="required" title="always there">*</b>' if is_required else ""
    return f"<div><code>{escape(name)}</code>{mark}</div><div>{facts(schema)} {_text(schema)}{_inside(schema)}</div>"


def _text(schema: Schema) -> str:
    return prose(schema.get("description", ""))


def _json(value: Any) -> str:
    return escape(json.dumps(value, ensure_ascii=False), quote=False)
