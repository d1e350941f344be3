"""Images of other kinds than digits, from public packages, for ``benchmarks.images``.

    python -m benchmarks.image_data emoji flags letters --folder runs/images

emoji: 3,786 pictures of 64 x 64 in colour, in class folders by kind (npm ``emoji-datasource-twitter``). flags: 326
pictures in colour, of several sizes, without labels (npm ``region-flags``). letters: A to J in the fonts of Debian's
packages, 64 x 64 grey, in class folders by letter; ``weight.csv`` and ``slant.csv`` beside them are other labels.
The first two need npm, the last one Debian's apt-get and dpkg.
"""

from __future__ import annotations

import csv
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import tyro
from PIL import Image, ImageDraw, ImageFont

EMOJI, FLAGS = "emoji-datasource-twitter@16.0.0", "region-flags@1.1.0"
LETTERS, SIDE = "ABCDEFGHIJ", 64
FONTS = (
    "adf-accanthis adf-baskervald adf-berenis adf-gillius adf-ikarius adf-irianis adf-libris adf-mekanus adf-oldania "
    "adf-romande adf-solothurn adf-switzera adf-tribun adf-universalis adf-verana allerta anonymous-pro arapey "
    "averia-gwf averia-sans-gwf averia-serif-gwf b612 bebas-neue cabin cantarell century-catalogue clear-sans cmu "
    "comfortaa comic-neue courier-prime crosextra-caladea crosextra-carlito dejavu-core dejavu-extra dosis ebgaramond "
    "elstob fantasque-sans fanwood firacode freefont-ttf go goudybookletter hack-ttf inconsolata inter jetbrains-mono "
    "junction junicode jura karla karmilla lato league-mono league-spartan liberation lindenhill linuxlibertine "
    "lmodern lobstertwo manrope mononoki national-park oldstandard open-sans opendin opendyslexic paratype play "
    "prociono quattrocento quicksand roadgeek roboto-unhinted roboto-slab routed-gothic sil-andika sil-charis "
    "sil-doulos sil-gentiumplus sora stix texgyre tuffy urw-base35 vollkorn yanone-kaffeesatz"
)
WEIGHTS = ("thin", "light", "black", "heavy", "bold", "medium")  # in font styles; anything else is "regular"
Name = Literal["emoji", "flags", "letters"]


@dataclass
class ImageData:
    """Fetch images into FOLDER/NAME. What is there already is not fetched again."""

    names: tyro.conf.Positional[tuple[Name, ...]]
    folder: Path = Path("runs/images")


def fetch(name: Name, folder: Path) -> Path:
    """The folder with these images. Raises CalledProcessError if npm or apt-get cannot fetch them."""
    done = folder / name
    if not done.exists():
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder) as made:
            print(f"{name}: fetching the packages", file=sys.stderr)
            SOURCES[name](Path(made))
            (Path(made) / name).rename(done)
    return done


def fetch_emoji(folder: Path) -> None:
    package = npm(EMOJI, folder)
    for emoji in json.loads((package / "emoji.json").read_text()):
        kind = folder / "emoji" / emoji["category"].replace(" & ", " and ").replace(" ", "_").lower()
        kind.mkdir(parents=True, exist_ok=True)
        for picture in (emoji, *emoji.get("skin_variations", {}).values()):
            if (file := package / "img/twitter/64" / picture["image"]).exists():
                file.rename(kind / file.name)


def fetch_flags(folder: Path) -> None:
    (npm(FLAGS, folder) / "png").rename(folder / "flags")


def npm(package: str, folder: Path) -> Path:
    """The content of an npm package. Nothing of it is run."""
    subprocess.run(["npm", "pack", "--silent", package], cwd=folder, check=True, stdout=subprocess.DEVNULL)
    subprocess.run(["tar", "-xzf", next(folder.glob("*.tgz")).name], cwd=folder, check=True)
    return folder / "package"


def fetch_letters(folder: Path) -> None:
    packages, drawn = folder / "packages", folder / "letters"
    packages.mkdir()
    names = [f"fonts-{name}" for name in FONTS.split()]
    subprocess.run(["apt-get", "download", "-qq", *names], cwd=packages, check=True, stderr=subprocess.DEVNULL)
    for package in sorted(packages.glob("*.deb")):
        subprocess.run(["dpkg", "-x", package.name, "files"], cwd=packages, check=True)
    labels: list[tuple[str, str, str]] = []
    for letter in LETTERS:
        (drawn / letter).mkdir(parents=True)
    for font, weight, slant in fonts(packages / "files"):
        for letter in LETTERS:
            if (picture := draw(font, letter)) is not None:
                file = f"{letter}/{font.stem}.png"
                picture.save(drawn / file)
                labels.append((file, weight, slant))
    for column, name in ((1, "weight"), (2, "slant")):
        with open(drawn / f"{name}.csv", "w", newline="") as file_of_labels:
            csv.writer(file_of_labels).writerows([("file", "label"), *((row[0], row[column]) for row in labels)])


def fonts(folder: Path) -> Iterator[tuple[Path, str, str]]:
    """Font files with weight and slant. A font that is there in two formats or packages comes once."""
    seen = set()
    files = [*folder.rglob("*.ttf"), *folder.rglob("*.otf")]
    for file in sorted(file for file in files if not file.is_symlink()):
        family, style = ImageFont.truetype(str(file), SIDE).getname()
        words = f"{style} {file.stem}".lower()
        if file.stem.lower() in seen or (family, style) in seen:
            continue
        seen |= {file.stem.lower(), (family, style)}
        weight = next((name for name in WEIGHTS if name in words), "regular")
        yield file, weight, "slanted" if "ital" in words or "obli" in words else "upright"


def draw(font: Path, letter: str) -> Image.Image | None:
    """Black on white, as large as it fits, in the middle. None if the font lacks the letter."""
    large = ImageFont.truetype(str(font), 4 * SIDE)
    canvas = Image.new("L", (16 * SIDE, 16 * SIDE), 255)
    ImageDraw.Draw(canvas).text((4 * SIDE, 4 * SIDE), letter, 0, large)
    ink = canvas.point(lambda value: 255 - value).getbbox()  # the font's own box includes the space around a letter
    if ink is None or max(ink[2] - ink[0], ink[3] - ink[1]) < SIDE or large.getmask(letter) == large.getmask("\uffff"):
        return None
    glyph = canvas.crop(ink)
    side = max(glyph.size) * 10 // 9
    picture = Image.new("L", (side, side), 255)
    picture.paste(glyph, ((side - glyph.width) // 2, (side - glyph.height) // 2))
    return picture.resize((SIDE, SIDE), Image.Resampling.BOX)


SOURCES: dict[Name, Callable[[Path], None]] = {"emoji": fetch_emoji, "flags": fetch_flags, "letters": fetch_letters}

if __name__ == "__main__":
    given = tyro.cli(ImageData)
    for chosen in given.names:
        print(fetch(chosen, given.folder))
