"""Tells the OpenAPI page which requests take no field that they don't name."""

from typing import Any

from drf_spectacular.extensions import OpenApiSerializerExtension


class StrictBody(OpenApiSerializerExtension):  # type: ignore[no-untyped-call]
    target_class = "audit.api.Strict"
    match_subclasses = True

    def map_serializer(self, auto_schema: Any, direction: Any) -> Any:
        schema = auto_schema._map_serializer(self.target, direction, bypass_extensions=True)
        if schema.get("type") != "object":
            return schema
        properties = {name: _unblank(shape) for name, shape in schema["properties"].items()}
        return {**schema, "properties": properties, "additionalProperties": False}


def _unblank(shape: Any) -> Any:
    """Text that may not be blank may not be spaces alone either; these are what Python takes for spaces."""
    if shape.get("items"):
        return {**shape, "items": _unblank(shape["items"])}
    plain = shape.get("type") == "string" and shape.get("minLength") and "pattern" not in shape
    return {**shape, "pattern": r"[^\s\x1c-\x1f\x85]"} if plain else shape
