"""Reads pickles, DCP's ``.metadata`` above all, without running what a pickle may ask for."""

from __future__ import annotations

import io
import pickle
from collections.abc import Mapping
from enum import Enum
from typing import Any, ClassVar

Name = tuple[str, str]
DCP = "torch.distributed.checkpoint"
# All that torch 2.9 writes into the account of a state of tensors. Each builds a plain value from plain values.
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


_InPython: Any = pickle._Unpickler  # its steps can be refused; the other is C


class _Unpickler(_InPython):  # type: ignore[misc]  # typeshed does not know it
    dispatch: ClassVar[dict[int, Any]] = dict(_InPython.dispatch)

    def __init__(self, content: bytes, allowed: Mapping[Name, Any]):
        super().__init__(io.BytesIO(content))
        self._allowed = allowed

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in self._allowed:
            raise DamagedError(f"{module}.{name} is asked for, which no checkpoint needs; nothing was run")
        stand_in = self._allowed[module, name]
        return super().find_class(module, name) if stand_in is None else stand_in

    def persistent_load(self, pid: Any) -> Any:
        raise DamagedError("an outside object is asked for, which no checkpoint needs; nothing was run")

    def load_build(self) -> None:
        # On a class it would set the class's own attributes, for the rest of this process.
        if isinstance(self.stack[-2], type) or callable(self.stack[-2]):
            raise DamagedError("a class is to be changed, which no checkpoint needs; nothing was run")
        super().load_build()

    dispatch[pickle.BUILD[0]] = load_build


def unpickle(content: bytes, allowed: Mapping[Name, Any]) -> Any:
    """The object in a pickle.

    Args:
        allowed: what may be asked for, by module and name, and what stands in for it; ``None`` is the thing itself.

    Raises:
        DamagedError: if anything else is asked for, or it is no pickle.
    """
    try:
        return _Unpickler(content, allowed).load()
    except DamagedError:
        raise
    except Exception as error:  # a pickle that is cut or twisted may raise anything
        raise DamagedError(f"cannot be read ({type(error).__name__})") from None


def _member_of(kind: Any, name: Any) -> Enum:
    """A member of an enumeration; Python 3.11.0 to 3.11.3 write them as ``getattr(kind, name)``."""
    if isinstance(kind, type) and issubclass(kind, Enum) and name in kind.__members__:
        return kind.__members__[name]
    raise DamagedError("builtins.getattr is asked for what no checkpoint needs; nothing was run")


def read_metadata(content: bytes) -> Any:
    """DCP's ``Metadata`` from the bytes of a ``.metadata`` file.

    Raises:
        DamagedError: if they ask for anything but DCP's own types, or are no such account.
    """
    from torch.distributed.checkpoint.metadata import Metadata

    found = unpickle(content, {**dict.fromkeys(ALLOWED), ("builtins", "getattr"): _member_of})
    if not isinstance(found, Metadata):
        raise DamagedError("is not DCP's account of a checkpoint")
    return found


class DamagedError(Exception):
    """A checkpoint, or its manifest, that is not what was written."""
