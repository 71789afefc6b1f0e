"""SAM of transformers: the same weights give the same boxes as segment-anything's."""

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("segment_anything", reason="needs the extra [sam]")
pytest.importorskip("transformers", reason="needs the extra [sam]")

import transformers

from tests.weaksam.samples import combined_prompts, picture, tiny_sam
from weaksam.proposals.boxes import mask_boxes
from weaksam.proposals.prompts import Clicks, Grid, click_proposals, grid_proposals
from weaksam.segmenters.extras import ALL_PARTS
from weaksam.segmenters.protocol import PromptBatch
from weaksam.segmenters.segment_anything import SegmentAnything
from weaksam.segmenters.spec import load_segmenter
from weaksam.segmenters.transformers import TransformersSegmenter, load_transformers

IMAGE = picture(3)
VISION = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 128,
    "patch_size": 16,
    "window_size": 4,
    "global_attn_indexes": [1],
    "output_channels": 32,
    "mlp_dim": 64,
    "num_pos_feats": 16,
}
PROMPT = {"hidden_size": 32, "image_size": 128, "patch_size": 16, "mask_input_channels": 4}
DECODER = {
    "hidden_size": 32,
    "mlp_dim": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "iou_head_depth": 2,
    "iou_head_hidden_dim": 32,
}
RENAMED = (  # of segment-anything's keys, in this order
    (r"^image_encoder", "vision_encoder"),
    (r"patch_embed\.proj\b", "patch_embed.projection"),
    (r"vision_encoder\.blocks", "vision_encoder.layers"),
    (r"neck\.0", "neck.conv1"),
    (r"neck\.1", "neck.layer_norm1"),
    (r"neck\.2", "neck.conv2"),
    (r"neck\.3", "neck.layer_norm2"),
    (r"\.norm(\d|_final_attn)", r".layer_norm\1"),
    (r"pe_layer\.positional_encoding_gaussian_matrix", "shared_embedding.positional_embedding"),
    (r"point_embeddings", "point_embed"),
    (r"mask_downscaling\.0", "mask_embed.conv1"),
    (r"mask_downscaling\.1", "mask_embed.layer_norm1"),
    (r"mask_downscaling\.3", "mask_embed.conv2"),
    (r"mask_downscaling\.4", "mask_embed.layer_norm2"),
    (r"mask_downscaling\.6", "mask_embed.conv3"),
    (r"output_upscaling\.0", "upscale_conv1"),
    (r"output_upscaling\.1", "upscale_layer_norm"),
    (r"output_upscaling\.3", "upscale_conv2"),
    (r"(mlps\.\d)\.layers\.0", r"\1.proj_in"),
    (r"(mlps\.\d)\.layers\.1", r"\1.layers.0"),
    (r"(mlps\.\d)\.layers\.2", r"\1.proj_out"),
    (r"(prediction_head)\.layers\.0", r"\1.proj_in"),
    (r"(prediction_head)\.layers\.1", r"\1.proj_out"),
)


def converted(sam) -> torch.nn.Module:
    """The weights of a tiny `Sam` in a `SamModel`, every one of them."""
    config = transformers.SamConfig(
        vision_config=transformers.SamVisionConfig(**VISION),
        prompt_encoder_config=transformers.SamPromptEncoderConfig(**PROMPT),
        mask_decoder_config=transformers.SamMaskDecoderConfig(**DECODER),
    )
    state = {}
    for key, value in sam.state_dict().items():
        for pattern, replacement in RENAMED:
            key = re.sub(pattern, replacement, key)
        state[key] = value
    places = "prompt_encoder.shared_embedding.positional_embedding"
    state["shared_image_embedding.positional_embedding"] = state[places]
    model = transformers.SamModel(config)
    model.load_state_dict(state, strict=True)
    return model.eval()


@pytest.fixture(scope="module")
def pair():
    sam = tiny_sam()
    both = SegmentAnything(sam, "official"), TransformersSegmenter(converted(sam), "converted")
    for segmenter in both:
        segmenter.set_image(IMAGE)
    return both


def test_grid_equals_segment_anything(pair):
    for grid in (Grid(5), Grid(5, 0.0, 0.0, 0.7)):
        want, got = (grid_proposals(segmenter, IMAGE.shape[:2], grid) for segmenter in pair)
        assert len(want.boxes) > 1
        np.testing.assert_array_equal(got.boxes, want.boxes)
        np.testing.assert_allclose(got.scores, want.scores, rtol=1e-4)


def test_clicks_equal_segment_anything(pair):
    xy = np.random.default_rng(0).uniform(0, 59, (9, 2))
    classes = np.array([0, 1, 0, 2, 2, 2, 1, 0, 2])
    want, got = (click_proposals(s, "coarse", xy, classes, Clicks()) for s in pair)
    np.testing.assert_array_equal(got.boxes, want.boxes)


@pytest.mark.parametrize("multimask", [False, True])
def test_boxes_equal_segment_anything(pair, multimask):
    boxes = np.array([[4.0, 6.0, 40.0, 33.0], [30.0, 20.0, 80.0, 60.0]])
    (want,), (got,) = (list(segmenter.boxes(boxes, multimask)) for segmenter in pair)
    torch.testing.assert_close(mask_boxes(got.masks), mask_boxes(want.masks))
    assert (got.masks != want.masks).float().mean() < 1e-3


@pytest.mark.parametrize(
    "parts",
    [{"clicks"}, {"clicks", "background"}, {"clicks", "boxes"}, {"boxes", "masks"}, ALL_PARTS],
)
def test_combined_prompts_equal_segment_anything(pair, parts):
    prompts = combined_prompts(IMAGE.shape[:2])
    asked = PromptBatch(**{name: getattr(prompts, name) for name in parts})
    (want,), (got,) = (list(segmenter.combined(asked)) for segmenter in pair)
    assert got.masks.shape == (3, 3, 60, 80)
    assert (got.masks != want.masks).float().mean() < 1e-3
    torch.testing.assert_close(got.predicted_iou, want.predicted_iou, rtol=1e-3, atol=1e-4)


def test_embeddings_equal_segment_anything(pair):
    want, got = (segmenter.embedding() for segmenter in pair)
    assert got.shape == want.shape == (32, 6, 8)
    np.testing.assert_allclose(got, want, rtol=1e-3, atol=1e-3)


def test_a_saved_model_is_loaded_by_its_folder(pair, tmp_path: Path):
    model = converted(tiny_sam())
    model.save_pretrained(tmp_path / "sam")
    loaded = load_segmenter(f"transformers:{tmp_path / 'sam'}", device="cpu")
    loaded.set_image(IMAGE)
    (want,), (got,) = pair[1].points([[30, 20]]), loaded.points([[30, 20]])
    assert torch.equal(want.masks, got.masks)
    again = load_segmenter(f"transformers:{tmp_path / 'sam'}", device="cpu")
    model.mask_decoder.iou_token.weight.data += 1
    model.save_pretrained(tmp_path / "other")
    other = load_segmenter(f"transformers:{tmp_path / 'other'}", device="cpu")
    assert again.identity == loaded.identity != other.identity


def test_masks_of_sam_hq_come_finest_first(tmp_path: Path):
    """It sorts its masks by predicted IoU, but which ones to keep goes by fineness."""
    config = transformers.SamHQConfig(
        vision_config=transformers.SamHQVisionConfig(**VISION),
        prompt_encoder_config=transformers.SamHQPromptEncoderConfig(**PROMPT),
        mask_decoder_config=transformers.SamHQMaskDecoderConfig(**DECODER, vit_dim=32),
    )
    torch.manual_seed(0)
    transformers.SamHQModel(config).save_pretrained(tmp_path)
    segmenter = load_transformers(str(tmp_path))
    segmenter.set_image(IMAGE)
    (batch,) = segmenter.points(np.random.default_rng(0).uniform(0, 59, (12, 2)))
    assert batch.masks.shape == (12, 3, 60, 80)
    areas = batch.masks.sum((2, 3))
    assert (areas[:, 1:] >= areas[:, :-1]).all() and areas.unique().numel() > 1
    scores = batch.predicted_iou
    assert (scores[:, 1:] > scores[:, :-1]).any()  # no longer best first
    (single,) = segmenter.boxes([[3, 4, 50, 40]])
    assert single.masks.shape == (1, 1, 60, 80)
    assert_combines(segmenter)


def test_sam_2_sees_a_square(tmp_path: Path):
    config = transformers.Sam2Config(
        vision_config=transformers.Sam2VisionConfig(
            backbone_config=transformers.Sam2HieraDetConfig(
                hidden_size=8,
                num_attention_heads=1,
                image_size=[128, 128],
                blocks_per_stage=[1, 1, 2, 1],
                embed_dim_per_stage=[8, 16, 32, 64],
                num_attention_heads_per_stage=[1, 1, 2, 2],
                window_size_per_stage=[8, 4, 4, 2],
                global_attention_blocks=[3],
                window_positional_embedding_background_size=[2, 2],
            ),
            backbone_channel_list=[64, 32, 16, 8],
            backbone_feature_sizes=[[32, 32], [16, 16], [8, 8]],
            fpn_hidden_size=32,
        ),
        prompt_encoder_config=transformers.Sam2PromptEncoderConfig(
            hidden_size=32, image_size=128, patch_size=16, mask_input_channels=4
        ),
        mask_decoder_config=transformers.Sam2MaskDecoderConfig(**DECODER),
    )
    torch.manual_seed(0)
    transformers.Sam2Model(config).save_pretrained(tmp_path)
    segmenter = load_transformers(str(tmp_path))
    segmenter.set_image(IMAGE)
    (batch,) = segmenter.points([[30, 20], [50, 40]])
    assert batch.masks.shape == (2, 3, 60, 80)
    (batch,) = segmenter.boxes([[3, 4, 50, 40]])
    assert batch.masks.shape == (1, 1, 60, 80)
    assert segmenter.embedding().shape == (32, 8, 8)
    assert_combines(segmenter)


def assert_combines(segmenter: TransformersSegmenter) -> None:
    """Every part of a prompt changes the answer, and prompts do not see each other."""
    prompts = combined_prompts(IMAGE.shape[:2])
    (whole,) = segmenter.combined(prompts)
    assert whole.masks.shape == (3, 3, 60, 80)
    segmenter.prompts_per_batch = 1
    alone = list(segmenter.combined(prompts))
    scores = torch.cat([batch.predicted_iou for batch in alone])
    torch.testing.assert_close(scores, whole.predicted_iou, rtol=1e-3, atol=1e-4)
    for part in ("background", "boxes", "masks"):
        (other,) = list(segmenter.combined(replace(prompts.rows(slice(0, 1)), **{part: None})))
        assert (other.predicted_iou - scores[:1]).abs().max() > 1e-6, part


def test_nothing_is_fetched_without_being_asked():
    with pytest.raises(FileNotFoundError, match="hf download"):
        load_segmenter("transformers:nobody/no-such-sam", device="cpu")


def test_other_models_and_missing_weights_are_refused(tmp_path: Path):
    transformers.BertConfig().save_pretrained(tmp_path / "bert")
    with pytest.raises(ValueError, match="'bert'.*sam"):
        load_transformers(str(tmp_path / "bert"))
    from safetensors.torch import load_file, save_file

    converted(tiny_sam()).save_pretrained(tmp_path / "sam")
    weights = tmp_path / "sam" / "model.safetensors"
    state = load_file(weights)
    del state["mask_decoder.iou_token.weight"]
    save_file(state, weights, {"format": "pt"})
    with pytest.raises(ValueError, match="lacks 1 weights.*iou_token"):
        load_transformers(str(tmp_path / "sam"))
