import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

from detectron2.data import transforms as T


def random_image(shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


@pytest.mark.parametrize("extra", [(), (1,), (3,)])
@pytest.mark.parametrize("dtype", ["uint8", "float32", "bool", "int64"])
def test_resizing_keeps_channels_and_dtype(extra, dtype):
    image = random_image((10, 12, *extra)).astype(dtype)
    transform = T.ResizeTransform(10, 12, 5, 18)
    assert transform.apply_image(image).shape == (5, 18, *extra)
    assert transform.apply_image(image).dtype == dtype
    mask = transform.apply_segmentation(image)
    assert set(np.unique(mask)) <= set(np.unique(image))


def test_resizing_equals_pil_and_refuses_another_size():
    image = random_image((10, 12, 3))
    expected = np.asarray(Image.fromarray(image).resize((18, 5), Image.BILINEAR))
    transform = T.ResizeTransform(10, 12, 5, 18)
    np.testing.assert_array_equal(transform.apply_image(image), expected)
    with pytest.raises(ValueError, match=r"made for images of \(10, 12\)"):
        transform.apply_image(image[1:])
    coords = transform.apply_coords(np.array([[12.0, 10.0]]))
    assert coords.tolist() == [[18, 5]]
    assert transform.inverse().apply_coords(coords).tolist() == [[12, 10]]


@pytest.mark.parametrize("extra", [(), (1,), (3,)])
def test_extent_cuts_and_scales(extra):
    image = random_image((20, 30, *extra))
    transform = T.ExtentTransform((5, 2, 15, 12), (10, 10))
    np.testing.assert_array_equal(transform.apply_image(image), image[2:12, 5:15])
    assert transform.apply_coords(np.array([[5.0, 2.0], [15.0, 12.0]])).tolist() == [
        [0, 0],
        [10, 10],
    ]
    beyond = T.ExtentTransform((-10, 0, 10, 20), (20, 20), interp=Image.NEAREST)
    assert (beyond.apply_image(image)[:, :10] == 0).all()


@pytest.mark.parametrize("expand", [True, False])
def test_a_quarter_turn_is_a_transposition(expand):
    image, (h, w) = np.random.default_rng(0).random((5, 5)), (5, 5)
    rotation = T.RotationTransform(h, w, 90, expand=expand)
    np.testing.assert_allclose(rotation.apply_image(image), image.T[::-1])
    grid = np.array([[x, y] for x in range(6) for y in range(6)], dtype=float)
    expected = np.stack([grid[:, 1], w - grid[:, 0]], axis=1)
    np.testing.assert_allclose(rotation.apply_coords(grid), expected, atol=1e-12)


def test_a_half_turn_flips_both_axes():
    image = np.random.default_rng(0).random((6, 8, 3))
    rotation = T.RotationTransform(6, 8, 180, expand=False)
    np.testing.assert_allclose(rotation.apply_image(image), image[::-1, ::-1], atol=1e-6)
    corner = rotation.apply_coords(np.array([[1.0, 2.0]]))
    np.testing.assert_allclose(corner, [[7, 4]])


def test_rotation_about_a_centre_keeps_it():
    center = np.array([[3.0, 1.0]])
    rotation = T.RotationTransform(9, 7, 33, expand=False, center=(3, 1))
    np.testing.assert_allclose(rotation.apply_coords(center), center)


def test_with_expansion_the_centre_does_not_matter_and_all_corners_stay():
    image = np.random.default_rng(0).random((5, 8))
    corners = np.array([[0, 0], [8, 0], [0, 5], [8, 5]], dtype=float)
    reference = T.RotationTransform(5, 8, 33)
    for center in [(0, 0), (5, 8), (2, 5)]:
        other = T.RotationTransform(5, 8, 33, center=center)
        np.testing.assert_allclose(other.apply_image(image), reference.apply_image(image))
        np.testing.assert_allclose(other.apply_coords(corners), reference.apply_coords(corners))
    turned = reference.apply_coords(corners)
    assert (turned > -0.5).all()
    assert (turned < (reference.bound_w + 0.5, reference.bound_h + 0.5)).all()


@given(
    size=st.tuples(st.integers(2, 40), st.integers(2, 40)),
    angle=st.floats(-180, 180),
    seed=st.integers(0, 1000),
)
@settings(max_examples=40, deadline=None)
def test_an_expanding_rotation_can_be_undone(size, angle, seed):
    h, w = size
    coords = np.random.default_rng(seed).uniform(0, 40, (5, 2))
    rotation = T.RotationTransform(h, w, angle, expand=True)
    back = rotation.inverse().apply_coords(rotation.apply_coords(coords.copy()))
    # rounding the two enlargements to whole pixels may cost half a pixel each
    assert np.abs(back - coords).max() <= 1.0
    with pytest.raises(NotImplementedError, match="expand=True"):
        T.RotationTransform(h, w, angle, expand=False).inverse()


def test_undoing_a_quarter_turn_is_exact():
    image = np.random.default_rng(0).random((5, 8))
    rotation = T.RotationTransform(5, 8, 90)
    np.testing.assert_allclose(rotation.inverse().apply_image(rotation.apply_image(image)), image)


def test_colour_transforms_apply_their_function_and_leave_the_geometry():
    image = random_image((6, 7, 3))
    transform = T.PILColorTransform(lambda img: ImageOps.solarize(img, 100))
    expected = np.asarray(ImageOps.solarize(Image.fromarray(image), 100))
    np.testing.assert_array_equal(transform.apply_image(image), expected)
    np.testing.assert_array_equal(T.ColorTransform(np.flipud).apply_image(image), image[::-1])
    assert transform.apply_segmentation(image) is image and transform.apply_coords(image) is image
    assert isinstance(transform.inverse(), T.NoOpTransform)
    with pytest.raises(ValueError, match="function"):
        T.ColorTransform(3)


def test_cropping_and_padding_undo_each_other():
    image = random_image((10, 12, 3))
    crop = T.CropTransform(2, 3, 6, 5, orig_w=12, orig_h=10)
    restored = crop.inverse().apply_image(crop.apply_image(image))
    np.testing.assert_array_equal(restored[3:8, 2:8], image[3:8, 2:8])
    assert restored.shape == image.shape
    pad = T.PadTransform(1, 2, 3, 4, orig_w=12, orig_h=10)
    np.testing.assert_array_equal(pad.inverse().apply_image(pad.apply_image(image)), image)
    with pytest.raises(AssertionError, match="orig_w"):
        T.CropTransform(2, 3, 6, 5).inverse()


def test_fvcore_s_transforms_are_exported():
    for name in ["HFlipTransform", "VFlipTransform", "ScaleTransform", "GridSampleTransform"]:
        assert issubclass(getattr(T, name), T.Transform)
