"""From an encoded image to a row: Pillow decodes, crops and resizes; what no row can be made of is told apart."""

from __future__ import annotations

import errno
import io
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError
from PIL.ImageFile import ImageFile

from gfgw_prod.process.exit_codes import UserError, one_line, reason_of

Row = NDArray[np.uint8]
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "TIFF", "PPM")
SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".ppm", ".pgm")
MOST_BYTES = 1 << 28  # of one encoded image
TIFF_BITS = 258  # the tag BitsPerSample
# Of links to nowhere and to themselves, and of a seek to where damaged bytes lead.
LASTING = (errno.ENOENT, errno.ELOOP, errno.EINVAL)


class OddImageError(Exception):
    """No row can be made of an image. Its message is the reason, in one line."""


def refuse_passing(error: BaseException, name: object) -> None:
    """Sees to it that ``name`` is not taken for damaged while memory is short or its file system fails.

    What Pillow and Arrow raise of damaged bytes are ``OSError`` too, but have no number. zipfile hides the system's
    errors behind its own.

    Raises:
        UserError: if that is why it was not read.
    """
    for each in (error, error.__context__ or error):
        if isinstance(each, MemoryError) or getattr(each, "errno", None) not in (None, *LASTING):
            why = reason_of(each)
            raise UserError(f"data.path: {name} cannot be read now ({why}); try again when it can") from None


@dataclass(frozen=True)
class Rules:
    """How images become rows.

    ``lanczos`` and ``box`` cut out the largest centred square and resize it with that filter, as the tools of StyleGAN
    and EDM do (Karras et al. 2019, 2022). ``adm`` is the rule behind the published figures for ImageNet at 64 x 64
    (Dhariwal and Nichol 2021): halve by box while the shorter side is at least twice the size, resize the shorter
    side by a bicubic filter, then cut out the centre.

    Attributes:
        image_size: side of a row, pixels; ``None`` takes images as they are.
        peak: largest value that may occur.
    """

    image_size: int | None = None
    resize: Literal["lanczos", "box", "adm"] = "lanczos"
    grey: bool = False
    peak: int = 255

    def decode(self, content: bytes) -> Row:
        """The row ``(1 or 3, h, w)`` of an encoded image.

        Raises:
            OddImageError: if there is none.
            UserError: if there is no memory for it.
        """
        if not content:
            raise OddImageError("is empty")
        try:
            with Image.open(io.BytesIO(content), formats=FORMATS) as image:
                if (bits := _bits(image)) > 8:
                    raise OddImageError(f"has {bits} bits a value")
                return self._row(image)
        except OddImageError:
            raise
        except UnidentifiedImageError:
            raise OddImageError(f"is not an image in one of the formats {', '.join(FORMATS)}") from None
        except Exception as error:  # Pillow's plugins raise whatever damaged bytes lead them to
            refuse_passing(error, "an image")
            raise OddImageError(f"cannot be decoded: {one_line(error, 300)}") from None

    def _row(self, image: Image.Image) -> Row:
        if getattr(image, "n_frames", 1) > 1 and image.format != "MPO":  # a camera's JPEG with a preview
            raise OddImageError(f"has {image.n_frames} frames")  # type: ignore[attr-defined]
        if image.mode.startswith(("I", "F")):
            raise OddImageError(f"has other than 8-bit values (Pillow's mode {image.mode})")
        if image.has_transparency_data and image.convert("RGBA").getchannel("A").getextrema() != (255, 255):
            raise OddImageError("has transparent pixels")
        mode = "L" if self.grey else "RGB"
        if image.mode != mode:
            image = image.convert(mode)
        if self.image_size is None:
            pixels = np.asarray(image)
            self._check(pixels)
        else:
            if self.peak < 255:
                self._check(np.asarray(image))
            pixels = np.asarray(self._resized(image, self.image_size))
            if self.peak < 255:  # filters overshoot
                pixels = pixels.clip(max=self.peak)
        return pixels[None] if self.grey else pixels.transpose(2, 0, 1)

    def _check(self, pixels: Row) -> None:
        if self.peak < 255 and (most := int(pixels.max())) > self.peak:
            raise OddImageError(f"has a value of {most}, above data.peak {self.peak}")

    def _resized(self, image: Image.Image, size: int) -> Image.Image:
        if self.resize == "adm":
            while min(image.size) >= 2 * size:
                image = image.resize((image.width // 2, image.height // 2), Image.Resampling.BOX)
            scale = size / min(image.size)
            if scale != 1:
                sides = (max(round(image.width * scale), size), max(round(image.height * scale), size))
                image = image.resize(sides, Image.Resampling.BICUBIC)
            return _centre(image, size)
        image = _centre(image, min(image.size))
        if image.size == (size, size):
            return image
        return image.resize((size, size), Image.Resampling.BOX if self.resize == "box" else Image.Resampling.LANCZOS)


def _bits(image: ImageFile) -> int:
    """Bits of a value in the file: of colours Pillow keeps the upper 8, whatever their mode in the file."""
    if image.format == "TIFF":
        return int(max(image.tag_v2.get(TIFF_BITS, (1,))))  # type: ignore[attr-defined]
    args = image.tile[0].args if image.tile else ()
    if image.format == "PPM" and isinstance(args, tuple):  # (mode, largest value)
        return 8 if args[1] < 256 else 16
    return 16 if image.format == "PNG" and ";16" in str(args) else 8


def _centre(image: Image.Image, side: int) -> Image.Image:
    if image.size == (side, side):
        return image
    left, top = (image.width - side) // 2, (image.height - side) // 2
    return image.crop((left, top, left + side, top + side))
