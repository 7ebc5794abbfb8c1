"""Settings of the data: the source, how images become rows of one shape, and how rows are fetched."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from gfgw_prod.settings.types import Flag, Section, Text, UserPath, Whole, as_written, setting

Background = Literal["white", "black"]
RULES = ("image_size", "resize", "grey", "peak", "background")  # how image files become rows
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
BUILT_IN = frozenset(source for source, used in _USED.items() if "path" not in used)


class DataSettings(Section):
    source: Literal["digits", "photos", "cifar10", "folder", "zip", "parquet", "packed"] = setting(
        "digits", "data set: built in, image files, or a pack made by `gfgw pack`"
    )
    path: UserPath | None = setting(None, "where the data set is (cifar10: directory of its archive, present or not)")
    download: Flag = setting(True, "download a missing archive (cifar10)")
    image_size: Annotated[Whole, Field(ge=1, le=4096)] | None = setting(
        None, "side in pixels that images are cropped and resized to; null: all must have one size"
    )
    resize: Literal["lanczos", "box", "adm"] = setting(
        "lanczos", "centre crop, then this filter; adm: halve with box, resize bicubic, then crop"
    )
    grey: Flag = setting(False, "decode to one channel, not three (folder, zip, parquet)")
    peak: Whole = setting(255, "pixel value of white in the files (folder, zip, parquet)", ge=1, le=255)
    background: Background | None = setting(
        None, "what transparent images are put on; null: they are invalid (folder, zip, parquet)"
    )
    image_column: Text = setting("image", "column of encoded images (parquet)", min_length=1)
    label_column: Text | None = setting("label", "column of class ids; null: no classes (parquet)")
    on_error: Literal["fail", "skip"] = setting("fail", "at an invalid image: fail, or log and skip it")
    workers: Whole = setting(1, "threads per rank that fetch images ahead; 0: fetch on demand", ge=0, le=256)
    verify: Flag = setting(True, "hash a pack at every start; the ranks of a node share the work")
    flip: Flag = setting(False, "mirror targets at random; matching and feature losses see them unmirrored")

    def is_set(self, name: str) -> bool:
        """Whether a setting differs from its default."""
        return bool(getattr(self, name) != type(self).model_fields[name].default)

    def unused(self) -> str | None:
        """A complaint about the first setting that is set and that the source does not use, if any."""
        for name in type(self).model_fields:
            if name not in _FOR_ALL | _USED[self.source] and self.is_set(name):
                default = as_written(type(self).model_fields[name].default)
                other = "; name the data.source that does, such as folder" if name == "path" else ""
                return f"data.{name} should be left at {default}: data.source {self.source} does not read it{other}"
        if self.is_set("resize") and self.image_size is None:
            return f"data.resize {self.resize} needs data.image_size, the side to resize to"
        return None
