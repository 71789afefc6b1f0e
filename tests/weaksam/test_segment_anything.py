"""SAM behind the protocol, box by box against the package's own predictor and mask generator."""

from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("segment_anything", reason="needs the extra [sam]")

from segment_anything import SamAutomaticMaskGenerator, SamPredictor, sam_model_registry

from tests.weaksam.samples import combined_prompts, picture, tiny_sam
from weaksam.proposals.boxes import mask_boxes
from weaksam.proposals.prompts import Clicks, Grid, click_proposals, grid_proposals
from weaksam.segmenters.extras import ALL_PARTS
from weaksam.segmenters.protocol import PromptBatch
from weaksam.segmenters.segment_anything import SegmentAnything, load_segment_anything

IMAGE = picture(3)


@pytest.fixture(scope="module")
def sam():
    return tiny_sam()


@pytest.fixture
def segmenter(sam):
    segmenter = SegmentAnything(sam, "random")
    segmenter.set_image(IMAGE)
    return segmenter


@pytest.mark.parametrize("thresholds", [(0.3, 0.3, 0.3), (0.0, 0.0, 0.7), (0.5, 0.1, 0.9)])
def test_grid_equals_the_automatic_mask_generator(sam, segmenter, thresholds):
    iou, stability, nms = thresholds
    generator = SamAutomaticMaskGenerator(
        sam,
        points_per_side=5,
        pred_iou_thresh=iou,
        stability_score_thresh=stability,
        box_nms_thresh=nms,
    )
    made = [record for record in generator.generate(IMAGE) if record["area"] > 0]
    assert len(made) > 1
    want = np.array([record["bbox"] for record in made], float)
    want[:, 2:] += want[:, :2] + 1  # to half-open corners
    got = grid_proposals(segmenter, IMAGE.shape[:2], Grid(5, iou, stability, nms))
    np.testing.assert_array_equal(got.boxes, want)
    np.testing.assert_allclose(got.scores, [r["predicted_iou"] for r in made], rtol=1e-5)


def test_clicks_equal_the_predictor(sam, segmenter):
    predictor = SamPredictor(sam)
    predictor.set_image(IMAGE)
    xy = np.array([[10.0, 12.0], [40.0, 30.0], [70.0, 50.0], [25.0, 44.0]])
    classes = np.array([1, 0, 1, 1])
    prompts = [xy[i : i + 1] for i in range(4)] + [xy[classes == c] for c in (0, 1)]
    want, dropped = [], 0
    for clicks in prompts:
        masks, _, _ = predictor.predict(clicks, np.ones(len(clicks)), multimask_output=True)
        for mask in masks[1:]:
            rows, columns = np.nonzero(mask)
            if len(rows):
                want.append([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1])
            dropped += len(rows) == 0
    got = click_proposals(segmenter, "fine", xy, classes, Clicks())
    np.testing.assert_array_equal(got.boxes, want)
    assert got.dropped == dropped


@pytest.mark.parametrize("multimask", [False, True])
def test_boxes_equal_the_predictor_on_corner_pixels(sam, segmenter, multimask):
    predictor = SamPredictor(sam)
    predictor.set_image(IMAGE)
    boxes = np.array([[4.0, 6.0, 40.0, 33.0], [30.0, 20.0, 80.0, 60.0]])
    (batch,) = segmenter.boxes(boxes, multimask)
    for box, masks, scores in zip(boxes, batch.masks, batch.predicted_iou, strict=True):
        want, quality, _ = predictor.predict(box=box - [0, 0, 1, 1], multimask_output=multimask)
        np.testing.assert_array_equal(masks.numpy(), want)
        np.testing.assert_allclose(scores, quality, rtol=1e-4)


def test_combined_prompts_equal_the_predictor(sam, segmenter):
    """Clicks on and off the object, a box and a mask at once, in any selection."""
    predictor = SamPredictor(sam)
    predictor.set_image(IMAGE)
    prompts = combined_prompts(IMAGE.shape[:2])
    for parts in ({"clicks"}, {"clicks", "background"}, {"boxes", "masks"}, ALL_PARTS):
        asked = PromptBatch(**{name: getattr(prompts, name) for name in parts})
        (batch,) = segmenter.combined(asked)
        assert batch.masks.shape == (3, 3, 60, 80)
        for row in range(3):
            words = {"multimask_output": True}
            if "clicks" in parts:
                words["point_coords"] = prompts.clicks[row]
                off = prompts.background[row] if "background" in parts else np.zeros(2, bool)
                words["point_labels"] = (~off).astype(int)
            if "boxes" in parts:
                words["box"] = prompts.boxes[row] - [0, 0, 1, 1]
            if "masks" in parts:  # 60 x 80 pixels are 24 x 32 of the prompt's 32 x 32
                small = torch.nn.functional.interpolate(
                    torch.from_numpy(prompts.masks[row])[None, None], (24, 32), mode="area"
                )
                words["mask_input"] = np.pad(small[0, 0].numpy(), ((0, 8), (0, 0)))[None]
            want, quality, _ = predictor.predict(**words)
            assert (batch.masks[row].numpy() != want).mean() < 1e-3
            np.testing.assert_allclose(batch.predicted_iou[row], quality, rtol=1e-3)


def test_the_embedding_shows_the_image_alone(sam, segmenter):
    predictor = SamPredictor(sam)
    predictor.set_image(IMAGE)
    embedding = segmenter.embedding()
    assert embedding.shape == (32, 6, 8)  # of 8 x 8, two rows are padding
    np.testing.assert_allclose(embedding, predictor.features[0, :, :6].numpy(), rtol=1e-5)


def test_batches_do_not_change_the_masks(sam, segmenter):
    xy = np.random.default_rng(0).integers(0, 60, (7, 2))
    (whole,) = segmenter.points(xy)
    segmenter.prompts_per_batch = 3
    parts = list(segmenter.points(xy))
    assert [len(part.prompts) for part in parts] == [3, 3, 1]
    torch.testing.assert_close(
        torch.cat([mask_boxes(part.masks) for part in parts]), mask_boxes(whole.masks)
    )


def test_missing_file_says_where_to_get_it(tmp_path: Path):
    with pytest.raises(FileNotFoundError, match=r"sam\.pth.*sam_vit_h_4b8939\.pth \(2\.6 GB\)"):
        load_segment_anything("vit_h", tmp_path / "sam.pth")


def test_unknown_size_is_an_error(tmp_path: Path):
    with pytest.raises(ValueError, match="vit_x.*vit_b"):
        load_segment_anything("vit_x", tmp_path / "sam.pth")


def test_file_of_another_size_is_named(tmp_path: Path):
    state = {f"image_encoder.blocks.{i}.norm1.weight": torch.zeros(1) for i in range(24)}
    state["image_encoder.pos_embed"] = torch.zeros(1, 64, 64, 1024)
    torch.save(state, tmp_path / "sam.pth")
    with pytest.raises(ValueError, match="say segment_anything:vit_l:"):
        load_segment_anything("vit_b", tmp_path / "sam.pth")


def test_other_files_are_no_sam(tmp_path: Path):
    torch.save({"model": torch.zeros(3)}, tmp_path / "sam.pth")
    with pytest.raises(ValueError, match="no SAM file"):
        load_segment_anything("vit_b", tmp_path / "sam.pth")
    (tmp_path / "text.pth").write_text("not found")
    with pytest.raises(ValueError, match="text.pth"):
        load_segment_anything("vit_b", tmp_path / "text.pth")


def test_pickle_that_calls_something_is_refused(tmp_path: Path):
    class Call:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "called",))

    torch.save({"model": Call()}, tmp_path / "sam.pth")
    with pytest.raises(ValueError, match="was not loaded"):
        load_segment_anything("vit_b", tmp_path / "sam.pth")
    assert not (tmp_path / "called").exists()


def test_a_file_that_fits_is_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """With the registry's vit_b made small, as the real one has 94 million weights."""
    sam = tiny_sam(5)
    torch.save(sam.state_dict(), tmp_path / "sam.pth")
    monkeypatch.setitem(sam_model_registry, "vit_b", lambda: tiny_sam(6))
    monkeypatch.setattr(
        "weaksam.segmenters.segment_anything.FILES", {"vit_b": ("sam.pth", "1 MB", 2, 32)}
    )
    loaded = load_segment_anything("vit_b", tmp_path / "sam.pth")
    fresh = SegmentAnything(sam, "")
    for segmenter in (loaded, fresh):
        segmenter.set_image(IMAGE)
    pairs = zip(loaded.points([[20, 30]]), fresh.points([[20, 30]]), strict=True)
    assert all(torch.equal(a.masks, b.masks) for a, b in pairs)
