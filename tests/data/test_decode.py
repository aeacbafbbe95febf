"""Every kind of image file as RGB, damaged ones as DataError, and decoding at reduced scale."""

import errno
import io
import math
import pickle
import struct
import warnings
import zlib

import numpy as np
import pytest
from PIL import Image

from spvit_jax.data import decode
from spvit_jax.data.errors import DataError
from spvit_jax.sizes import sides

BICUBIC = Image.Resampling.BICUBIC


def photo(width, height, seed=0):
    """Smooth colours with detail down to a few pixels, as photographs have."""
    rng = np.random.default_rng(seed)
    total = np.full((height, width, 3), 128.0)
    for cells, weight in ((3, 0.5), (12, 0.3), (width // 8 + 1, 0.2)):
        noise = rng.integers(0, 256, (cells, cells, 3), np.uint8)
        layer = Image.fromarray(noise).resize((width, height), BICUBIC)
        total += weight * (np.asarray(layer, float) - 128)
    return Image.fromarray(total.clip(0, 255).astype(np.uint8))


def encoded(image, form, **options):
    stream = io.BytesIO()
    image.save(stream, form, **options)
    return stream.getvalue()


def png_of_16_bits(pixels, size=None):
    """RGB [h, w, 3] of 16 bits as PNG, which Pillow does not write; ``size``: what it claims."""
    height, width, _ = pixels.shape
    width, height = size or (width, height)

    def chunk(kind, data):
        check = struct.pack(">I", zlib.crc32(kind + data))
        return struct.pack(">I", len(data)) + kind + data + check

    lines = b"".join(b"\0" + line.astype(">u2").tobytes() for line in pixels)
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 16, 2, 0, 0, 0))
    return (
        b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(lines)) + chunk(b"IEND", b"")
    )


def opened(image, form="PNG", **options):
    return decode.open_image(encoded(image, form, **options), "a file")


def assert_same(first, second):
    assert first.mode == second.mode == "RGB"
    np.testing.assert_array_equal(np.asarray(first), np.asarray(second))


def difference(first, second):
    return np.abs(np.asarray(first, float) - np.asarray(second, float))


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "RGBA", "LA"])
def test_modes_that_keep_their_colours_keep_them(mode):
    image = photo(20, 14).convert(mode)
    assert_same(opened(image).full(), image.convert("RGB"))


def test_transparency_is_dropped_and_the_colour_under_it_stays():
    image = photo(20, 14)
    clear = Image.merge("RGBA", (*image.split(), Image.new("L", image.size, 0)))
    assert_same(opened(clear).full(), image)


@pytest.mark.parametrize("transparency", [3, bytes(range(256))])
def test_a_palette_with_transparency_gives_its_colours_in_silence(transparency):
    image = photo(20, 14).quantize(256)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert_same(opened(image, transparency=transparency).full(), image.convert("RGB"))


def test_cmyk_jpegs_become_rgb():
    image = photo(64, 48)
    found = opened(image.convert("CMYK"), "JPEG", quality=95).full()
    assert found.mode == "RGB" and difference(found, image).mean() < 4


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "big-endian TIFF", "PGM"])
def test_16_bit_grey_is_scaled_not_clipped(kind):
    grey = np.linspace(0, 65535, 200).astype(np.uint16).reshape(10, 20)
    data = {
        "PNG": encoded(Image.fromarray(grey), "PNG"),
        "TIFF": encoded(Image.fromarray(grey), "TIFF"),
        "big-endian TIFF": encoded(Image.fromarray(grey.astype(">u2")), "TIFF"),
        "PGM": b"P5 20 10 65535\n" + grey.astype(">u2").tobytes(),
    }[kind]
    found = np.asarray(decode.open_image(data, "a file").full())
    np.testing.assert_array_equal(found, np.repeat((grey // 256)[:, :, None], 3, axis=2))
    assert found.min() == 0 and found.max() == 255


def test_16_bit_colour_is_scaled_alike():
    pixels = np.linspace(0, 65535, 600).astype(np.uint16).reshape(10, 20, 3)
    found = decode.open_image(png_of_16_bits(pixels), "a file").full()
    np.testing.assert_array_equal(np.asarray(found), pixels // 256)


@pytest.mark.parametrize("form", ["GIF", "WEBP", "PNG"])
def test_of_an_animation_the_first_frame_counts(form):
    first, *others = (photo(20, 14, seed).quantize(16).convert("RGB") for seed in range(3))
    file = opened(first, form, save_all=True, append_images=others, lossless=True)
    assert_same(file.full(), first)


def test_orientation_tags_are_ignored():
    image, exif = photo(64, 48), Image.Exif()
    exif[0x0112] = 6  # to be shown turned by 90 degrees
    found = opened(image, "JPEG", exif=exif)
    assert found.size == (64, 48)
    assert_same(found.full(), opened(image, "JPEG").full())


def test_a_path_and_its_bytes_are_the_same_image(tmp_path):
    image = photo(20, 14)
    image.save(tmp_path / "a.png")
    for path in (tmp_path / "a.png", str(tmp_path / "a.png")):
        assert_same(decode.open_image(path, "a file").full(), image)


def test_arrays_have_the_same_methods():
    image = photo(300, 200)
    memory = decode.from_array(np.asarray(image))
    file, box = opened(image), (10, 20, 210, 190)
    assert memory.size == (300, 200)
    assert_same(memory.full(), image)
    assert_same(memory.crop_resized(box, (40, 50)), file.crop_resized(box, (40, 50)))
    assert_same(memory.centre(64, 56), file.centre(64, 56))
    assert_same(memory.covering(64), file.covering(64))


def test_an_opened_image_can_go_to_another_process():
    for one in (opened(photo(20, 14)), decode.from_array(np.asarray(photo(20, 14)))):
        assert_same(pickle.loads(pickle.dumps(one)).full(), photo(20, 14))


@pytest.mark.parametrize("form", ["JPEG", "PNG", "GIF", "WEBP", "BMP", "MPO"])
@pytest.mark.parametrize("share", [0.5, 0.95])
def test_truncated_files_are_named(form, share):
    data = encoded(photo(400, 300), form)
    cut = data[: int(len(data) * share)]
    if form == "JPEG":  # only the header is read at first
        assert decode.open_image(cut, "a/b.jpg").size == (400, 300)
    with pytest.raises(DataError, match="cannot decode the image a/b.jpg: .+; replace it"):
        decode.open_image(cut, "a/b.jpg").full()
    with pytest.raises(DataError, match="a/b.jpg"):
        decode.open_image(cut, "a/b.jpg").crop_resized((0, 0, 400, 300), (40, 30))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "it has 0 bytes"),
        (b"<html>Not found</html>", "no image format"),
        (b"\xff\xd8\xff", "cannot decode"),
        (encoded(photo(20, 14), "JPEG")[:100], "cannot decode"),
        (png_of_16_bits(np.zeros((1, 1, 3)), (20_000, 20_000)), "decompression bomb"),
        (encoded(Image.new("F", (4, 4)), "TIFF"), "floats .* 8 bits"),
        (encoded(Image.new("I", (4, 4), 65536), "TIFF"), "wider than 16 bits"),
        (encoded(Image.new("I", (4, 4), -1), "TIFF"), "wider than 16 bits"),
    ],
    ids=["empty", "html", "start", "header", "bomb", "floats", "wide", "negative"],
)
def test_what_is_no_usable_image_is_named(data, message):
    with pytest.raises(DataError, match=message) as raised:
        decode.open_image(data, "a/b.jpg").full()
    assert "a/b.jpg" in str(raised.value)


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_random_damage_is_never_another_error():
    rng, failed = np.random.default_rng(0), 0
    files = [encoded(photo(40, 30), form) for form in ("JPEG", "PNG", "GIF", "WEBP", "BMP")]
    for number in range(400):
        data = bytearray(files[number % len(files)])
        for place in rng.integers(min(len(data), 300), size=5):
            data[place] = rng.integers(256)
        try:
            file = decode.open_image(bytes(data), "a file")
            if math.prod(file.size) < 10**6:  # no memory for what a damaged header claims
                file.full()
        except DataError:
            failed += 1
    assert failed > 100


@pytest.mark.parametrize("error", [RuntimeError, struct.error, IndexError, TypeError, EOFError])
def test_what_pillow_raises_of_damage_is_a_data_error(error, monkeypatch):
    file = opened(photo(20, 14))

    def load(image):
        raise error("odd bytes")

    monkeypatch.setattr(Image.Image, "load", load)
    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", load)
    with pytest.raises(DataError, match="cannot decode the image a file: odd bytes"):
        file.full()


@pytest.mark.parametrize("number", [errno.EIO, errno.ESTALE])
def test_a_fault_of_the_disk_that_may_pass_is_not_the_images(tmp_path, monkeypatch, number):
    def refuse(*_):
        raise OSError(number, "not now")

    file = tmp_path / "a.png"
    photo(20, 14).save(file)
    picture = Image.open(file)
    monkeypatch.setattr("pathlib.Path.read_bytes", refuse)
    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", refuse)
    for read in (lambda: decode.open_image(file, "a"), lambda: decode.from_picture(picture)):
        with pytest.raises(OSError, match="not now"):
            read()


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(DataError, match=r"none\.jpg"):
        decode.open_image(tmp_path / "none.jpg", str(tmp_path / "none.jpg"))


def test_the_reduction_is_the_largest_that_leaves_enough():
    rng, found = np.random.default_rng(0), set()
    for _ in range(2000):
        box = tuple(int(side) for side in rng.integers(1, 5000, 2))
        size = tuple(int(side) for side in rng.integers(1, 600, 2))
        n = decode.reduction_for(box, size)
        enough = [m for m in (2, 4, 8) if box[0] / m >= size[0] and box[1] / m >= size[1]]
        assert n == max(enough, default=1)
        found.add(n)
    assert found == {1, 2, 4, 8}


@pytest.mark.parametrize("size", [(401, 303), (64, 64), (65, 71), (9, 403), (8, 8)])
@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"subsampling": 0}])
@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
def test_jpegs_are_decoded_at_exactly_the_reduction_asked_for(size, options, mode):
    file = opened(photo(*size).convert(mode), "JPEG", **options)
    for n in (1, 2, 4, 8):
        assert file._decoded(n).size == (math.ceil(size[0] / n), math.ceil(size[1] / n))


@pytest.mark.parametrize("form", ["JPEG", "MPO"])
@pytest.mark.parametrize("target", [(120, 100), (60, 50), (99, 99), (20, 20)])
def test_a_reduced_crop_is_nearly_the_full_one(form, target, monkeypatch):
    file = opened(photo(643, 481), form, quality=90)
    box = (101, 77, 501, 400)
    expected = file.full().crop(box).resize(target, BICUBIC)
    sizes = []
    resize = Image.Image.resize
    monkeypatch.setattr(
        Image.Image,
        "resize",
        lambda self, *rest, **named: sizes.append(self.size) or resize(self, *rest, **named),
    )
    found = file.crop_resized(box, target)
    n = decode.reduction_for((400, 323), target)
    assert n > 1 and sizes == [(math.ceil(643 / n), math.ceil(481 / n))]
    assert difference(found, expected).mean() < 1.5
    moved = file.full().crop((box[0] + 8, *box[1:])).resize(target, BICUBIC)
    assert difference(moved, expected).mean() > 1.5, "the bound above would notice 8 pixels"


def test_a_crop_that_needs_every_pixel_is_exact():
    file, box = opened(photo(643, 481), "JPEG"), (101, 77, 501, 400)
    expected = file.full().crop(box).resize((224, 224), BICUBIC)
    assert_same(file.crop_resized(box, (224, 224)), expected)


def test_formats_without_reduced_decoding_are_exact():
    image, box = photo(643, 481), (101, 77, 501, 400)
    expected = image.crop(box).resize((50, 50), BICUBIC)
    assert_same(opened(image).crop_resized(box, (50, 50)), expected)


def test_the_short_side_is_resized_and_the_long_one_rounded_down():
    image = photo(29, 20)  # 29 * 32 / 20 = 46.4
    assert_same(opened(image).covering(32), image.resize((46, 32), BICUBIC))
    turned = image.rotate(90, expand=True)
    assert_same(opened(turned).covering(32), turned.resize((32, 46), BICUBIC))
    assert_same(opened(image).covering(20), image)


@pytest.mark.parametrize(
    ("size", "made"),
    [  # of an image 29 wide and 20 high: the width decides, the height, both
        ((10, 29), (29, 20)),
        ((40, 32), (58, 40)),
        ((32, 64), (64, 44)),
        ((20, 29), (29, 20)),
    ],
)
def test_an_image_just_covers_height_and_width(size, made):
    image = photo(29, 20)
    assert_same(opened(image).covering(size), image.resize(made, BICUBIC))


@pytest.mark.parametrize("size", [(500, 375), (375, 501), (1, 1), (3, 900), (256, 256), (257, 256)])
@pytest.mark.parametrize("form", ["PNG", "JPEG"])
def test_the_centre_is_that_of_the_resized_image(size, form):
    file = opened(photo(*size), form)
    for around, wanted in (
        (256, 224),
        (64, 64),
        (65, 56),
        ((64, 96), (56, 84)),
        ((90, 33), (70, 33)),
    ):
        resized, (height, width) = file.covering(around), sides(wanted)
        left, top = round((resized.width - width) / 2), round((resized.height - height) / 2)
        expected = resized.crop((left, top, left + width, top + height))
        found = file.centre(around, wanted)
        assert found.size == (width, height) and difference(found, expected).max() <= 1
        assert difference(found, expected).mean() < 0.03


def test_a_centre_that_fits_is_not_resampled():
    image = photo(40, 32)
    assert_same(opened(image).centre(32, 28), image.crop((6, 2, 34, 30)))


def test_a_centre_larger_than_the_image_is_refused():
    with pytest.raises(ValueError, match="crop of 33 pixels is more than 32"):
        opened(photo(40, 32)).centre(32, 33)
    with pytest.raises(ValueError, match="crop of 24x33 pixels is more than 32"):
        opened(photo(40, 32)).centre(32, (24, 33))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_photographs_are_turned_upright_where_that_is_asked(tmp_path, orientation):
    pixels = np.random.default_rng(0).integers(0, 256, (6, 9, 3)).astype(np.uint8)
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(pixels).save(tmp_path / "photo.png", exif=exif)
    file = tmp_path / "photo.png"
    plain, upright = (decode.open_image(file, "a photo", upright=u) for u in (False, True))
    np.testing.assert_array_equal(plain.full(), pixels)
    turned = pixels if orientation < 5 else pixels.swapaxes(0, 1)
    flips = {2: (1,), 3: (0, 1), 4: (0,), 6: (1,), 7: (0, 1), 8: (0,)}.get(orientation, ())
    np.testing.assert_array_equal(upright.full(), np.flip(turned, flips))
    picture = decode.from_picture(Image.open(file))
    np.testing.assert_array_equal(picture.full(), upright.full())
    assert picture.size == upright.size == upright.full().size
