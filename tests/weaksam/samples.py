"""Small datasets, networks and points for the tests of weaksam."""

import json
from functools import partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from weaklabels.tags import TaggedImage, Tags
from weaksam.segmenters.protocol import BatchedSegmenter, PromptBatch

TAGGED_SIDE = 400  # of the images of `tags_of`


class BlockSegmenter(BatchedSegmenter):
    """A segmenter whose answers are known: rectangles around the clicks' mean, three sizes.

    Mask k reaches 2, 4, 8 pixels to each side; predicted IoUs are 0.5, 0.6, 0.7. A prompt whose
    mean lies in the left 4 columns gets empty masks. encoded: how often an image was set.
    """

    identity = "blocks"
    reaches = (2, 4, 8)

    def __init__(self) -> None:
        super().__init__()
        self.encoded = 0

    def encode(self, image: np.ndarray) -> None:
        self.encoded += 1
        self._hw = image.shape[:2]

    def draw(self, clicks, boxes, multimask):
        middle = clicks.mean(axis=1) if boxes is None else (boxes[:, :2] + boxes[:, 2:]) / 2
        y, x = np.indices(self._hw)
        far = np.maximum(abs(x - middle[:, 0, None, None]), abs(y - middle[:, 1, None, None]))
        logits = torch.stack([torch.from_numpy(r + 0.5 - far) for r in self.reaches], 1)
        logits[torch.from_numpy(middle[:, 0] < 4)] = -9.0
        predicted = torch.tensor([0.5, 0.6, 0.7]).repeat(len(middle), 1)
        keep = slice(0, 3) if multimask else slice(1, 2)
        return logits[:, keep].float(), predicted[:, keep]


def tiny_sam(seed: int = 49):
    """A random `segment_anything` model of 58 thousand weights."""
    from segment_anything.modeling import (
        ImageEncoderViT,
        MaskDecoder,
        PromptEncoder,
        Sam,
        TwoWayTransformer,
    )

    torch.manual_seed(seed)
    sam = Sam(
        image_encoder=ImageEncoderViT(
            depth=2,
            embed_dim=32,
            img_size=128,
            mlp_ratio=2,
            norm_layer=partial(torch.nn.LayerNorm, eps=1e-6),
            num_heads=2,
            patch_size=16,
            qkv_bias=True,
            use_rel_pos=True,
            global_attn_indexes=(1,),
            window_size=4,
            out_chans=32,
        ),
        prompt_encoder=PromptEncoder(
            embed_dim=32, image_embedding_size=(8, 8), input_image_size=(128, 128), mask_in_chans=4
        ),
        mask_decoder=MaskDecoder(
            num_multimask_outputs=3,
            transformer=TwoWayTransformer(depth=2, embedding_dim=32, mlp_dim=64, num_heads=2),
            transformer_dim=32,
            iou_head_depth=2,
            iou_head_hidden_dim=32,
        ),
        pixel_mean=[123.675, 116.28, 103.53],
        pixel_std=[58.395, 57.12, 57.375],
    )
    # As it is, it answers all prompts nearly alike, with masks as large as the image.
    decoder = sam.mask_decoder
    with torch.no_grad():
        for token in (decoder.mask_tokens, decoder.iou_token):
            token.weight *= 0.02
        for weight in decoder.transformer.parameters():
            if weight.ndim == 2:
                weight *= 8
        for layer in (0, 3):
            decoder.output_upscaling[layer].weight *= 8
        for head in decoder.output_hypernetworks_mlps:
            head.layers[-1].weight *= 20
            head.layers[-1].bias.fill_(-3)
        decoder.iou_prediction_head.layers[-1].bias.fill_(0.6)
    return sam.eval()


def picture(seed: int = 0, height: int = 60, width: int = 80) -> np.ndarray:
    """Smooth random colors, uint8 RGB."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (6, 8, 3), dtype=np.uint8))
    return np.array(coarse.resize((width, height), Image.Resampling.BICUBIC))


def combined_prompts(size_hw: tuple[int, int]) -> PromptBatch:
    """Three prompts of every part, on an image of at least 60 x 60."""
    rng = np.random.default_rng(4)
    clicks = rng.uniform(5, 50, (3, 2, 2))
    corners = rng.uniform(3, 25, (3, 2))
    boxes = np.concatenate([corners, corners + rng.uniform(10, 30, (3, 2))], axis=1)
    masks = rng.normal(0, 8, (3, *size_hw)).astype(np.float32)
    return PromptBatch(clicks, np.array([[False, True]] * 3), boxes, masks)


def make_dataset(folder: Path, count: int = 4) -> tuple[Path, Path]:
    """Images of different sizes and the COCO-form file that lists them: (file, image folder)."""
    root = folder / "images"
    root.mkdir(parents=True)
    entries = []
    for index in range(count):
        image = picture(index, 40 + 4 * index, 56)
        Image.fromarray(image).save(root / f"{index + 1:06d}.png")
        entries.append(
            {
                "id": index + 1,
                "file_name": f"{index + 1:06d}.png",
                "height": image.shape[0],
                "width": image.shape[1],
            }
        )
    path = folder / "tags.json"
    path.write_text(json.dumps({"images": entries, "categories": []}))
    return path, root


def write_points(path: Path, images: Path, per_image: int = 4, **changes: np.ndarray) -> Path:
    """A points.npz with random points of classes 0 and 1; every third image has none."""
    entries = json.loads(images.read_text())["images"]
    rng = np.random.default_rng(len(path.name))
    counts = [0 if i % 3 == 2 else per_image for i in range(len(entries))]
    rows = [
        rng.integers(0, (e["width"], e["height"]), (n, 2))
        for e, n in zip(entries, counts, strict=True)
    ]
    total = sum(counts)
    arrays = {
        "ids": np.array([str(e["id"]) for e in entries]),
        "offsets": np.cumsum([0, *counts]),
        "xy": np.concatenate(rows).astype(np.float32),
        "cls": np.arange(total).astype(np.int16) % 2,
        "score": np.ones(total, np.float32),
        "head": np.full(total, -1, np.int8),
        "layer": np.full(total, -1, np.int8),
        "sizes": np.array([(e["height"], e["width"]) for e in entries], np.int32),
        "meta": np.array(json.dumps({"classes": ["a", "b"]})),
    }
    np.savez(path, **{**arrays, **changes})
    return path


def tags_of(*tags_of_images, classes=4) -> Tags:
    """Images 1, 2, ... with these 0-based classes, categories 1, 2, ..."""
    return Tags(
        tuple(
            TaggedImage(n, f"{n}.jpg", TAGGED_SIDE, TAGGED_SIDE, tuple(c + 1 for c in own))
            for n, own in enumerate(tags_of_images, start=1)
        ),
        tuple((c + 1, f"class {c}") for c in range(classes)),
    )


def detection_entry(image_id=1, category_id=1, score=0.5, bbox=(1, 2, 3, 4)):
    """A COCO result."""
    return {
        **{"image_id": image_id, "category_id": category_id, "score": score},
        "bbox": list(bbox) if isinstance(bbox, tuple) else bbox,
    }
