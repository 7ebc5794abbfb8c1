"""Settings of the data: what they are, how images become rows of one shape, and how rows are brought to a step."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from gfgw_prod.settings.types import Place, Section, Text, Whole, as_written

BUILT_IN = ("digits", "photos")  # sources without a path
RULES = ("image_size", "resize", "grey", "peak")  # how encoded images become rows
_OF_FILES = frozenset({"path", "on_error", *RULES})
_OF_ALL = frozenset({"source", "workers", "flip"})
# What else each source reads. A pack reads rules to compare them with those that it was made by.
_READ: dict[str, frozenset[str]] = {
    "digits": frozenset(),
    "photos": frozenset({"image_size"}),
    "cifar10": frozenset({"path", "download"}),
    "folder": _OF_FILES,
    "zip": _OF_FILES,
    "parquet": _OF_FILES | {"image_column", "label_column"},
    "packed": frozenset({"path", "verify", *RULES}),
}


class DataSettings(Section):
    source: Literal["digits", "photos", "cifar10", "folder", "zip", "parquet", "packed"] = Field(
        "digits", description="data set: built in, files of images, or what `gfgw pack` made of one"
    )
    path: Place | None = Field(
        None, description="where it is (cifar10: a directory that holds or receives its archive)"
    )
    download: bool = Field(True, description="fetch a missing archive where there is a network")
    image_size: Annotated[Whole, Field(ge=1, le=4096)] | None = Field(
        None, description="side to which images are cropped and resized, pixels; else all must be of one size"
    )
    resize: Literal["lanczos", "box", "adm"] = Field(
        "lanczos", description="centre crop, then this filter; adm halves by box, goes on bicubic, then crops"
    )
    grey: bool = Field(False, description="one channel in place of three (folder, zip, parquet)")
    peak: Annotated[Whole, Field(ge=1, le=255)] = Field(
        255, description="grey level of white in the files; 16 for the digits (folder, zip, parquet)"
    )
    image_column: Text = Field("image", min_length=1, description="column of encoded images (parquet)")
    label_column: Text | None = Field("label", description="column of class ids; null: no classes (parquet)")
    on_error: Literal["fail", "skip"] = Field("fail", description="what to do about an image that cannot be taken")
    workers: Annotated[Whole, Field(ge=0, le=256)] = Field(
        1, description="threads per rank that fetch images ahead of a step; 0: fetched when they are needed"
    )
    verify: bool = Field(True, description="hash packed images at every start, the ranks of a node together")
    flip: bool = Field(False, description="mirror targets at random; matching and feature losses see them unmirrored")

    def given(self, name: str) -> bool:
        """Whether a setting says other than its default."""
        return bool(getattr(self, name) != type(self).model_fields[name].default)

    def unread(self) -> str | None:
        """The first setting that is given and that the source does not read, in words."""
        for name in type(self).model_fields:
            if name not in _OF_ALL | _READ[self.source] and self.given(name):
                default = type(self).model_fields[name].default
                return (
                    f"data.{name} should be left at {as_written(default)}: data.source {self.source} does not read it"
                )
        if self.given("resize") and self.image_size is None:
            return f"data.resize {self.resize} needs data.image_size, the side to resize to"
        return None
