"""Settings of the data: the source, how images become rows of one shape, and how rows are fetched."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from gfgw_prod.settings.types import Flag, Section, Text, UserPath, Whole, as_written

BUILT_IN = ("digits", "photos")  # sources without a path
RULES = ("image_size", "resize", "grey", "peak")  # how image files become rows
_FOR_FILES = frozenset({"path", "on_error", *RULES})
_FOR_ALL = frozenset({"source", "workers", "flip"})
# The other settings that each source uses. A pack compares the rules with its own.
_USED: dict[str, frozenset[str]] = {
    "digits": frozenset(),
    "photos": frozenset({"image_size"}),
    "cifar10": frozenset({"path", "download"}),
    "folder": _FOR_FILES,
    "zip": _FOR_FILES,
    "parquet": _FOR_FILES | {"image_column", "label_column"},
    "packed": frozenset({"path", "verify", *RULES}),
}


class DataSettings(Section):
    source: Literal["digits", "photos", "cifar10", "folder", "zip", "parquet", "packed"] = Field(
        "digits", description="data set: built in, image files, or a pack made by `gfgw pack`"
    )
    path: UserPath | None = Field(
        None, description="where the data set is (cifar10: the directory of its archive, or to download it to)"
    )
    download: Flag = Field(True, description="download a missing archive (cifar10)")
    image_size: Annotated[Whole, Field(ge=1, le=4096)] | None = Field(
        None, description="side in pixels that images are cropped and resized to; null: all must have one size"
    )
    resize: Literal["lanczos", "box", "adm"] = Field(
        "lanczos", description="centre crop, then this filter; adm: halve with box, resize bicubic, then crop"
    )
    grey: Flag = Field(False, description="decode to one channel, not three (folder, zip, parquet)")
    peak: Annotated[Whole, Field(ge=1, le=255)] = Field(
        255, description="pixel value of white in the files (folder, zip, parquet)"
    )
    image_column: Text = Field("image", min_length=1, description="column of encoded images (parquet)")
    label_column: Text | None = Field("label", description="column of class ids; null: no classes (parquet)")
    on_error: Literal["fail", "skip"] = Field("fail", description="at an invalid image: fail, or log and skip it")
    workers: Annotated[Whole, Field(ge=0, le=256)] = Field(
        1, description="threads per rank that fetch images ahead; 0: fetch on demand"
    )
    verify: Flag = Field(True, description="hash a pack at every start; the ranks of a node share the work")
    flip: Flag = Field(False, description="mirror targets at random; matching and feature losses see them unmirrored")

    def is_set(self, name: str) -> bool:
        """Whether a setting differs from its default."""
        return bool(getattr(self, name) != type(self).model_fields[name].default)

    def unused(self) -> str | None:
        """A complaint about the first setting that is set and that the source does not use, if any."""
        for name in type(self).model_fields:
            if name not in _FOR_ALL | _USED[self.source] and self.is_set(name):
                default = type(self).model_fields[name].default
                return (
                    f"data.{name} should be left at {as_written(default)}: data.source {self.source} does not read it"
                )
        if self.is_set("resize") and self.image_size is None:
            return f"data.resize {self.resize} needs data.image_size, the side to resize to"
        return None
