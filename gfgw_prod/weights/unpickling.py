"""Read pickles, such as DCP's ``.metadata``, without running any code that they refer to."""

from __future__ import annotations

import io
import pickle
from collections.abc import Mapping
from enum import Enum
from typing import Any, ClassVar

Name = tuple[str, str]  # module and qualified name
DCP = "torch.distributed.checkpoint"
# Everything that torch 2.9 writes into ``.metadata``. Each builds a plain value from plain values.
ALLOWED = frozenset(
    {
        *((f"{DCP}.metadata", name) for name in ("Metadata", "MetadataIndex", "StorageMeta", "_MEM_FORMAT_ENCODING")),
        *((f"{DCP}.metadata", name) for name in ("TensorStorageMetadata", "TensorProperties", "ChunkStorageMetadata")),
        (f"{DCP}.filesystem", "_StorageInfo"),
        ("torch", "Size"),
        ("torch.serialization", "_get_layout"),
        *(("torch", name) for name in ("float64", "float32", "float16", "bfloat16", "bool", "uint8")),
        *(("torch", name) for name in ("int8", "int16", "int32", "int64")),
    }
)


_PythonUnpickler: Any = pickle._Unpickler  # single opcodes can be refused, unlike in the C version


class DamagedError(Exception):
    """A checkpoint or its manifest is not what was written."""


class _Unpickler(_PythonUnpickler):  # type: ignore[misc]  # unknown to typeshed
    dispatch: ClassVar[dict[int, Any]] = dict(_PythonUnpickler.dispatch)

    def __init__(self, content: bytes, allowed: Mapping[Name, Any]):
        super().__init__(io.BytesIO(content))
        self._allowed = allowed

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in self._allowed:
            raise DamagedError(f"refers to {module}.{name}, which no checkpoint needs; nothing was run")
        stand_in = self._allowed[module, name]
        return super().find_class(module, name) if stand_in is None else stand_in

    def persistent_load(self, pid: Any) -> Any:
        raise DamagedError("refers to an outside object, which no checkpoint needs; nothing was run")

    def load_build(self) -> None:
        # Applied to a class it would set the class's attributes, for the rest of this process.
        if isinstance(self.stack[-2], type) or callable(self.stack[-2]):
            raise DamagedError("changes a class, which no checkpoint needs; nothing was run")
        super().load_build()

    dispatch[pickle.BUILD[0]] = load_build


def unpickle(content: bytes, allowed: Mapping[Name, Any]) -> Any:
    """Read the object in a pickle.

    Args:
        allowed: the globals that the pickle may refer to, each with its replacement; ``None`` keeps the original.

    Raises:
        DamagedError: if it refers to anything else, or is not a valid pickle.
    """
    try:
        return _Unpickler(content, allowed).load()
    except DamagedError:
        raise
    except Exception as error:  # a damaged pickle may raise anything
        raise DamagedError(f"cannot be unpickled ({type(error).__name__})") from None


def _member_of(kind: Any, name: Any) -> Enum:
    """A member of an enumeration. Python 3.11.0 to 3.11.3 pickle it as ``getattr(kind, name)``."""
    if isinstance(kind, type) and issubclass(kind, Enum) and name in kind.__members__:
        return kind.__members__[name]
    raise DamagedError("uses builtins.getattr as no checkpoint needs it; nothing was run")


def read_metadata(content: bytes) -> Any:
    """Read DCP's ``Metadata`` from the content of a ``.metadata`` file.

    Raises:
        DamagedError: if it refers to anything but DCP's own types, or is not a ``Metadata``.
    """
    from torch.distributed.checkpoint.metadata import Metadata

    found = unpickle(content, {**dict.fromkeys(ALLOWED), ("builtins", "getattr"): _member_of})
    if not isinstance(found, Metadata):
        raise DamagedError("is not DCP's metadata")
    return found
