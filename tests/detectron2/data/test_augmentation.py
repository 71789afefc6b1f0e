from unittest import mock

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from detectron2.data import transforms as T


@pytest.fixture(autouse=True)
def seeded():
    np.random.seed(0)


def image_of(height, width, channels=3):
    return np.random.default_rng(0).integers(0, 256, (height, width, channels), dtype=np.uint8)


def test_augmentations_print_the_arguments_that_were_given():
    assert repr(T.RandomFlip()) == "RandomFlip()"
    assert repr(T.RandomFlip(prob=0.25)) == "RandomFlip(prob=0.25)"
    crop = T.RandomCrop("relative", (0.5, 0.5))
    assert str(crop) == "RandomCrop(crop_type='relative', crop_size=(0.5, 0.5))"
    both = T.AugmentationList([T.RandomFlip(), crop])
    assert str(both) == f"AugmentationList[RandomFlip(), {crop}]"


def test_an_augmentation_gets_the_inputs_that_its_parameters_name():
    class ByMap(T.Augmentation):
        def get_transform(self, image, sem_seg):
            assert sem_seg.shape == image.shape == (10, 12)
            return T.ResizeTransform(10, 12, 5, 6)

    class ByAnyName(T.Augmentation):
        def get_transform(self, picture):
            assert picture.shape == (5, 6)  # sees what the one before it made
            return T.HFlipTransform(6)

    class ByMissing(T.Augmentation):
        def get_transform(self, image, depth):
            raise AssertionError("never called")

    class ByStar(T.Augmentation):
        def get_transform(self, image, *others):
            raise AssertionError("never called")

    image, sem_seg = np.zeros((10, 12), dtype=np.float32), np.eye(10, 12, dtype=np.uint8)
    inputs = T.AugInput(image, sem_seg=sem_seg)
    inputs.boxes = np.array([[0.0, 0.0, 4.0, 10.0]])
    transforms = inputs.apply_augmentations([ByMap(), ByAnyName()])
    assert isinstance(transforms[0], T.ResizeTransform)
    assert isinstance(transforms[1], T.HFlipTransform)
    assert inputs.image.shape == inputs.sem_seg.shape == (5, 6)
    assert inputs.boxes.tolist() == [[4, 0, 6, 5]]
    with pytest.raises(AttributeError, match="needs input 'depth'"):
        T.AugmentationList([ByMissing()])(inputs)
    with pytest.raises(TypeError, match="others"):
        T.AugmentationList([ByStar()])(inputs)


def test_apply_augmentations_takes_arrays_inputs_and_plain_transforms():
    image = image_of(4, 6)
    flipped, transforms = T.apply_augmentations([T.HFlipTransform(6)], image)
    np.testing.assert_array_equal(flipped, image[:, ::-1])
    assert len(transforms) == 1
    inputs, _ = T.apply_transform_gens([T.Resize(8)], T.StandardAugInput(image))
    assert inputs.image.shape == (8, 8, 3)
    nested = T.AugmentationList([T.AugmentationList([T.RandomFlip(), T.Resize(5)]), T.Resize(3)])
    assert len(nested(T.AugInput(image))) == 3


@pytest.mark.parametrize("image", ["file.jpg", np.zeros((2, 2), np.int64), np.zeros(3, np.uint8)])
def test_images_of_another_kind_are_refused(image):
    with pytest.raises((TypeError, ValueError), match="numpy array|dtype|shape"):
        T.AugInput(image)


@pytest.mark.parametrize("wrong", [-0.01, 1.01])
def test_random_apply_needs_a_probability(wrong):
    with pytest.raises(AssertionError, match="probability"):
        T.RandomApply(T.NoOpTransform(), prob=wrong)


def test_random_apply_asks_what_it_wraps_only_when_chosen():
    wrapped = mock.MagicMock(spec=T.Augmentation)
    apply = T.RandomApply(wrapped, prob=0.3)
    with mock.patch.object(apply, "_rand_range", return_value=0.29):
        assert apply.get_transform("image") is wrapped.get_transform.return_value
    wrapped.get_transform.reset_mock()
    with mock.patch.object(apply, "_rand_range", return_value=0.31):
        assert isinstance(apply.get_transform("image"), T.NoOpTransform)
        assert isinstance(apply(T.AugInput(image_of(4, 4))), T.NoOpTransform)
    wrapped.get_transform.assert_not_called()
    transform = T.HFlipTransform(4)
    assert T.RandomApply(transform, prob=1.0).get_transform("image") is transform


def test_random_flip_flips_as_often_as_asked():
    image = image_of(4, 6)
    kinds = [type(T.RandomFlip(0.3).get_transform(image)) for _ in range(1000)]
    assert 250 < kinds.count(T.HFlipTransform) < 350
    vertical = T.RandomFlip(1.0, horizontal=False, vertical=True).get_transform(image)
    np.testing.assert_array_equal(vertical.apply_image(image), image[::-1])
    with pytest.raises(ValueError, match="exactly one"):
        T.RandomFlip(vertical=True)


@given(
    size=st.tuples(st.integers(1, 2000), st.integers(1, 2000)),
    short=st.integers(1, 1500),
    longest=st.integers(1, 2000),
)
def test_shortest_edge_or_longest_edge_has_the_given_length(size, short, longest):
    new = T.ResizeShortestEdge.get_output_shape(*size, short, longest)
    scale = min(short / min(size), longest / max(size))
    np.testing.assert_allclose(new, np.array(size) * scale, atol=0.5 + 1e-6)


def test_shortest_edge_is_drawn_from_a_range_or_a_list():
    image = image_of(10, 20)
    ranged = {T.ResizeShortestEdge((5, 7)).get_transform(image).new_h for _ in range(50)}
    assert ranged == {5, 6, 7}
    choice = T.ResizeShortestEdge([5, 9, 30], 40, sample_style="choice")
    assert {choice.get_transform(image).new_w for _ in range(50)} == {10, 18, 40}
    assert isinstance(T.ResizeShortestEdge(0).get_transform(image), T.NoOpTransform)
    with pytest.raises(ValueError, match="sample_style='choice'"):
        T.ResizeShortestEdge((5, 6, 7))
    with pytest.raises(ValueError, match="sample_style='wide'"):
        T.ResizeShortestEdge(5, sample_style="wide")


@pytest.mark.parametrize(
    "kind, size, expected",
    [
        ("relative", (0.5, 0.25), {(10, 10)}),
        ("absolute", (7, 50), {(7, 40)}),
        ("absolute_range", (5, 6), {(5, 5), (5, 6), (6, 5), (6, 6)}),
    ],
)
def test_crops_have_the_size_asked_for(kind, size, expected):
    image = image_of(20, 40)
    crops = [T.RandomCrop(kind, size).get_transform(image) for _ in range(40)]
    assert {crop.apply_image(image).shape[:2] for crop in crops} == expected


@settings(max_examples=50, deadline=None)
@given(size=st.tuples(st.integers(2, 60), st.integers(2, 60)), share=st.floats(0.3, 1.0))
def test_relative_range_crops_stay_inside_the_image(size, share):
    crop = T.RandomCrop("relative_range", (share, share)).get_transform(np.zeros(size))
    assert 0 <= crop.x0 <= size[1] - crop.w and 0 <= crop.y0 <= size[0] - crop.h
    assert crop.h >= size[0] * share - 0.51 and crop.w >= size[1] * share - 0.51


def test_crops_that_make_no_sense_are_refused():
    with pytest.raises(ValueError, match="crop_type='half'"):
        T.RandomCrop("half", (1, 1))
    with pytest.raises(ValueError, match="relative"):
        T.RandomCrop("relative", (2.0, 2.0)).get_transform(image_of(5, 5))
    with pytest.raises(ValueError, match=r"\(min, max\)"):
        T.RandomCrop("absolute_range", (9, 3)).get_transform(image_of(20, 20))


@pytest.mark.parametrize("height, width", [(20, 30), (5, 30), (20, 8), (5, 8)])
def test_fixed_size_crop_pads_right_and_below(height, width):
    image = image_of(height, width)
    out = T.FixedSizeCrop((12, 16), pad_value=7).get_transform(image).apply_image(image)
    assert out.shape == (12, 16, 3)
    kept_h, kept_w = min(height, 12), min(width, 16)
    assert (out[kept_h:] == 7).all() and (out[:, kept_w:] == 7).all()
    if height <= 12 and width <= 16:
        np.testing.assert_array_equal(out[:height, :width], image)
    unpadded = T.FixedSizeCrop((12, 16), pad=False).get_transform(image).apply_image(image)
    assert unpadded.shape == (kept_h, kept_w, 3)


def test_resize_scale_fits_the_image_into_the_scaled_target():
    transform = T.ResizeScale(0.5, 0.5, 100, 80).get_transform(image_of(20, 10))
    assert (transform.new_h, transform.new_w) == (50, 25)


def test_boxes_and_polygons_follow_a_chain_of_augmentations():
    np.random.seed(125)
    augmentations = [
        T.ResizeScale(0.2, 2.0, 1100, 1000),
        T.FixedSizeCrop((1100, 1000)),
        T.RandomFlip(),
    ]
    image, transforms = T.apply_augmentations(augmentations, np.zeros((900, 800)))
    assert image.shape == (1100, 1000)
    resize, crop = transforms[0], transforms[1]
    x, y = resize.new_w / 800, resize.new_h / 900
    box = transforms.apply_box(np.array([[91.0, 46.0, 144.0, 111.0]]))[0]
    flips = isinstance(transforms[-1], T.HFlipTransform)
    left, right = 91 * x - crop.x0, 144 * x - crop.x0
    left, right = (1000 - right, 1000 - left) if flips else (left, right)
    np.testing.assert_allclose(box, [left, 46 * y - crop.y0, right, 111 * y - crop.y0])
    corners = np.array([[91.0, 46.0], [144.0, 46.0], [144.0, 111.0], [91.0, 111.0]])
    (polygon,) = transforms.apply_polygons([corners])
    np.testing.assert_allclose([*polygon.min(0), *polygon.max(0)], box)


def test_rotation_draws_angle_and_centre():
    image = image_of(10, 20)
    choice = T.RandomRotation([90, 180], sample_style="choice", expand=False)
    assert {choice.get_transform(image).angle for _ in range(20)} == {90, 180}
    ranged = T.RandomRotation((10, 20), center=[[0.4, 0.4], [0.6, 0.6]], expand=False)
    for _ in range(10):
        rotation = ranged.get_transform(image)
        assert 10 <= rotation.angle <= 20
        assert 8 <= rotation.center[0] <= 12 and 4 <= rotation.center[1] <= 6
    assert isinstance(T.RandomRotation(360.0).get_transform(image), T.NoOpTransform)


def test_extent_shifts_and_scales_within_its_ranges():
    transform = T.RandomExtent((0.5, 0.5), (0, 0)).get_transform(image_of(20, 40))
    assert transform.src_rect == (10, 5, 30, 15) and transform.output_size == (10, 20)


@pytest.mark.parametrize("name", ["RandomContrast", "RandomBrightness", "RandomSaturation"])
def test_intensity_one_changes_nothing_and_zero_leaves_the_other_image(name):
    image = image_of(8, 9)
    make = getattr(T, name)
    same = make(1.0, 1.0).get_transform(image).apply_image(image)
    assert np.abs(same.astype(int) - image).max() <= 1  # float to uint8 truncates
    none = make(0.0, 0.0).get_transform(image).apply_image(image)
    other = {
        "RandomContrast": np.full(image.shape, image.mean()),
        "RandomBrightness": np.zeros(image.shape),
        "RandomSaturation": np.repeat(image @ [[0.299], [0.587], [0.114]], 3, axis=2),
    }[name]
    np.testing.assert_allclose(none, other, atol=1)


def test_lighting_shifts_all_pixels_alike_along_the_principal_components():
    image = np.full((4, 5, 3), 100.0)
    shift = T.RandomLighting(50.0).get_transform(image).apply_image(image) - image
    assert np.ptp(shift.reshape(-1, 3), axis=0).max() < 1e-9 and np.abs(shift).max() > 0
    with pytest.raises(ValueError, match="RGB"):
        T.RandomLighting(1.0).get_transform(image[:, :, :1])


def test_iou_crops_keep_the_centre_of_a_box():
    boxes = np.array([[10.0, 10.0, 30.0, 30.0]])
    augmentation = T.MinIoURandomCrop(min_ious=(0.3,))
    seen = set()
    for _ in range(30):
        crop = augmentation.get_transform(image_of(50, 60), boxes)
        seen.add(type(crop))
        if isinstance(crop, T.CropTransform):
            x0, y0, x1, y1 = crop.apply_box(boxes)[0]
            assert 0 < (x0 + x1) / 2 < crop.w and 0 < (y0 + y1) / 2 < crop.h
            assert 0 <= crop.x0 and crop.x0 + crop.w <= 60 and crop.y0 + crop.h <= 50
    assert seen == {T.CropTransform, T.NoOpTransform}
