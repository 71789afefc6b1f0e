"""Pictures: right sizes for odd inputs, and colors exactly where the instances are."""

import cv2
import numpy as np
import pytest
import torch
from pycocotools import mask as mask_util

from detectron2.structures import BitMasks, Boxes, BoxMode, Instances, PolygonMasks
from detectron2.utils.generic_mask import GenericMask
from detectron2.utils.vis_image import VisImage
from detectron2.utils.visualizer import ColorMode, Visualizer

HEIGHT, WIDTH, COUNT = 60, 80, 6
METADATA = {
    "thing_classes": [f"class {i}" for i in range(80)],
    "thing_colors": [(250, 10 + i, 10) for i in range(80)],
}
RED = np.array([255, 0, 0])


@pytest.fixture
def data():
    rng = np.random.default_rng(0)
    corners = rng.random((COUNT, 2)) * 30
    masks = np.zeros((COUNT, HEIGHT, WIDTH), dtype=bool)
    for i in range(COUNT):
        masks[i, 5 * i : 5 * i + 20, 10 : 20 + i] = True
    return {
        "img": rng.random((HEIGHT, WIDTH, 3)) * 255,
        "boxes": np.concatenate([corners, corners + 25], axis=1),
        "polygons": [[rng.random(2 * 5) * 60 for _ in range(1 + i % 3)] for i in range(COUNT)],
        "masks": masks,
        "labels": [str(i) for i in range(COUNT)],
    }


def predictions(data) -> Instances:
    instances = Instances((HEIGHT, WIDTH))
    instances.pred_boxes = Boxes(torch.from_numpy(data["boxes"]))
    instances.pred_classes = torch.arange(COUNT)
    instances.scores = torch.linspace(0, 1, COUNT)
    instances.pred_masks = torch.from_numpy(data["masks"])
    instances.pred_points = torch.full((COUNT, 2), 30.0)
    return instances


@pytest.mark.parametrize("scale,size", [(1.0, (60, 80)), (2.0, (120, 160)), (0.33, (20, 26))])
def test_output_size(data, scale, size):
    visualizer = Visualizer(data["img"], scale=scale)
    assert visualizer.get_output().get_image().shape == (*size, 3)
    output = visualizer.overlay_instances(boxes=data["boxes"], labels=data["labels"])
    assert output is visualizer.output and output.get_image().dtype == np.uint8


def test_every_form_of_masks_is_drawn(data):
    rles = [mask_util.encode(np.asfortranarray(m.astype(np.uint8))) for m in data["masks"]]
    generic = [GenericMask(m, HEIGHT, WIDTH) for m in data["masks"]]
    colors = ["red"] * COUNT
    pictures = []
    for masks in (
        data["masks"],
        list(data["masks"]),
        torch.from_numpy(data["masks"]),
        list(torch.from_numpy(data["masks"])),
        BitMasks(torch.from_numpy(data["masks"])),
        rles,
        generic,
    ):
        output = Visualizer(data["img"]).overlay_instances(masks=masks, assigned_colors=colors)
        pictures.append(output.get_image())
    for picture in pictures[1:]:
        np.testing.assert_array_equal(picture, pictures[0])
    for polygons in (data["polygons"], PolygonMasks(data["polygons"])):
        output = Visualizer(data["img"]).overlay_instances(masks=polygons, assigned_colors=colors)
        changed = (output.get_image() != data["img"].astype(np.uint8)).any(axis=2)
        assert changed.any()


def test_mask_pixels_are_mixed_with_the_color(data):
    image = np.full((HEIGHT, WIDTH, 3), 100, dtype=np.uint8)
    mask = data["masks"][2]
    output = Visualizer(image).overlay_instances(masks=[mask], assigned_colors=["red"], alpha=0.4)
    inner = cv2.erode(mask.astype(np.uint8), np.ones((5, 5))) > 0
    outside = cv2.dilate(mask.astype(np.uint8), np.ones((5, 5))) == 0
    want = np.round(0.6 * 100 + 0.4 * RED)
    np.testing.assert_allclose(output.get_image()[inner], np.broadcast_to(want, (inner.sum(), 3)))
    assert (output.get_image()[outside] == 100).all()


@pytest.mark.parametrize("metadata", [None, METADATA])
@pytest.mark.parametrize("mode", list(ColorMode))
def test_predictions_of_any_number_and_fields(data, metadata, mode):
    everything = predictions(data)
    only_boxes = Instances((HEIGHT, WIDTH), pred_boxes=torch.from_numpy(data["boxes"]))
    no_pixels = predictions(data)
    no_pixels.pred_masks = torch.zeros_like(no_pixels.pred_masks)
    for instances in (everything, everything[:0], only_boxes, only_boxes[:0], no_pixels):
        visualizer = Visualizer(data["img"], metadata, instance_mode=mode)
        output = visualizer.draw_instance_predictions(instances)
        assert output.get_image().shape == data["img"].shape


def test_black_and_white_mode_keeps_color_only_in_masks(data):
    instances = predictions(data)[:0]
    visualizer = Visualizer(data["img"], instance_mode=ColorMode.IMAGE_BW)
    gray = visualizer.draw_instance_predictions(instances).get_image()
    assert (gray[..., 0] == gray[..., 1]).all() and (gray[..., 1] == gray[..., 2]).all()
    masks_only = Instances((HEIGHT, WIDTH), pred_masks=torch.from_numpy(data["masks"][2:3]))
    visualizer = Visualizer(data["img"], instance_mode=ColorMode.IMAGE_BW)
    picture = visualizer.draw_instance_predictions(masks_only).get_image()
    inner = cv2.erode(data["masks"][2].astype(np.uint8), np.ones((5, 5))) > 0
    assert (picture[inner].max(axis=1) > picture[inner].min(axis=1)).mean() > 0.9


def test_class_colors_are_used_in_segmentation_mode(data):
    np.random.seed(0)
    instances = Instances((HEIGHT, WIDTH), pred_masks=torch.from_numpy(data["masks"][:1]))
    instances.pred_classes = torch.tensor([3])
    black = np.zeros_like(data["img"])
    visualizer = Visualizer(black, METADATA, instance_mode=ColorMode.SEGMENTATION)
    picture = visualizer.draw_instance_predictions(instances).get_image()
    assert np.abs(picture[3, 13:17].mean(axis=0) / 0.8 / 255 - [1, 0, 0]).max() < 0.6
    assert picture[3, 15, 0] > picture[3, 15, 1:].max()


def annotation(**fields) -> dict:
    return {"category_id": 1, "iscrowd": 0, **fields}


BOX = {"bbox": [10.0, 10.0, 20.0, 15.0], "bbox_mode": BoxMode.XYWH_ABS}
POLYGON = {"segmentation": [[10, 10, 30, 10, 30, 25, 10, 25]]}
UNCOMPRESSED = {"segmentation": {"size": [HEIGHT, WIDTH], "counts": [600, 100, 4100]}}
COMPRESSED = {"segmentation": mask_util.encode(np.asfortranarray(np.eye(HEIGHT, WIDTH, dtype="B")))}


@pytest.mark.parametrize("metadata", [None, METADATA])
@pytest.mark.parametrize(
    "annotations",
    [
        [],
        [annotation(**BOX)],
        [annotation(**BOX, **POLYGON), annotation(**BOX, **COMPRESSED)],
        [annotation(**BOX, segmentation=UNCOMPRESSED["segmentation"], iscrowd=1)],
        [annotation(point=[40.0, 30.0])],
        [annotation(**BOX, **POLYGON), annotation(point=[40.0, 30.0])],
        [annotation(**POLYGON), annotation(**BOX, segmentation=[])],
    ],
)
def test_dataset_dicts_with_all_or_some_fields(annotations, metadata):
    image = np.full((HEIGHT, WIDTH, 3), 128.0)
    for mode in (ColorMode.IMAGE, ColorMode.SEGMENTATION):
        visualizer = Visualizer(image, metadata, instance_mode=mode)
        picture = visualizer.draw_dataset_dict({"annotations": annotations}).get_image()
        assert (picture != 128).any() == bool(annotations)
    assert Visualizer(image).draw_dataset_dict({}).get_image().shape == image.shape


def test_points_are_drawn_where_they_are():
    image = np.full((HEIGHT, WIDTH, 3), 100)
    output = Visualizer(image, scale=3).overlay_instances(
        points=[[40.5, 30.5], [np.nan, np.nan]], assigned_colors=["red", "blue"]
    )
    picture = output.get_image()
    changed = np.argwhere((picture != 100).any(axis=2))
    np.testing.assert_array_equal(picture[30 * 3 + 1, 40 * 3 + 1], RED)
    np.testing.assert_allclose(changed.mean(axis=0), [30 * 3 + 1, 40 * 3 + 1], atol=0.6)
    assert not (picture == [0, 0, 255]).all(axis=2).any()


def test_small_instances_are_on_top_of_large_ones():
    boxes = np.array([[30, 20, 40, 30], [0, 0, 80, 60]], dtype=float)
    masks = np.zeros((2, HEIGHT, WIDTH), dtype=bool)
    masks[0, 20:30, 30:40] = masks[1] = True
    for order in ([0, 1], [1, 0]):
        picture = Visualizer(np.zeros((HEIGHT, WIDTH, 3))).overlay_instances(
            boxes=boxes[order],
            masks=masks[order],
            assigned_colors=np.array(["red", "blue"])[order],
            alpha=0.99,
        )
        assert picture.get_image()[25, 35, 0] > 240


def test_mismatched_lengths_and_odd_inputs_are_named(data):
    visualizer = Visualizer(data["img"])
    with pytest.raises(ValueError, match="'boxes': 6.*'labels': 2"):
        visualizer.overlay_instances(boxes=data["boxes"], labels=["a", "b"])
    with pytest.raises(ValueError, match=r"\(60, 80\).*expected \(H, W, 3\)"):
        Visualizer(data["img"][..., 0])
    with pytest.raises(ValueError, match=r"\(3, 4\).*\(60, 80\)"):
        visualizer.overlay_instances(masks=[np.zeros((3, 4))])
    with pytest.raises(ValueError, match="type int"):
        visualizer.overlay_instances(masks=[1])
    with pytest.raises(ValueError, match="horizontal_alignment='top'"):
        visualizer.draw_text("a", (1, 1), horizontal_alignment="top")


@pytest.mark.parametrize("with_hole", [False, True])
def test_binary_mask_at_the_border(with_hole):
    image = np.broadcast_to(RED, (100, 100, 3))
    mask = np.zeros((100, 100))
    mask[:, 50:75] = 1
    if with_hole:
        mask[60:70, 55:65] = 0
    picture = Visualizer(image, scale=3).draw_binary_mask(mask, color="blue").get_image()
    for row in (picture[0], picture[-1]):
        colors = {tuple(pixel) for pixel in row.tolist()}
        assert (255, 0, 0) in colors and len(colors) >= 2
        if with_hole:  # no edge is drawn then: the two colors are exact
            assert colors == {(255, 0, 0), (128, 0, 128)}
            assert (picture[180:210, 165:195] == RED).all()


def test_binary_mask_leaves_out_specks_and_writes_text():
    mask = np.zeros((HEIGHT, WIDTH), dtype=bool)
    mask[5:8, 5:8] = mask[30:50, 20:60] = True
    black = np.zeros((HEIGHT, WIDTH, 3))
    picture = Visualizer(black).draw_binary_mask(mask, color="red").get_image()
    assert not picture[:15, :15].any() and picture[40, 40, 0] > 0
    picture = Visualizer(black).draw_binary_mask(mask, "red", area_threshold=0).get_image()
    assert picture[6, 6, 0] > 0
    plain = Visualizer(black).draw_binary_mask(mask, "red").get_image()
    texted = Visualizer(black).draw_binary_mask(mask, "red", text="word").get_image()
    assert (plain != texted).any()


def test_lines_circles_and_polygons():
    visualizer = Visualizer(np.zeros((HEIGHT, WIDTH, 3)))
    visualizer.draw_line([0, 80], [10, 10], "red", linewidth=2)
    assert (visualizer.output.get_image()[10, :, 0] > 127).all()
    visualizer.draw_circle((40, 30), "lime", radius=5)
    area = (visualizer.output.get_image()[..., 1] / 255).sum()
    assert np.pi * 5**2 <= area <= np.pi * 6**2  # OpenCV's smoothing adds half a pixel
    polygon = np.array([[50, 20], [70, 20], [70, 40], [50, 40]])
    visualizer.draw_polygon(polygon, "blue", alpha=0.5)
    picture = visualizer.output.get_image()
    assert (picture[30, 60] == [0, 0, 128]).all() and picture[20, 60, 2] > 128


def test_what_lies_outside_of_the_image_is_clipped():
    visualizer = Visualizer(np.zeros((20, 30, 3)))
    visualizer.draw_box([-50, -50, 100, 100])
    visualizer.draw_box([40, 40, 50, 50])
    visualizer.draw_circle((-9, 500), "red")
    visualizer.draw_text("a text that is much wider than the image", (28, 19))
    assert visualizer.get_output().get_image().shape == (20, 30, 3)


def test_saved_pictures_hold_the_pixels(tmp_path):
    image = np.random.default_rng(1).integers(0, 256, (7, 9, 3), dtype=np.uint8)
    VisImage(image).save(str(tmp_path / "a.png"))
    np.testing.assert_array_equal(cv2.imread(str(tmp_path / "a.png"))[..., ::-1], image)
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]


def test_generic_mask_converts_both_ways():
    mask = np.zeros((HEIGHT, WIDTH), dtype=np.uint8)
    mask[10:30, 20:50] = 1
    from_pixels = GenericMask(mask, HEIGHT, WIDTH)
    assert not from_pixels.has_holes and len(from_pixels.polygons) == 1
    assert from_pixels.area() == 600 and from_pixels.bbox().tolist() == [20, 10, 50, 30]
    again = GenericMask(from_pixels.polygons, HEIGHT, WIDTH)
    assert np.abs(again.mask.astype(int) - mask).sum() <= 100  # the outline runs through centers
    with_hole = mask.copy()
    with_hole[15:20, 25:30] = 0
    assert GenericMask(with_hole, HEIGHT, WIDTH).has_holes
    empty = GenericMask([], HEIGHT, WIDTH)
    assert empty.area() == 0 and empty.bbox().tolist() == [0, 0, 0, 0] and empty.polygons == []
    assert GenericMask(0 * mask, HEIGHT, WIDTH).polygons == []
    assert GenericMask([[1, 2, 3, 4]], HEIGHT, WIDTH).area() == 0
