"""Decodes an image file to a row of pixels with Pillow, and separates invalid images from temporary failures."""

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
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM")
SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".ppm", ".pgm")
MAX_BYTES = 1 << 28  # of one encoded image
TIFF_BITS_PER_SAMPLE, TIFF_ORIENTATION = 258, 274  # tags
# The transposition that undoes each orientation.
UNDO_ORIENTATION = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}
# Errors that trying again does not mend: broken links, links in a circle, a seek to an offset read from damaged bytes.
PERMANENT = (errno.ENOENT, errno.ELOOP, errno.EINVAL)


class InvalidImageError(Exception):
    """An image cannot be used. The message is the reason, in one line."""


def raise_if_temporary(error: BaseException, name: object) -> None:
    """Raise ``UserError`` if memory ran out or the file system failed, so that it is not taken for damage of ``name``.

    Pillow and Arrow raise ``OSError`` for damaged bytes too, but without an ``errno``. zipfile hides the system's error
    in the context of its own.
    """
    for each in (error, error.__context__ or error):
        if isinstance(each, MemoryError) or getattr(each, "errno", None) not in (None, *PERMANENT):
            problem = f"{name} cannot be read now ({reason_of(each)})"
            raise UserError(f"data.path: {problem}; try again when it can") from None


@dataclass(frozen=True)
class Rules:
    """How images become rows.

    ``lanczos`` and ``box`` crop the largest centred square and resize it with that filter, as the tools of StyleGAN
    and EDM do (Karras et al. 2019, 2022). ``adm`` is the preprocessing behind the published results on ImageNet 64x64
    (Dhariwal and Nichol 2021): halve with a box filter while the shorter side is at least twice the size, resize the
    shorter side with a bicubic filter, then crop the centre.
    """

    image_size: int | None = None  # side of a row, pixels; None keeps the size of the image
    resize: Literal["lanczos", "box", "adm"] = "lanczos"
    grey: bool = False
    peak: int = 255  # largest value allowed
    background: Literal["white", "black"] | None = None  # that transparent images are put on; None refuses them

    def decode(self, content: bytes) -> Row:
        """Decode an image file to a row ``(1 or 3, h, w)``; ``InvalidImageError`` if it cannot be used."""
        if not content:
            raise InvalidImageError("is empty")
        if len(content) > MAX_BYTES:
            raise InvalidImageError(f"is larger than {MAX_BYTES >> 20} MiB")
        try:
            with Image.open(io.BytesIO(content), formats=FORMATS) as image:
                if (bits := _bits(image)) > 8:
                    raise InvalidImageError(f"has {bits} bits a value")
                return self._row(image)
        except InvalidImageError:
            raise
        except UnidentifiedImageError:
            raise InvalidImageError(f"is not an image in one of the formats {', '.join(FORMATS)}") from None
        except Exception as error:  # Pillow's plugins raise errors of any kind on damaged bytes
            raise_if_temporary(error, "an image")
            raise InvalidImageError(f"cannot be decoded: {one_line(error, 300)}") from None

    def _row(self, file: ImageFile) -> Row:
        # The first frame of an animation stands for it; so does a camera's JPEG with a preview. Pages are not frames.
        if getattr(file, "n_frames", 1) > 1 and file.format not in ("MPO", "GIF", "WEBP"):
            raise InvalidImageError(f"has {file.n_frames} frames")  # type: ignore[attr-defined]
        if file.mode.startswith(("I", "F")):
            raise InvalidImageError(f"has other than 8-bit values (Pillow's mode {file.mode})")
        image = _as_stored(file)
        if image.has_transparency_data and image.convert("RGBA").getchannel("A").getextrema() != (255, 255):
            if self.background is None:
                raise InvalidImageError("has transparent pixels; data.background white puts images on white")
            level = self.peak if self.background == "white" else 0
            image = Image.alpha_composite(Image.new("RGBA", image.size, (level,) * 3 + (255,)), image.convert("RGBA"))
        mode = "L" if self.grey else "RGB"
        if image.mode != mode:
            image = image.convert(mode)
        if self.peak < 255 and (largest := int(np.asarray(image).max())) > self.peak:
            raise InvalidImageError(f"has a value of {largest}, above data.peak {self.peak}")
        if self.image_size is not None:
            image = self._resized(image, self.image_size)
        pixels = np.asarray(image)
        if self.peak < 255:
            pixels = pixels.clip(max=self.peak)  # filters overshoot
        return pixels[None] if self.grey else pixels.transpose(2, 0, 1)

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
    """Bits per value in the file. Pillow keeps only the upper 8 of a colour image, and its mode does not show it."""
    if image.format == "TIFF":
        return int(max(image.tag_v2.get(TIFF_BITS_PER_SAMPLE, (1,))))  # type: ignore[attr-defined]
    args = image.tile[0].args if image.tile else ()
    if image.format == "PPM" and isinstance(args, tuple):  # (mode, largest value)
        return 8 if args[1] < 256 else 16
    return 16 if image.format == "PNG" and ";16" in str(args) else 8


def _as_stored(image: ImageFile) -> Image.Image:
    """The pixels as the file stores them. Pillow applies the orientation of TIFF files, and of no other format."""
    orientation = image.tag_v2.get(TIFF_ORIENTATION) if image.format == "TIFF" else None  # type: ignore[attr-defined]
    image.load()  # drops the tag
    return image.transpose(UNDO_ORIENTATION[orientation]) if orientation in UNDO_ORIENTATION else image


def _centre(image: Image.Image, side: int) -> Image.Image:
    if image.size == (side, side):
        return image
    left, top = (image.width - side) // 2, (image.height - side) // 2
    return image.crop((left, top, left + side, top + side))
