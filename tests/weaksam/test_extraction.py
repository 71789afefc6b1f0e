"""Points of images: passes, labels given and predicted, resume, refusals."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from detectron2.structures import BoxMode
from tests.weaksam import twins
from tests.weaksam.scenes import make_dataset
from tests.weaksam.test_training import SETTINGS, small
from weaksam.clues.checkpoint import load_classifier
from weaksam.clues.data import read_rgb, to_tensor
from weaksam.clues.extract import LAYERS, RELEASED_LAYERS, PointSettings, extract_points
from weaksam.clues.metrics import point_metrics
from weaksam.clues.peaks import PeakSettings
from weaksam.clues.points import PointFile, Points, read_points
from weaksam.clues.train import train_classifier
from weaksam.clues.weaktr import WeakTrConfig

SCALES = (1.0, 0.8, 1.2)
ALL = PointSettings(peaks=PeakSettings(7), cross_peaks=PeakSettings(9), layers=(2, 1))
COARSE = PointSettings(sources=("coarse",), peaks=PeakSettings(7))


def weaktr():
    torch.manual_seed(0)
    model = WeakTrConfig(3, None, 16, 2, 2, 8, 32, mlp_ratio=2, reduction=2).build().eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return model


def test_defaults_are_those_published():
    settings = PointSettings()
    assert settings.scales == SCALES and settings.flip
    assert (settings.peaks.kernel, settings.cross_peaks.kernel) == (17, 129)
    assert (settings.peaks.threshold, settings.peaks.most) == (0.9, 25)
    assert LAYERS == tuple(range(5, 13)) and RELEASED_LAYERS == (9, 10)


def test_points_are_peaks_of_maps_summed_over_scales_and_mirror_images(tmp_path):
    dataset, _ = make_dataset(tmp_path / "data", 2)
    model = weaktr()
    files = extract_points(model, dataset, tmp_path / "out", ALL)
    for number, entry in enumerate(dataset.dicts):
        picture = Image.fromarray(read_rgb(entry))
        passes = []
        for scale in SCALES:
            size = round(56 * scale), round(40 * scale)
            pixels = to_tensor(picture.resize(size, Image.Resampling.BICUBIC))[None]
            passes += [pixels, pixels.flip(3)]
        (class_index,) = entry["image_labels"]
        for source in ("coarse", "fine"):
            maps = [getattr(model.maps(pixels), source) for pixels in passes]
            total = twins.sum_of_passes(maps, (40, 56))
            check_peaks(total[class_index], read_points(files[source]).points[number], 7)
        cross = read_points(files["cross"]).points[number]
        kept = [twins.weaktr_with_all_maps(model, p)["raw"].detach() for p in passes]
        for head in range(2):
            for layer in (1, 2):
                maps = [raw[:, head, layer - 1, [class_index]] for raw in kept]
                total = twins.sum_of_passes(maps, (40, 56))[0]
                chosen = (cross.head == head) & (cross.layer == layer)
                check_peaks(total, select(cross, chosen), 9)
        assert set(cross.cls) == {class_index}
        assert cross.layer.tolist()[0] == 2  # in the order that was asked for


def select(points, chosen):
    return Points(*(getattr(points, n)[chosen] for n in ("xy", "cls", "score", "head", "layer")))


def without_plateaus(peaks):
    """The first of those that are equally high and near: rounding decides how many there are."""
    kept = []
    for x, y, score in peaks:
        if all(max(abs(x - a), abs(y - b)) > 4 or abs(score - c) > 1e-5 for a, b, c in kept):
            kept.append((x, y, score))
    return kept


def check_peaks(total, points, kernel):
    values = twins.normalized(total.double().numpy()).astype(np.float32)
    found = without_plateaus(twins.peaks_by_sorting(values, kernel, 0.9, 25))
    kept = without_plateaus(list(zip(*points.xy.T.tolist(), points.score.tolist(), strict=True)))
    points = select(points, [(x, y) in {(a, b) for a, b, _ in kept} for x, y in points.xy.tolist()])
    assert len(points) == len(found) > 0
    scores = [score for _, _, score in found]
    np.testing.assert_allclose(points.score, scores, atol=1e-5)
    # A stretched map is flat within half a patch of the border: there rounding picks the pixel.
    x, y = points.xy.astype(int).T
    np.testing.assert_allclose(values[y, x], scores, atol=1e-5)
    assert (abs(points.xy - [(x, y) for x, y, _ in found]).max(axis=1) <= 4).all()


def test_a_trained_classifier_points_at_its_objects(tmp_path):
    train, _ = make_dataset(tmp_path / "train", 96)
    data, boxes = make_dataset(tmp_path / "data", 24, seed=5, split="test")
    result = train_classifier(small(), train, tmp_path / "classifier", SETTINGS)
    model = load_classifier(result.checkpoint).model
    settings = replace(COARSE, scales=(1.0,), labels="predicted")
    content = read_points(extract_points(model, data, tmp_path / "out", settings)["coarse"])
    truth = [
        {
            "image_id": entry["image_id"],
            "annotations": [
                {"bbox": box, "bbox_mode": BoxMode.XYXY_ABS, "category_id": number % 3}
            ],
        }
        for number, (entry, box) in enumerate(zip(data.dicts, boxes, strict=True))
    ]
    metrics = point_metrics(content, truth)
    assert metrics["hit_rate"] > 0.8 and metrics["found"] > 0.8
    assert content.meta["labels"] == "predicted"


def test_hits_are_counted_by_class():
    points = Points.of(np.array([[1.0, 1], [8, 8], [30, 30]]), np.ones(3), 0)
    clusters = Points.of(np.array([[8.0, 8]]), np.ones(1))
    annotations = [
        {"bbox": [0, 0, 4, 4], "bbox_mode": BoxMode.XYWH_ABS, "category_id": 0},
        {"bbox": [6, 6, 4, 4], "bbox_mode": BoxMode.XYWH_ABS, "category_id": 1},
        {"bbox": [0, 0, 50, 50], "bbox_mode": BoxMode.XYWH_ABS, "category_id": 0, "iscrowd": 1},
    ]
    content = PointFile(("1", "2"), ((50, 50),) * 2, (points, clusters), {"classes": ["a", "b"]})
    truth = [{"image_id": number, "annotations": annotations} for number in (1, 2)]
    metrics = point_metrics(content, truth)
    assert metrics == {"points": 2.0, "hit_rate": 0.5, "found": 0.5}
    with pytest.raises(ValueError, match="image id 2 of the points is not in the true boxes"):
        point_metrics(content, truth[:1])


def test_predicted_labels_come_from_the_first_pass_and_may_be_none(tmp_path):
    dataset, _ = make_dataset(tmp_path / "data", 6, split="test")
    model = weaktr()
    settings = replace(ALL, labels="predicted", sources=("fine", "cross"))
    pixels = [to_tensor(read_rgb(entry))[None] for entry in dataset.dicts]
    logits = torch.cat([model.scores(p) for p in pixels])
    model.label_threshold = float(logits.max(dim=1).values.sort().values[1:3].mean())
    want = [set((row > model.label_threshold).nonzero().flatten().tolist()) for row in logits]
    assert [] in map(sorted, want) and any(want)
    files = extract_points(model, dataset, tmp_path / "out", settings)
    for path in files.values():
        assert [set(p.cls.tolist()) for p in read_points(path).points] == want
    skipped = json.loads((tmp_path / "out/points_fine.skipped.json").read_text())
    assert {entry["reason"] for entry in skipped} == {"no class predicted"}
    assert [e["image_id"] for e in skipped] == [10 + i for i, w in enumerate(want) if not w]


def test_given_labels_of_a_test_split_are_refused_unless_allowed_and_recorded(tmp_path):
    dataset, _ = make_dataset(tmp_path / "data", 3, split="val2014")
    with pytest.raises(ValueError, match="its split 'val2014' is for evaluation"):
        extract_points(small().eval(), dataset, tmp_path / "out", COARSE)
    assert not (tmp_path / "out").exists()
    settings = replace(COARSE, allow_gt_labels=True)
    files = extract_points(small().eval(), dataset, tmp_path / "out", settings)
    meta = read_points(files["coarse"]).meta
    assert meta["labels"] == "given" and meta["allow_gt_labels"] is True
    assert meta["split"] == "val2014" and meta["source"] == "coarse"


def test_a_killed_run_goes_on_to_the_same_bytes_and_a_third_does_nothing(tmp_path):
    dataset, _ = make_dataset(tmp_path / "data", 5, untagged=(2,))
    whole = extract_points(weaktr(), dataset, tmp_path / "whole", ALL)
    model, calls = weaktr(), []
    original = model.maps

    def maps(*arguments):
        calls.append(1)
        if len(calls) == 15:  # six passes an image: in the third of those with tags
            raise KeyboardInterrupt
        return original(*arguments)

    model.maps = maps
    with pytest.raises(KeyboardInterrupt):
        extract_points(model, dataset, tmp_path / "parts", ALL)
    assert not list((tmp_path / "parts").glob("points*"))
    parts = extract_points(model, dataset, tmp_path / "parts", ALL)
    assert len(calls) == 15 + 12
    for source, path in whole.items():
        assert path.read_bytes() == parts[source].read_bytes()
    assert not (tmp_path / "parts/shards").exists()
    assert extract_points(model, dataset, tmp_path / "parts", ALL) == parts
    assert len(calls) == 27
    skipped = json.loads((tmp_path / "parts/points_fine.skipped.json").read_text())
    assert skipped == [{"image_id": 12, "file_name": "2.png", "reason": "no tag"}]


def test_a_folder_of_other_settings_weights_or_tags_is_refused(tmp_path):
    dataset, _ = make_dataset(tmp_path / "data", 3)
    extract_points(small().eval(), dataset, tmp_path / "out", COARSE)
    other = make_dataset(tmp_path / "other", 3, untagged=(1,))[0]
    for model, data, settings, what in (
        (small(), dataset, replace(COARSE, flip=False), "settings"),
        (small(3), dataset, COARSE, "weights"),
        (small(), other, COARSE, "images"),
    ):
        with pytest.raises(ValueError, match=f"points made with other {what}; give another"):
            extract_points(model.eval(), data, tmp_path / "out", settings)


def test_impossible_requests_are_named(tmp_path):
    dataset, _ = make_dataset(tmp_path / "data", 3)
    with pytest.raises(ValueError, match=r"sources \['fine'\]: this classifier gives coarse only"):
        extract_points(small(), dataset, tmp_path, replace(COARSE, sources=("fine",)))
    with pytest.raises(ValueError, match="tags.json: 3 classes, the classifier has 2"):
        model = WeakTrConfig(2, None, 16, 2, 2, 8, 32, reduction=2).build()
        extract_points(model, dataset, tmp_path, ALL)
    for wrong in ({"sources": ()}, {"sources": ("best",)}, {"labels": "true"}, {"layers": ()}):
        with pytest.raises(ValueError):
            replace(ALL, **wrong)


def test_an_image_smaller_than_a_patch_has_points(tmp_path):
    dataset, _ = make_dataset(tmp_path / "data", 3)
    Image.new("RGB", (3, 2), (250, 0, 0)).save(tmp_path / "data" / "0.png")
    tiny = {**dataset.dicts[0], "height": 2, "width": 3}
    data = replace(dataset, dicts=(tiny, *dataset.dicts[1:]))
    files = extract_points(weaktr(), data, tmp_path / "out", ALL)
    assert read_points(files["fine"]).sizes_hw[0] == (2, 3)
