import numpy as np
import pytest
import torch
from PIL import Image

from detectron2.data.detection_utils import convert_image_to_rgb, convert_PIL_to_numpy, read_image

EXIF_ORIENTATION = 0x0112


@pytest.fixture
def picture():
    return np.random.default_rng(0).integers(0, 256, (6, 9, 3), dtype=np.uint8)


@pytest.mark.parametrize(
    "orientation, stored",  # how a camera with this orientation stores an upright picture
    [
        (1, lambda a: a),
        (2, lambda a: a[:, ::-1]),
        (3, lambda a: a[::-1, ::-1]),
        (4, lambda a: a[::-1]),
        (5, lambda a: a.transpose(1, 0, 2)),
        (6, lambda a: np.rot90(a, 1)),
        (7, lambda a: a.transpose(1, 0, 2)[::-1, ::-1]),
        (8, lambda a: np.rot90(a, -1)),
    ],
)
def test_every_exif_orientation_is_read_upright(tmp_path, picture, orientation, stored):
    exif = Image.Exif()
    exif[EXIF_ORIENTATION] = orientation
    path = tmp_path / "a.png"
    Image.fromarray(np.ascontiguousarray(stored(picture))).save(path, exif=exif)
    np.testing.assert_array_equal(read_image(str(path), "RGB"), picture)
    np.testing.assert_array_equal(read_image(str(path), "BGR"), picture[:, :, ::-1])
    np.testing.assert_array_equal(read_image(str(path)), picture)


def test_grey_palette_and_transparent_files_become_colour(tmp_path, picture):
    grey = picture[:, :, 0]
    Image.fromarray(grey).save(tmp_path / "grey.png")
    expected = np.repeat(grey[:, :, None], 3, axis=2)
    np.testing.assert_array_equal(read_image(str(tmp_path / "grey.png"), "BGR"), expected)
    assert read_image(str(tmp_path / "grey.png"), "L").shape == (6, 9, 1)

    few = (picture // 128) * 128
    Image.fromarray(few).quantize(8).save(tmp_path / "palette.png")
    np.testing.assert_array_equal(read_image(str(tmp_path / "palette.png"), "RGB"), few)

    alpha = np.dstack([picture, grey])
    Image.fromarray(alpha).save(tmp_path / "alpha.png")
    np.testing.assert_array_equal(read_image(str(tmp_path / "alpha.png"), "RGB"), picture)


def test_cmyk_files_become_colour(tmp_path):
    red = np.full((8, 8, 3), (250, 10, 10), dtype=np.uint8)
    Image.fromarray(red).convert("CMYK").save(tmp_path / "a.jpg", quality=95)
    assert np.abs(read_image(str(tmp_path / "a.jpg"), "BGR").astype(int) - red[..., ::-1]).max() < 8


def test_16_bit_files_keep_their_high_byte(tmp_path):
    deep = np.arange(0, 65536, 1024, dtype=np.uint16).reshape(8, 8)
    Image.fromarray(deep).save(tmp_path / "deep.png")
    expected = np.repeat((deep >> 8).astype(np.uint8)[:, :, None], 3, axis=2)
    np.testing.assert_array_equal(read_image(str(tmp_path / "deep.png"), "BGR"), expected)
    np.testing.assert_array_equal(read_image(str(tmp_path / "deep.png")), deep)


@pytest.mark.parametrize("format", ["RGB", "BGR", "L", "YUV-BT.601"])
def test_formats_convert_back_to_rgb(picture, format):
    image = Image.fromarray(picture)
    expected = np.repeat(np.asarray(image.convert("L"))[:, :, None], 3, 2)
    expected = expected if format == "L" else picture
    converted = convert_PIL_to_numpy(image, format)
    for array in (converted, torch.from_numpy(converted.copy())):
        rgb = convert_image_to_rgb(array, format)
        assert rgb.dtype == np.uint8
        assert np.abs(rgb.astype(int) - expected).max() <= 1


def test_images_that_cannot_be_read_are_named(tmp_path, picture):
    with pytest.raises(FileNotFoundError, match="nowhere.png' does not exist.*DETECTRON2_DATASETS"):
        read_image(str(tmp_path / "nowhere.png"), "BGR")
    text = tmp_path / "text.png"
    text.write_text("no image")
    with pytest.raises(ValueError, match="cannot read image '.*text.png'"):
        read_image(str(text), "BGR")
    noise = np.random.default_rng(0).integers(0, 256, (99, 99, 3), dtype=np.uint8)
    Image.fromarray(noise).save(text)
    text.write_bytes(text.read_bytes()[:9000])  # a download that broke off
    with pytest.raises(ValueError, match="cannot read image '.*text.png'.*damaged"):
        read_image(str(text), "BGR")
