"""Pixels of every mode and format; the reason why an image is broken. Run: pytest tests/data/test_decoding.py"""

from __future__ import annotations

import base64
import io
import struct
import zlib
from typing import Any

import numpy as np
import pytest
from PIL import Image

from infogan_ray.data.conversion import Conversion
from infogan_ray.data.decoding import Facts, decode, wide_values
from infogan_ray.data.image_files import Broken
from infogan_ray.data.image_kinds import FORMATS
from infogan_ray.data.pixel_range import CLIPPED

RED, WHITE, BLUE = (255, 0, 0), (255, 255, 255), (0, 0, 255)


def encoded(image: Image.Image, form: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def halves(mode: str, left: Any, right: Any, size: int = 32) -> Image.Image:
    image = Image.new(mode, (size, size), right)
    image.paste(left, (0, 0, size // 2, size))
    return image


def read(content: bytes, size: int = 32, channels: int = 3) -> tuple[np.ndarray, Facts]:
    """The decoded image as (size, size, channels), and its facts."""
    pixels, facts = decode(content, size, channels)
    assert pixels.dtype == np.uint8 and pixels.shape == (channels, size, size)
    return pixels.transpose(1, 2, 0), facts


def assert_halves(content: bytes, left: tuple[int, ...], right: tuple[int, ...], off: int = 0) -> Facts:
    pixels, facts = read(content)
    assert np.abs(pixels[16, 4].astype(int) - left).max() <= off, pixels[16, 4]
    assert np.abs(pixels[16, 27].astype(int) - right).max() <= off, pixels[16, 27]
    return facts


@pytest.mark.parametrize("form", FORMATS)
def test_every_format_keeps_its_pixels(form: str) -> None:
    options = {"lossless": True} if form == "WEBP" else {"quality": 95} if form == "JPEG" else {}
    facts = assert_halves(encoded(halves("RGB", RED, BLUE), form, **options), RED, BLUE, off=4)
    assert facts.format == form


def test_transparency_is_composited_on_white() -> None:
    half_red = (255, 127, 127)
    assert_halves(encoded(halves("RGBA", (255, 0, 0, 0), (255, 0, 0, 128))), WHITE, half_red, off=1)
    facts = assert_halves(encoded(halves("LA", (10, 0), (10, 255))), WHITE, (10, 10, 10))
    assert facts.grey and facts.changes == ("LA composited on white",)
    for mode, key, there in (("RGB", RED, BLUE), ("L", 7, 90)):
        content = encoded(halves(mode, key, there), transparency=key)
        facts = assert_halves(content, WHITE, there if isinstance(there, tuple) else (there,) * 3)
        assert facts.changes == (f"{mode} with transparency composited on white",)


def test_palettes_become_rgb() -> None:
    palette = Image.new("P", (32, 32), 1)
    palette.putpalette([*RED, *BLUE])
    palette.paste(0, (0, 0, 16, 32))
    assert assert_halves(encoded(palette), RED, BLUE).changes == ("palette to RGB",)
    facts = assert_halves(encoded(palette, transparency=0), WHITE, BLUE)
    assert facts.changes == ("P with transparency composited on white",)
    assert_halves(encoded(palette, transparency=bytes([255, 0])), RED, WHITE)


def test_one_bit_images_are_black_and_white() -> None:
    facts = assert_halves(encoded(halves("1", 0, 1)), (0, 0, 0), WHITE)
    assert facts.changes == ("1-bit to 0 and 255",)
    assert facts.conversions(32, 3) == ["1-bit to 0 and 255", "grey repeated in three channels"]
    assert facts.conversions(32, 1) == ["1-bit to 0 and 255"]


@pytest.mark.parametrize("form", ["PNG", "TIFF"])
def test_sixteen_bit_images_keep_their_range(form: str) -> None:
    ramp = np.linspace(0, 65535, 32 * 32).reshape(32, 32).astype(np.uint16)
    pixels, facts = read(encoded(Image.fromarray(ramp), form), channels=1)
    assert np.array_equal(pixels[:, :, 0], (ramp / 257).round())
    assert facts.changes == ("16-bit scaled from 0...65535",)


@pytest.mark.parametrize(
    ("values", "low", "high"),
    [
        (np.linspace(0, 1, 1024, dtype=np.float32), 0, 1),
        (np.linspace(-3, 900, 1024, dtype=np.float32), -3, 900),
        (np.linspace(-70000, 200000, 1024).astype(np.int32), -70000, 200000),
    ],
)
def test_wide_value_ranges_are_scaled_and_not_clipped(values: np.ndarray, low: float, high: float) -> None:
    pixels, _ = read(encoded(Image.fromarray(values.reshape(32, 32)), "TIFF"), channels=1)
    wanted = ((values.astype(float) - low) / (high - low) * 255).round()
    assert np.abs(pixels.ravel() - wanted).max() <= 1 and pixels.max() == 255


def test_a_range_of_the_dataset_is_used_and_clipping_is_counted() -> None:
    ramp = np.linspace(0, 4095, 32 * 32).reshape(32, 32).astype(np.uint16)
    for text, wanted, clipped in (("0:4095", ramp / 4095, False), ("0:1000", ramp / 1000, True)):
        how = Conversion.of("crop", text)
        pixels, facts = decode(encoded(Image.fromarray(ramp)), 32, 1, how=how)
        assert np.array_equal(pixels[0], (wanted * 255).round().clip(0, 255))
        assert facts.values is not None and str(facts.values) == "0...4095"
        assert facts.changes == (f"16-bit scaled from 0...{text[2:]}", *([CLIPPED] if clipped else []))
    plain = encoded(halves("RGB", RED, BLUE))
    assert np.array_equal(decode(plain, 32, 3, how=how)[0], decode(plain, 32, 3)[0])
    assert wide_values(plain) is None and wide_values(encoded(Image.fromarray(ramp))) == facts.values


@pytest.mark.parametrize("channels", [3, 4])
@pytest.mark.parametrize("form", ["PNG", "little-endian TIFF", "big-endian TIFF", "compressed TIFF"])
def test_colour_of_sixteen_bits_keeps_its_bits(form: str, channels: int) -> None:
    values = np.random.default_rng(0).integers(0, 4096, (32, 32, channels)).astype(np.uint16)
    values[..., 3:] = 65535
    if form == "PNG":
        content = png_of_sixteen_bits(values)
    else:
        content = tiff_of_sixteen_bits(values, ">" if form.startswith("big") else "<", form.startswith("compressed"))
    pixels, facts = decode(content, 32, 3, how=Conversion.of("crop", "0:4095"))
    assert np.array_equal(pixels.transpose(1, 2, 0), (values[..., :3] / 4095 * 255).round())
    assert facts.changes[0] == "16-bit scaled from 0...4095" and facts.values == wide_values(content)
    cut = decode_error(content[: len(content) // 2])
    assert "is cut off" in cut or "is not a readable image" in cut


def test_a_colour_key_of_sixteen_bits_is_transparent() -> None:
    values = np.full((32, 32, 3), 1000, np.uint16)
    values[:16] = (1, 2, 3)
    pixels, facts = decode(png_of_sixteen_bits(values, key=(1, 2, 3)), 32, 3, how=Conversion.of("crop", "0:1000"))
    assert (pixels == 255).all() and facts.changes[1] == "RGBA composited on white"
    values[:16] = 0
    assert decode(png_of_sixteen_bits(values, key=(1, 2, 3)), 32, 3)[0][0, 0, 0] == 0


def test_bits_that_pillow_cannot_read_are_named() -> None:
    """Grey and alpha of 16 bits: the upper bytes are read."""
    values = np.full((32, 32, 2), 65535, np.uint16)
    values[..., 0] = 0x1234
    pixels, facts = decode(png_of_sixteen_bits(values), 32, 1)
    assert (pixels == 0x12).all() and "16-bit colour reduced to 8 bits" in facts.changes


AVIF_OF_TEN_BITS = (
    "eNpjYGBQSCupLEgsy0xjAAIQnZuZZpibmZjm62joCBR6nZtaksgAAYoZKTlFUDZDQWZyCQMa4CvILMkFsxiBWC4zJz8ZxHEB8RkhoozCQFoeiDUy"
    "M/PS4GqlgJxUJigvsczA0Dk/Jx9sV1ZmQVEBkPbOLEjOB9IimcUFqVD7BGC4ILMiEyTAzMXFBaR4EssMnRsVHEBCwsn5OUV5yTkVDExAyNYAFBLP"
    "LMiF+QnoMBZGpmYWIFM9NyWxRIiBi8OC5//tAw2NS4wE5T8ltTxgEAPaUFobf+qxyGUAVPw4IA=="
)
JPEG_2000_OF_SIXTEEN_BITS = (
    "eNr77/8/kEGfAQQEoBgGUPnM/IyMEPQ/iIEHKMDIyMjCwsD4P4aB3aGho2PC/xQGVQZG56LUxJLUFIWkSgX/gtQ8rwBXd4Wy1KLizPw8BSM9Uz2T"
    "/xMYuMAGlgP1Tj7/x6BAMCBkUWuFBlDIYML00tcMPCqqDyYnMEh4eP+vP/yfgZ9BhCFmcdZfD7CCboPGlpZ953QYGBIVpRY6c3JClADNwKOkoaHh"
    "/00A0H4+rw=="
)
"""Images of 16x16 equal pixels, compressed: (0x123, 0x234, 0x345) of 10 bits, and (0x1230, 0x2340, 0x3450)."""


@pytest.mark.parametrize(
    ("content", "bits", "colour"),
    [(AVIF_OF_TEN_BITS, 10, (73, 141, 207)), (JPEG_2000_OF_SIXTEEN_BITS, 16, (0x12, 0x23, 0x34))],
)
def test_wide_colour_that_pillow_reduces_is_said(content: str, bits: int, colour: tuple[int, ...]) -> None:
    pixels, facts = decode(zlib.decompress(base64.b64decode(content)), 16, 3)
    assert facts.changes == (f"{bits}-bit colour reduced to 8 bits",)
    assert np.array_equal(pixels, np.broadcast_to(np.array(colour)[:, None, None], (3, 16, 16)))
    for form in ("AVIF", "JPEG2000"):
        for mode in ("L", "LA", "RGB", "RGBA"):
            assert not any("reduced" in change for change in read(encoded(Image.new(mode, (32, 32)), form))[1].changes)


@pytest.mark.parametrize("greatest", [1000, 65535])
@pytest.mark.parametrize("plain", [False, True])
def test_colour_of_a_ppm_keeps_its_bits(plain: bool, greatest: int) -> None:
    values = np.random.default_rng(0).integers(0, greatest + 1, (32, 32, 3))
    values[0, :2, 0] = 0, greatest
    head = f"{'P3' if plain else 'P6'} 32 32 {greatest}\n".encode()
    numbers = "# 7\n".join(map("{} ".format, values.reshape(-1))).encode() if plain else values.astype(">u2").tobytes()
    pixels, facts = decode(head + numbers, 32, 3, how=Conversion.of("crop", "0:65535"))
    assert np.array_equal(pixels.transpose(1, 2, 0), np.rint(np.rint(values * (65535 / greatest)) / 65535 * 255))
    assert facts.changes == ("16-bit scaled from 0...65535",) and facts.values == wide_values(head + numbers)
    assert facts.values is not None and (facts.values.low, facts.values.high) == (0, 65535)
    assert decode_error(head + numbers[:-20]) == "is cut off (it has fewer numbers than pixels)"
    if greatest < 65535:
        high = b"1001 " * 3072 if plain else b"\xff" * 6144
        assert decode_error(head + high) == "is not a readable image (a number is not in 0...1000)"
    assert "16-bit" not in str(decode(encoded(Image.new("RGB", (32, 32)), "PPM"), 32, 3)[1].changes)


def test_planes_of_sixteen_bits_are_not_read_as_pixels() -> None:
    content = tiff_of_sixteen_bits(np.ones((32, 32, 3), np.uint16), "<", False, planes=2)
    assert "has 16-bit colour in separate planes" in decode_error(content)


def decode_error(content: bytes) -> str:
    with pytest.raises(Broken) as error:
        decode(content, 32, 3)
    return str(error.value)


def png_of_sixteen_bits(values: np.ndarray, key: tuple[int, ...] | None = None) -> bytes:
    height, width, channels = values.shape
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    colour_type = {2: 4, 3: 2, 4: 6}[channels]
    parts = [(b"IHDR", struct.pack(">IIBBBBB", width, height, 16, colour_type, 0, 0, 0))]
    parts += [(b"tRNS", struct.pack(">3H", *key))] if key else []
    parts += [(b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body)) for name, body in parts
    )


def tiff_of_sixteen_bits(values: np.ndarray, order: str, compressed: bool, planes: int = 1) -> bytes:
    height, width, channels = values.shape
    pixels = values.astype(f"{order}u2").tobytes()
    if compressed:
        pixels = zlib.compress(pixels)
    entries = {
        256: width, 257: height, 259: 8 if compressed else 1, 262: 2, 277: channels, 278: height, 279: len(pixels),
        284: planes,
    } | ({338: 2} if channels == 4 else {})  # fmt: skip
    start = 8 + 2 + 12 * (len(entries) + 2) + 4  # of the depths; then the pixels
    entries |= {258: start, 273: start + 2 * channels}
    body = struct.pack(f"{order}H", len(entries))
    for tag, value in sorted(entries.items()):
        kind, count = (3, channels) if tag == 258 else (4, 1)
        body += struct.pack(f"{order}HHII", tag, kind, count, value)
    depths = struct.pack(f"{order}{channels}H", *[16] * channels)
    head = (b"II" if order == "<" else b"MM") + struct.pack(f"{order}HI", 42, 8)
    return head + body + bytes(4) + depths + pixels


def test_images_with_nan_pixels_are_broken() -> None:
    with pytest.raises(Broken, match="not numbers"):
        read(encoded(Image.fromarray(np.full((32, 32), np.nan, np.float32)), "TIFF"))


@pytest.mark.parametrize("form", ["JPEG", "TIFF"])
def test_cmyk_red_is_red(form: str) -> None:
    options = {"quality": 95} if form == "JPEG" else {}
    content = encoded(halves("CMYK", (0, 255, 255, 0), (255, 255, 0, 0)), form, **options)
    assert assert_halves(content, RED, BLUE, off=6).changes == ("CMYK to RGB",)


@pytest.mark.parametrize("form", ["JPEG", "PNG", "TIFF", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied_once(form: str, orientation: int) -> None:
    """An image with a red top left corner is stored as a camera stores it, and read upright."""
    upright = Image.new("RGB", (64, 64), BLUE)
    upright.paste(RED, (0, 0, 32, 16))
    flip, turn = Image.Transpose.FLIP_LEFT_RIGHT, Image.Transpose
    stored = {
        1: upright, 2: upright.transpose(flip), 3: upright.transpose(turn.ROTATE_180),
        4: upright.transpose(turn.FLIP_TOP_BOTTOM), 5: upright.transpose(turn.TRANSPOSE),
        6: upright.transpose(turn.ROTATE_90), 7: upright.transpose(turn.TRANSVERSE),
        8: upright.transpose(turn.ROTATE_270),
    }[orientation]  # fmt: skip
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"lossless": True} if form == "WEBP" else {"quality": 95} if form == "JPEG" else {}
    pixels, facts = read(encoded(stored, form, exif=exif, **options), 64)
    assert np.abs(pixels.astype(int) - np.asarray(upright)).mean() < 3
    assert ("turned upright as EXIF says" in facts.changes) == (orientation > 1)


def test_only_the_first_frame_is_read() -> None:
    frames = [Image.new("RGB", (32, 32), colour) for colour in (RED, BLUE)]
    for form in ("GIF", "TIFF", "WEBP"):
        options = {"lossless": True} if form == "WEBP" else {}
        content = encoded(frames[0], form, save_all=True, append_images=frames[1:], **options)
        assert assert_halves(content, RED, RED).changes[-1] == f"{form} of which the first frame is taken"


def test_the_middle_square_is_cropped_and_resized() -> None:
    image = Image.new("RGB", (120, 40), BLUE)
    image.paste(RED, (40, 0, 80, 40))
    pixels, facts = read(encoded(image), 16)
    assert (pixels == RED).all()
    assert facts.conversions(16, 3) == ["cropped to the middle square", "reduced to 16x16"]
    assert read(encoded(image.resize((8, 8))))[1].conversions(32, 1) == ["colour to grey", "enlarged to 32x32"]


def test_a_large_jpeg_is_reduced_without_moire() -> None:
    """Stripes of one pixel become grey, although a large JPEG is decoded at a fraction of its size."""
    stripes = np.zeros((1024, 1024), np.uint8)
    stripes[::2] = 255
    for content in (encoded(Image.fromarray(stripes), "JPEG", quality=95), encoded(Image.fromarray(stripes))):
        pixels, _ = read(content, channels=1)
        assert np.abs(pixels.astype(int) - 127).max() <= 3


def square_png(side: int, header_bytes: int = 13) -> bytes:
    """A PNG of a few bytes that declares an RGB square and has no pixels."""

    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)[:header_bytes]
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_broken_images_report_the_reason() -> None:
    photo = encoded(Image.effect_noise((200, 200), 80).convert("RGB"), "JPEG")
    postscript = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n"
    for content, reason in (
        (b"", "is empty"),
        (b"no image", "no PNG, JPEG, .* or QOI"),
        (postscript, "no PNG, JPEG, .* or QOI"),
        (photo[: len(photo) // 2], "is cut off"),
        (square_png(60_000), "too many pixels"),
        (square_png(10_001), "10,001 x 10,001 pixels; at most 100,000,000"),
        (square_png(32, header_bytes=5), "is cut off .Truncated IHDR chunk"),  # a ValueError of Pillow's
    ):
        with pytest.raises(Broken, match=reason):
            decode(content, 32, 3)


@pytest.mark.filterwarnings("ignore")  # Pillow's warnings about single files
@pytest.mark.parametrize("form", FORMATS)
def test_damaged_bytes_are_read_or_raise_broken(form: str) -> None:
    rng = np.random.default_rng(0)
    whole = encoded(halves("RGB", RED, BLUE), form)
    for _ in range(150):
        damaged = bytearray(whole[: rng.integers(1, len(whole) + 1)])
        for place in rng.integers(0, len(damaged), rng.integers(0, 6)):
            damaged[place] = rng.integers(0, 256)
        try:
            read(bytes(damaged), 16)
        except Broken as reason:
            assert "\n" not in str(reason)
