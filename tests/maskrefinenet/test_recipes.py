"""Every option of a recipe against a slow twin of its definition, and against recorded samples."""

import json
import math
import random

import numpy as np
import pytest
import torch
import torchvision
from hypothesis import given, settings
from hypothesis import strategies as st

from maskrefinenet import MaskRefineNet, MaskRefiner
from maskrefinenet.__main__ import main, make_parser
from maskrefinenet.checkpoint import (
    NetworkConfig,
    load_checkpoint,
    load_encoder,
    network_content,
)
from maskrefinenet.crops import CropBox, crop_box, network_input, resize_image, resize_mask
from maskrefinenet.data import Augmentation, PairDataset
from maskrefinenet.losses import dice_loss
from maskrefinenet.pairs import match_predictions
from maskrefinenet.predictions import read_predictions
from maskrefinenet.recipe import CHOICES, RECIPES, Recipe
from maskrefinenet.train_command import OLD_SPELLINGS, recipe_of, settings_of
from maskrefinenet.training_crops import NO_POINT, TrainingCrop, scaled_size
from weaklabels.coco import load_annotations
from weaklabels.masks import center_of_mass, decode_mask
from weaklabels.pictures import read_image

SIZE = 64  # of the recorded samples
SAMPLES = (0, 1, 2, 3, 5, 7)  # of those whose class is not 0, for which the reference draws nothing
PAPER, OURS = RECIPES["paper"], RECIPES["ours"]


@pytest.fixture(scope="module")
def recorded(golden_folder):
    with np.load(golden_folder / "mrn_training_crops.npz") as figures:
        return dict(figures)


@pytest.fixture(scope="module")
def reference_pairs(golden_folder, tinycoco):
    """The reference's training pairs in the order of its recorded samples."""
    annotations = load_annotations(tinycoco / "instances_train2017_tiny_s.json")
    pairs, first = {}, {}
    for name in ("pred_strong1.pth", "pred_strong2.pth"):
        records = list(read_predictions(tinycoco / name, annotations))
        for pair in match_predictions(records, annotations, rule="nearest"):
            offset = first.get(pair.image.image_id, 0)
            pairs[pair.image.image_id, pair.prediction_index + offset] = pair
        first = {record["image_id"]: len(record["instances"]) for record in records}
    rows = json.loads((golden_folder / "mrn_matched_labels.json").read_text())["after_shuffle"]
    return [pairs[row["img_id"], row["pred_idx"]] for row in rows]


@pytest.mark.parametrize("number", SAMPLES)
def test_the_paper_s_training_crops_are_the_reference_s(
    number, recorded, reference_pairs, tinycoco
):
    """To the bit, on its box: ours has one more row and column at the end."""
    pair = reference_pairs[number]
    draws = random.Random(1000 + number)
    box_scale, scale, mirrored = draws.uniform(1, 2), draws.uniform(0.5, 1.5), draws.random() < 0.5
    hw = (pair.image.height, pair.image.width)
    prior, target = decode_mask(pair.prior, *hw), decode_mask(pair.target, *hw)
    box = crop_box(prior, pair.point_xy, box_scale)
    box = CropBox(box.x0, box.y0, box.x1 - 1, box.y1 - 1)
    scaled = scaled_size((box.height, box.width), SIZE, scale, PAPER.crop_resize)
    crop = TrainingCrop(box, scaled, SIZE, PAPER.crop_resize, PAPER.resampling)
    image = crop.image(read_image(tinycoco / pair.image.file_name, hw))
    step = -1 if mirrored else 1
    for name, mask in (("prior", prior), ("target", target)):
        want = np.unpackbits(recorded[f"{number}_{name}"]).reshape(SIZE, SIZE)
        np.testing.assert_array_equal(crop.mask(mask)[:, ::step], want)
    rgb = network_input(image, prior=np.zeros((SIZE, SIZE)))[:3, :, ::step]
    np.testing.assert_allclose(rgb[:, ::4, ::4], recorded[f"{number}_rgb"], atol=1e-6)
    samples = dataset(pair, tinycoco, PAPER)
    point = samples._point(crop.mask(target), pair, crop, mirrored)
    assert point == tuple(recorded[f"{number}_point_xy"])


def dataset(pair, image_root, recipe: Recipe) -> PairDataset:
    plain = Augmentation()
    return PairDataset([pair], image_root, size=SIZE, augmentation=plain, recipe=recipe, seed=5)


def slow_layout(
    length: int, scaled: int, aspect: bool, pillow: bool
) -> tuple[list[int | None], list[bool]]:
    """Which source pixel each of the SIZE pixels of an axis shows (None: padding), and whether its
    place falls on the border of two, where float arithmetic may take the other."""
    shown: list[int | None] = []
    ties = []
    for place in range(SIZE):
        if scaled < SIZE:
            i = place - (SIZE - scaled) // 2
        else:
            rest = scaled - SIZE
            half_to_even = rest // 2 + (rest % 4 == 3)
            i = place + (half_to_even if aspect else rest // 2)
        if pillow:  # the pixel under the center of the new pixel
            source, rest = divmod((2 * i + 1) * length, 2 * scaled)
        else:  # the pixel under its corner
            source, rest = divmod(i * length, scaled)
        shown.append(source if 0 <= i < scaled else None)
        ties.append(rest == 0)
    return shown, ties


@settings(max_examples=80, deadline=None)
@given(
    st.tuples(st.integers(1, 150), st.integers(1, 150)),
    st.floats(0.5, 1.5),
    st.sampled_from(list(CHOICES["crop_resize"])),
    st.sampled_from(list(CHOICES["resampling"])),
)
def test_masks_are_resized_and_centered_as_defined(crop_hw, scale, rule, resampling):
    """Aspect: the short side becomes SIZE, the long one is in proportion, then both times s."""
    height, width = crop_hw
    if rule == "square":
        want = [round(SIZE * scale)] * 2
    elif height < width:
        want = [math.floor(SIZE * scale), math.floor(SIZE * width // height * scale)]
    else:
        want = [math.floor(SIZE * height // width * scale), math.floor(SIZE * scale)]
    scaled = scaled_size(crop_hw, SIZE, scale, rule)
    assert list(scaled) == want
    rng = np.random.default_rng(height * 1000 + width)
    mask = rng.integers(0, 2, (height + 3, width + 2), dtype=np.uint8)
    box = CropBox(1, 2, width, height + 1)
    aspect, pillow = rule == "aspect", resampling == "pillow"
    rows, row_ties = slow_layout(height, scaled[0], aspect, pillow)
    columns, column_ties = slow_layout(width, scaled[1], aspect, pillow)
    slow = np.zeros((SIZE, SIZE), dtype=np.uint8)
    for y, row in enumerate(rows):
        for x, column in enumerate(columns):
            if row is not None and column is not None:
                slow[y, x] = mask[2 + row, 1 + column]
    got = TrainingCrop(box, scaled, SIZE, rule, resampling).mask(mask)
    tie = np.logical_or.outer(row_ties, column_ties)
    np.testing.assert_array_equal(got[~tie], slow[~tie])


def slow_pillow(values: np.ndarray, new: int) -> np.ndarray:
    """One axis, bilinear: a triangle as wide as a new pixel where it shrinks; rounded to bytes."""
    ratio = len(values) / new
    reach = max(ratio, 1.0)
    result = []
    for i in range(new):
        center = (i + 0.5) * ratio
        weights = [max(0.0, 1 - abs(j + 0.5 - center) / reach) for j in range(len(values))]
        result.append(np.tensordot(weights, values, 1) / sum(weights))
    return np.floor(np.array(result) + 0.5)


@pytest.mark.parametrize(("crop_hw", "scale"), [((90, 40), 1.0), ((20, 30), 0.6), ((7, 5), 1.4)])
def test_pillow_averages_where_it_shrinks_and_opencv_does_not(crop_hw, scale):
    image = np.random.default_rng(0).integers(0, 256, (*crop_hw, 3), dtype=np.uint8)
    box = CropBox(0, 0, crop_hw[1] - 1, crop_hw[0] - 1)
    scaled = scaled_size(crop_hw, SIZE, scale, "square")
    crops = {
        name: TrainingCrop(box, scaled, SIZE, "square", name).image(image)
        for name in CHOICES["resampling"]
    }
    slow = slow_pillow(
        np.moveaxis(slow_pillow(np.moveaxis(image, 1, 0), scaled[1]), 0, 1), scaled[0]
    )
    spare = (SIZE - scaled[0]) // 2
    inside = slow[-spare : SIZE - spare, -spare : SIZE - spare] if spare < 0 else slow
    window = crops["pillow"][max(spare, 0) :, max(spare, 0) :][: len(inside), : len(inside)]
    assert np.abs(window - inside).max() <= 1  # its weights have 22 bits
    plain = resize_image(image, scaled)
    plain = plain[-spare : SIZE - spare, -spare : SIZE - spare] if spare < 0 else plain
    window = crops["opencv"][max(spare, 0) :, max(spare, 0) :][: len(plain), : len(plain)]
    np.testing.assert_array_equal(window, plain)


@pytest.mark.parametrize("recipe", [PAPER, OURS], ids=["paper", "ours"])
def test_training_points_are_centers_of_what_is_left(recipe, reference_pairs, tinycoco):
    """A lost target has none by the paper; by ours, the point on which its own center falls."""
    lost, mirrored = 0, set()
    for pair in reference_pairs:
        samples = dataset(pair, tinycoco, recipe)
        for position in range(12):
            sample = samples[position]
            x, y = sample["point"].tolist()
            pixels = sample["target"].nonzero().tolist()
            if not pixels:
                lost += 1
                assert recipe is OURS or (x, y) == NO_POINT
                continue
            center_x = sum(column for _, column in pixels) / len(pixels)
            center_y = sum(row for row, _ in pixels) / len(pixels)
            assert y == math.floor(center_y)
            if recipe is PAPER:
                assert x == math.floor(center_x)
            else:  # taken before mirroring, which moves it by a pixel unless it is a whole number
                assert x in (math.floor(center_x), math.ceil(center_x))
                mirrored.add(x == math.floor(center_x))
    assert lost > 0 and (recipe is PAPER or mirrored == {True, False})


def test_a_lost_target_s_own_center_lies_where_its_pixels_would():
    mask = np.zeros((40, 60), dtype=np.uint8)
    mask[10:21, 30:41] = 1
    crop = TrainingCrop(CropBox(0, 0, 59, 39), (66, 99), SIZE, "aspect", "opencv")
    center = center_of_mass(mask)
    x, y = crop.point(center)
    want = center_of_mass(crop.mask(mask))
    assert abs(x - want[0]) <= 2 and abs(y - want[1]) <= 2
    assert crop.point((0.0, 20.0)) == NO_POINT  # cut off on the left


@pytest.mark.parametrize("stem", CHOICES["stem"])
def test_the_stem_starts_as_its_option_says(stem, tmp_path):
    trunk = torchvision.models.resnet18(weights=None)
    torch.nn.init.uniform_(trunk.bn1.weight)
    torch.save(trunk.state_dict(), tmp_path / "resnet18.pth")
    model = MaskRefineNet(3, encoder="resnet18")
    before = {key: value.clone() for key, value in model.state_dict().items()}
    load_encoder(model, str(tmp_path / "resnet18.pth"), stem)
    kernels = model.layer0[0].weight
    image_channels = before["layer0.0.weight"][:, :3] if stem == "random" else trunk.conv1.weight
    assert torch.equal(kernels[:, :3], image_channels)
    assert torch.equal(kernels[:, 3:], before["layer0.0.weight"][:, 3:])
    assert torch.equal(model.layer0[1].weight, trunk.bn1.weight)
    assert torch.equal(model.layer1[1][0].conv1.weight, trunk.layer1[0].conv1.weight)
    assert torch.equal(model.aspp.project[0].weight, before["aspp.project.0.weight"])


@pytest.mark.parametrize("reduction", CHOICES["dice"])
def test_dice_sums_as_its_option_says(reduction):
    generator = torch.Generator().manual_seed(3)
    logits = torch.randn(2, 2, 5, 4, generator=generator)
    target = torch.randint(0, 2, (2, 5, 4), generator=generator)
    probabilities, scores = logits.softmax(dim=1), []
    for label in (0, 1):
        groups = [[c] for c in range(4)] if reduction == "columns" else [range(4)]
        for columns in groups:
            overlap = total = 0.0
            for n in range(2):
                for y in range(5):
                    for x in columns:
                        p, t = probabilities[n, label, y, x].item(), target[n, y, x].item() == label
                        overlap, total = overlap + p * t, total + p + t
            scores.append(2 * overlap / (total + 1e-7))
    want = 1 - sum(scores) / len(scores)
    assert dice_loss(logits, target, reduction).item() == pytest.approx(want, abs=1e-6)


@pytest.mark.parametrize(
    ("amp", "cuda", "cpu"), [("auto", True, False), ("on", True, True), ("off", False, False)]
)
def test_mixed_precision_by_itself_needs_a_gpu(amp, cuda, cpu):
    recipe = Recipe(amp=amp)
    assert (recipe.mixed_precision("cuda"), recipe.mixed_precision("cpu")) == (cuda, cpu)


def parsed(*words: str):
    files = ["--annotations", "a.json", "--image-root", "i", "--records", "r.jsonl"]
    words = [OLD_SPELLINGS.get(word, word) for word in words]
    return make_parser().parse_args(["train", *files, "--output", "o", *words])


def test_a_recipe_is_the_default_of_its_options():
    assert settings_of(parsed()).recipe == PAPER
    assert recipe_of(parsed("--recipe", "ours")) == OURS
    for option, choices in CHOICES.items():
        flag = "--" + option.replace("_", "-")
        for value in choices:
            for name, base in RECIPES.items():
                got = recipe_of(parsed("--recipe", name, flag, value))
                assert got == Recipe(**{**vars(base), option: value})
    assert recipe_of(parsed("--recipe", "ours", "--amp")).amp == "on"
    assert recipe_of(parsed("--recipe", "ours", "--dice-per-column")).dice == "columns"
    assert all(getattr(PAPER, o) != getattr(OURS, o) for o in CHOICES)
    assert [str(recipe) for recipe in (PAPER, OURS)] == ["paper", "ours"]
    assert "dice pixels" in str(Recipe(dice="pixels"))


def test_what_is_not_said_is_the_paper_s_number_for_number():
    """SPEC 4.1, 4.2 and 4.4."""
    settings = settings_of(parsed())
    assert (settings.encoder, settings.weights) == ("resnet101", "imagenet")
    assert (settings.size, settings.box_scale, settings.class_agnostic) == (256, 2.0, False)
    assert (settings.color_jitter, settings.noise) == (0, 0)
    schedule = settings.schedule_for(8, "cuda")
    assert (schedule.iterations, schedule.batch_size, schedule.amp) == (200_000, 16, True)
    assert schedule.eval_period == 5000
    rates = [schedule.learning_rate_at(i) for i in (0, 1000, 2000, 101_000, 200_000)]
    assert rates == pytest.approx([1e-6, 50.5e-6, 1e-4, 50.5e-6, 1e-6])
    assert not settings_of(parsed("--recipe", "ours")).schedule_for(8, "cuda").amp


def test_unusable_options_of_a_recipe_are_named():
    with pytest.raises(ValueError, match="--crop-resize 'round'; expected one of aspect, square"):
        Recipe(crop_resize="round")
    with pytest.raises(ValueError, match="--stem pretrained needs weights"):
        recipe_of(parsed("--stem", "pretrained", "--weights", "none"))


@pytest.mark.parametrize("recipe", [PAPER, OURS], ids=["paper", "ours"])
def test_checkpoints_say_their_recipe_and_refine_by_the_whole_squashed_crop(recipe, tmp_path):
    """At inference the reference squashes the crop, whatever its training did (SPEC 4.2)."""
    torch.manual_seed(0)
    config = NetworkConfig(2, encoder="resnet18", size=SIZE)
    categories = ({"id": 4, "name": "a"}, {"id": 9, "name": "b"})
    content = network_content(config.build().state_dict(), config, categories, recipe)
    torch.save(content, tmp_path / "last.pth")
    assert load_checkpoint(tmp_path / "last.pth").recipe == recipe
    refiner = MaskRefiner.load(tmp_path / "last.pth")
    rng = np.random.default_rng(1)
    image = rng.integers(0, 256, (90, 120, 3), dtype=np.uint8)
    mask = np.zeros((90, 120), dtype=bool)
    mask[40:50, 20:90] = True
    crop = refiner.prepare(image, mask, (55.0, 45.0), 1)
    box = crop_box(mask, (55.0, 45.0), 2.0)
    assert crop.box == box and (box.width, box.height) == (120, 19)
    square = resize_image(box.of(image), (SIZE, SIZE)), resize_mask(box.of(mask), (SIZE, SIZE))
    np.testing.assert_array_equal(crop.inputs, network_input(*square))
    assert refiner.refine(image, mask[None], [(55.0, 45.0)], [1]).shape == (1, 90, 120)


def test_a_checkpoint_without_a_recipe_has_none(tmp_path):
    """The released ones, and those of earlier versions."""
    config = NetworkConfig(2, encoder="resnet18")
    torch.save({"model_state": config.build().state_dict()}, tmp_path / "released.pth")
    assert load_checkpoint(tmp_path / "released.pth").recipe is None


@pytest.mark.parametrize("recipe", [{"dice": "rows"}, {"color": "on"}])
def test_a_recipe_of_another_version_is_told(recipe, tmp_path):
    content = {"model_state": {"layer0.0.weight": torch.zeros(64, 7, 7, 7)}}
    content |= {"config": {"num_classes": 2}, "recipe": recipe}
    torch.save(content, tmp_path / "new.pth")
    with pytest.raises(ValueError, match="new.pth: trained by a recipe that is not known here"):
        load_checkpoint(tmp_path / "new.pth")


def test_a_run_is_not_resumed_by_another_recipe(tinycoco, tmp_path, capsys):
    command = [
        *("train", "--annotations", str(tinycoco / "instances_train2017_tiny_s.json")),
        *("--image-root", str(tinycoco), "--device", "cpu", "--workers", "0"),
        *("--records", str(tinycoco / "pred_strong1.pth"), "--encoder", "resnet18"),
        *("--weights", "none", "--size", "32", "--batch-size", "2", "--iterations", "1"),
        *("--output", str(tmp_path / "out")),
    ]
    assert main(command) == 0
    assert "recipe: paper" in capsys.readouterr().out
    assert load_checkpoint(tmp_path / "out" / "last.pth").recipe == PAPER
    assert main([*command, "--resume", "--dice", "pixels"]) == 2
    assert "recipe.dice: columns -> pixels" in capsys.readouterr().err
