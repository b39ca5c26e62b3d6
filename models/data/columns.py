"""Which columns of a table hold its images and their labels, and what its classes are called."""

import json
from typing import Any, NamedTuple

import pyarrow as pa

from models.errors import DataError

IMAGE_COLUMNS = ("image", "img", "jpg", "jpeg", "png", "webp")
LABEL_COLUMNS = ("label", "labels", "fine_label", "cls")


class Columns(NamedTuple):
    """The two columns by name, and the classes by number where the features of the table name them."""

    image: str
    label: str
    names: tuple[str, ...] | None


def find_columns(schema: pa.Schema, where: str) -> Columns:
    """The columns to read: by the features that Hugging Face's `datasets` keeps in the schema, else by their types.

    Raises:
        DataError: no column can be it, or several can; the message lists all columns.
    """
    features = _features(schema)
    images = [field.name for field in schema if _holds_images(field.type)]
    labelled = [
        name for name, feature in features.items() if feature.get("_type") == "ClassLabel" and name in schema.names
    ]
    numbers = [field.name for field in schema if pa.types.is_integer(field.type)]
    named = [name for name in LABEL_COLUMNS if name in schema.names and _holds_labels(schema.field(name).type)]
    label = _only("label", LABEL_COLUMNS, [labelled, named, numbers], schema, where)
    names = features.get(label, {}).get("names")
    image = _only("image", IMAGE_COLUMNS, [images], schema, where)
    return Columns(image, label, tuple(map(str, names)) if names else None)


def _only(kind: str, usual: tuple[str, ...], ways: list[list[str]], schema: pa.Schema, where: str) -> str:
    """Of the first way that finds columns the only one, or the one of the most usual name."""
    found = next((way for way in ways if way), [])
    chosen = found if len(found) == 1 else [name for name in usual if name in found]
    if not chosen:
        listed = ", ".join(f"{field.name} ({field.type})" for field in schema)
        what = f"several could be, {', '.join(found)}; name one of them" if found else "none can be; name one"
        raise DataError(f"{where}: which column is the {kind}? {what} {kind!r}. Columns: {listed}")
    return chosen[0]


def _features(schema: pa.Schema) -> dict[str, dict[str, Any]]:
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
        return {name: feature for name, feature in features.items() if isinstance(feature, dict)}
    except (KeyError, ValueError, TypeError, AttributeError):
        return {}


def _holds_images(kind: pa.DataType) -> bool:
    if pa.types.is_struct(kind):
        return any(field.name == "bytes" and _is_binary(field.type) for field in kind)
    return _is_binary(kind)


def _is_binary(kind: pa.DataType) -> bool:
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def _holds_labels(kind: pa.DataType) -> bool:
    text = kind.value_type if pa.types.is_dictionary(kind) else kind
    return bool(pa.types.is_integer(kind) or pa.types.is_string(text) or pa.types.is_large_string(text))
