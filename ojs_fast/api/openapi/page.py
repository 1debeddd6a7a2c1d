"""The document as a page for people: no script, nothing from elsewhere, light and dark, also on a phone."""

import base64
import hashlib
import json
import re
from collections.abc import Iterator
from html import escape
from typing import Any

from ojs_fast.api.openapi import shapes
from ojs_fast.api.openapi.builder import SCHEME, Document, resolved
from ojs_fast.api.openapi.schema import Schema, ref
from ojs_fast.api.openapi.shapes import prose
from ojs_fast.api.openapi.style import STYLE

STYLE_DIGEST = "sha256-" + base64.b64encode(hashlib.sha256(STYLE.encode()).digest()).decode()
_METHODS = ("get", "post", "put", "patch", "delete")


def render(document: Document) -> str:
    """The whole page."""
    info = document["info"]
    parts = [
        "<!doctype html>",
        '<html lang="en"><head><meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<title>{escape(info['title'])} {escape(info['version'])}</title>",
        f"<style>{STYLE}</style></head><body>",
        f"<header><h1>{escape(info['title'])} <small>{escape(info['version'])}</small></h1>",
        *(f"<p>{prose(one)}</p>" for one in info["description"].split("\n\n")),
        *(f"<p>{_header(one)}</p>" for one in document["components"]["parameters"].values()),
        '<p>This page is made from <a href="/openapi.json">openapi.json</a> (OpenAPI 3.1).</p></header>',
        f"<nav>{_links(document)}</nav><main>",
        *_sections(document),
        '<section><h2 id="shapes">Shapes</h2><p>What requests and answers are made of.</p>',
        *(_shape(name, schema) for name, schema in document["components"]["schemas"].items()),
        "</section></main></body></html>",
    ]
    return "\n".join(parts)


def _header(parameter: dict[str, Any]) -> str:
    return f"Every request may have the header <code>{parameter['name']}</code>: {prose(parameter['description'])}."


def _slug(tag: str) -> str:
    return "tag-" + tag.lower().replace(" ", "-")


def _links(document: Document) -> str:
    tags = [(one["name"], _slug(one["name"])) for one in document["tags"]]
    return "".join(f'<a href="#{slug}">{escape(name)}</a>' for name, slug in [*tags, ("Shapes", "shapes")])


def _sections(document: Document) -> Iterator[str]:
    for tag in document["tags"]:
        yield f'<section><h2 id="{_slug(tag["name"])}">{escape(tag["name"])}</h2><p>{prose(tag["description"])}</p>'
        for path, item in document["paths"].items():
            for method in _METHODS:
                if method in item and tag["name"] in item[method]["tags"]:
                    yield _operation(document, method, path, item[method])
        yield "</section>"


def _operation(document: Document, method: str, path: str, operation: dict[str, Any]) -> str:
    needed = [scope for one in operation["security"] for scope in one.get(SCHEME, [])]
    scope = f'<span class="scope">{escape(needed[0])}</span>' if needed else '<span class="scope open">open</span>'
    shown = re.sub(r"(\{\w+\})", r"<i>\1</i>", escape(path).replace("/", "/<wbr>"))
    parts = [
        f'<details class="operation {method}"><summary><b>{method.upper()}</b><code>{shown}</code>',
        f'<span class="what">{prose(operation["summary"])}</span>{scope}</summary>',
        f'<div class="body" id="{operation["operationId"]}">',
    ]
    if "description" in operation:
        parts.append(f"<p>{prose(operation['description'])}</p>")
    parts.append(f"<pre>{escape(_curl(document, method, path, operation))}</pre>")
    parts += _parameters(operation)
    if "requestBody" in operation:
        body = operation["requestBody"]
        needed_word = "" if body["required"] else " <small>optional</small>"
        schema = next(iter(body["content"].values()))["schema"]
        parts.append(f"<h3>Body{needed_word}</h3>{_whole(document, schema)}")
    parts.append("<h3>Answers</h3>")
    parts += _answers(document, operation)
    parts.append("</div></details>")
    return "".join(parts)


def _parameters(operation: dict[str, Any]) -> Iterator[str]:
    found = [one for one in operation["parameters"] if "$ref" not in one]
    if not found:
        return
    yield '<h3>Parameters</h3><div class="members">'
    for one in found:
        place = "" if one["in"] == "path" else f" <small>{one['in']}</small>"
        facts = shapes.facts({name: value for name, value in one["schema"].items() if name != "description"})
        text = prose(one.get("description", ""))
        yield f"<div><code>{escape(one['name'])}</code>{place}</div><div>{facts} {text}</div>"
    yield "</div>"


def _answers(document: Document, operation: dict[str, Any]) -> Iterator[str]:
    common = []
    for status, one in operation["responses"].items():
        answer = resolved(document, one)
        if "$ref" in one:
            common.append(f"<b>{status}</b> {prose(answer['description'])}")
            continue
        names = [name for name in answer["headers"] if name not in ("OJS-Version", "X-Request-Id")]
        headers = ", ".join(f"<code>{name}</code>" for name in names)
        yield f'<div class="answer s{status[0]}"><b>{status}</b> {prose(answer["description"])}'
        if headers:
            yield f'<p class="headers">Headers: {headers}</p>'
        kinds = list(answer.get("content", {}))
        if kinds and not kinds[0].endswith("json"):
            yield f"<p><code>{kinds[0]}</code></p>"
        elif kinds:
            yield _whole(document, answer["content"][kinds[0]]["schema"])
        yield "</div>"
    if common:
        yield f'<p class="common">As everywhere ({shapes.link("ErrorResponse")}): {"; ".join(common)}.</p>'


def _whole(document: Document, schema: Schema) -> str:
    """A shape, with the members of a shared one that it is as a whole; what an error looks like is told once."""
    if schema == ref("ErrorResponse"):
        return ""
    if "$ref" not in schema:
        return shapes.tree(schema)
    return f"<div>{shapes.facts(schema)}</div>{shapes.tree(resolved(document, schema))}"


def _shape(name: str, schema: Schema) -> str:
    example = schema.get("examples", [])
    shown = "".join(f"<pre>{escape(json.dumps(one, indent=2, ensure_ascii=False))}</pre>" for one in example)
    return (
        f'<details class="shape"><summary><code>{escape(name)}</code></summary>'
        f'<div class="body" id="{shapes.anchor(name)}">{shapes.tree(schema)}{shown}</div></details>'
    )


# -- how to call it ------------------------------------------------------------------------------


def _curl(document: Document, method: str, path: str, operation: dict[str, Any]) -> str:
    for one in operation["parameters"]:
        if one.get("in") == "path":
            example = one["schema"].get("examples", [one["name"].upper()])[0]
            path = path.replace(f"{{{one['name']}}}", str(example))
    lines = [f"curl {'' if method == 'get' else f'-X {method.upper()} '}$URL{path}"]
    if operation["security"]:
        lines.append('-H "Authorization: Bearer $KEY"')
    if "requestBody" in operation:
        schema = next(iter(operation["requestBody"]["content"].values()))["schema"]
        lines.append("-H 'Content-Type: application/json'")
        lines.append(f"-d '{json.dumps(_example(document, schema), ensure_ascii=False)}'")
    return " \\\n  ".join(lines)


def _example(document: Document, schema: Schema) -> Any:
    if "examples" in schema:
        return schema["examples"][0]
    if "$ref" in schema:
        return _example(document, resolved(document, schema))
    members = schema.get("properties", {})
    return {name: _member(document, members[name]) for name in schema.get("required", [])}


def _member(document: Document, schema: Schema) -> Any:
    if "const" in schema:
        return schema["const"]
    if schema.get("type") == "array" and "examples" not in schema:
        return [_example(document, schema["items"])]
    return _example(document, schema)
