"""Random JSON schemas whose values are short, and a slow, obvious check of values against them."""

from __future__ import annotations

import random
from typing import Any

WORDS = ("red", "green", "blue", "north", "é", 'quo"te', "back\\slash", "")


def random_schema(source: random.Random, depth: int = 2) -> dict[str, Any]:
    """An object, array, enum, constant, bounded text, bounded number, null, boolean, or a choice of two schemas."""
    kinds = ["enum", "const", "string", "integer", "boolean", "null"]
    if depth:
        kinds += ["object", "object", "array", "anyOf"]
    match source.choice(kinds):
        case "object":
            names = source.sample(["a", "bb", "name", "x_y", "é"], source.randint(1, 3))
            required = [name for name in names if source.random() < 0.7]
            properties = {name: random_schema(source, depth - 1) for name in names}
            return {"type": "object", "properties": properties, "required": required, "additionalProperties": False}
        case "array":
            least = source.randint(0, 2)
            items = random_schema(source, depth - 1)
            return {"type": "array", "items": items, "minItems": least, "maxItems": least + source.randint(0, 2)}
        case "anyOf":
            return {"anyOf": [random_schema(source, depth - 1), random_schema(source, depth - 1)]}
        case "enum":
            return {"enum": source.sample(WORDS, 3)}
        case "const":
            return {"const": source.choice([1, "one", True, None])}
        case "string":
            return {"type": "string", "minLength": 1, "maxLength": source.randint(1, 4)}
        case "integer":
            low = source.randint(-20, 20)
            return {"type": "integer", "minimum": low, "maximum": low + source.randint(0, 300)}
        case kind:
            return {"type": kind}


def fits(value: Any, schema: dict[str, Any]) -> bool:
    """Whether a value is one that such a schema describes."""
    if "anyOf" in schema:
        return any(fits(value, option) for option in schema["anyOf"])
    if "enum" in schema:
        return value in schema["enum"]
    if "const" in schema:
        return type(value) is type(schema["const"]) and value == schema["const"]
    match schema["type"]:
        case "object":
            known = schema["properties"]
            if not isinstance(value, dict) or not set(schema.get("required", ())) <= set(value) <= set(known):
                return False
            return all(fits(own, known[name]) for name, own in value.items())
        case "array":
            bounded = isinstance(value, list) and schema["minItems"] <= len(value) <= schema["maxItems"]
            return bounded and all(fits(item, schema["items"]) for item in value)
        case "string":
            return isinstance(value, str) and schema.get("minLength", 0) <= len(value) <= schema.get("maxLength", 10**9)
        case "integer":
            return type(value) is int and schema.get("minimum", value) <= value <= schema.get("maximum", value)
        case "boolean":
            return isinstance(value, bool)
        case "null":
            return value is None
    raise AssertionError(f"no check for {schema}")
