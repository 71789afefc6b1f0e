"""WeakTr against a plain twin that keeps every attention map, and its weights' names."""

from pathlib import Path

import numpy as np
import pytest
import torch

from tests.weaksam import twins
from weaksam.clues.weaktr import WeakTrConfig
from weaksam.clues.weaktr_weights import initialize_from_deit, read_weaktr

GOLDEN = Path(__file__).resolve().parents[1] / "golden" / "keys_weaktr.tsv"
TINY = WeakTrConfig(
    num_outputs=5,
    embed_dim=16,
    depth=3,
    num_heads=2,
    patch_size=8,
    image_size=32,
    mlp_ratio=2,
    reduction=2,
)


def tiny(seed=0, **changes):
    torch.manual_seed(seed)
    model = WeakTrConfig(**{**TINY.__dict__, **changes}).build()
    for parameter in model.parameters():  # zeros and tiny numbers would hide mistakes
        torch.nn.init.normal_(parameter, std=0.3)
    return model.eval()


def images(height=40, width=51, count=2, seed=1):
    return torch.rand(count, 3, height, width, generator=torch.manual_seed(seed)) * 255


@pytest.mark.parametrize("pool", ["avg", "max"])
def test_logits_and_maps_equal_those_of_all_maps_kept(pool):
    model, pictures = tiny(pool=pool), images()
    want = twins.weaktr_with_all_maps(model, pictures)
    logits = model(pictures)
    maps = model.maps(pictures, layers=(1, 2, 3))
    for name in ("cls", "patch", "attn"):
        torch.testing.assert_close(logits[name], want[name])
    torch.testing.assert_close(model.scores(pictures), want["cls"])
    torch.testing.assert_close(maps.coarse, want["coarse"])
    torch.testing.assert_close(maps.fine, want["fine"])
    torch.testing.assert_close(maps.cross, want["raw"])
    torch.testing.assert_close(maps.logits, want["cls"])


def test_chosen_classes_and_layers_are_those_asked_for():
    model, pictures = tiny(), images(count=1)
    every = model.maps(pictures, layers=(1, 2, 3))
    some = model.maps(pictures, layers=(3, 1), classes=[4, 0])
    torch.testing.assert_close(some.coarse, every.coarse[:, [4, 0]])
    torch.testing.assert_close(some.fine, every.fine[:, [4, 0]])
    torch.testing.assert_close(some.cross, every.cross[:, :, [2, 0]][:, :, :, [4, 0]])
    assert model.maps(pictures).cross is None
    with pytest.raises(ValueError, match=r"layers \[4\]; the network has 1 to 3"):
        model.maps(pictures, layers=(1, 4))


def test_fine_cam_is_the_double_sum_over_patches():
    model, pictures = tiny(), images(24, 32, count=1)
    kept = twins.weaktr_with_all_maps(model, pictures)
    c = TINY.num_outputs
    weighted = (model.fusion(kept["pooled"])[:, :, None, None] * kept["maps"]).mean(dim=1)[0]
    affinity = weighted[c:, c:].detach().numpy()
    fused = (kept["fused_cross"] * kept["coarse"])[0].flatten(1).detach().numpy()
    fine = model.maps(pictures).fine[0].flatten(1)
    for class_index in range(c):
        want = twins.fine_cam_by_loops(affinity, fused[class_index])
        np.testing.assert_allclose(fine[class_index], want, rtol=1e-4, atol=1e-6)


def test_fusion_sees_one_over_the_number_of_tokens_and_attention_rows_sum_to_one():
    model, pictures = tiny(), images(32, 32)
    kept = twins.weaktr_with_all_maps(model, pictures)
    torch.testing.assert_close(kept["pooled"], torch.full_like(kept["pooled"], 1 / (5 + 16)))
    sums = kept["maps"].sum(dim=3)
    torch.testing.assert_close(sums, torch.ones_like(sums))


def gradients(model, loss):
    model.zero_grad(set_to_none=True)
    loss.backward()
    return {name for name, p in model.named_parameters() if p.grad is not None and p.grad.any()}


def test_attention_logits_train_the_fusion_alone():
    model, pictures = tiny(), images()
    fusion = {"fusion.0.weight", "fusion.2.weight"}
    assert gradients(model, model(pictures)["attn"].sum()) == fusion
    assert not gradients(model, model(pictures)["cls"].sum()) & fusion
    assert "head.weight" in gradients(model, model(pictures)["patch"].sum())
    assert "head.weight" not in gradients(model, model(pictures)["cls"].sum())


def test_everything_trains_but_the_unused_norm():
    model, targets = tiny(), torch.tensor([[1.0, 0, 0, 1, 0], [0, 1, 0, 0, 0]])
    losses = model.loss(images(), targets)
    assert set(losses) == {"loss_cls", "loss_patch", "loss_attn"}
    got = gradients(model, sum(losses.values()))
    assert {name for name, _ in model.named_parameters()} - got == {"norm.weight", "norm.bias"}


@pytest.mark.parametrize("size_hw", [(3, 4), (5, 2), (4, 4)])
def test_positions_are_resized_by_the_exact_factor(size_hw):
    model = tiny()
    got = model.position_vectors(size_hw, square=False)[0]
    c = TINY.num_outputs
    torch.testing.assert_close(got[:c], model.pos_embed[0, :c])
    stored = model.pos_embed[0, c:, 7].reshape(4, 4).detach().double().numpy()
    want = twins.resized_positions_by_hand(stored, size_hw)
    np.testing.assert_allclose(got[c:, 7].reshape(size_hw).detach(), want, rtol=1e-4, atol=1e-5)


def test_positions_of_the_training_size_are_taken_as_they_are():
    model = tiny()
    assert model.position_vectors((4, 4), square=True) is model.pos_embed


def test_stochastic_depth_only_acts_in_training():
    model, pictures = tiny(drop_path=0.9), images(count=8)
    torch.testing.assert_close(model.scores(pictures), model.scores(pictures))
    model.train()
    assert not torch.equal(model.scores(pictures), model.scores(pictures))


def test_full_size_network_has_the_published_keys_shapes_and_maps():
    with torch.device("meta"):
        model = WeakTrConfig(num_outputs=20).build()
    lines = [f"{k}\t{','.join(map(str, v.shape))}" for k, v in model.state_dict().items()]
    assert lines == GOLDEN.read_text().splitlines()
    count = sum(p.numel() for p in model.parameters())
    assert round(count / 1e6, 2) == 21.75
    assert sum(p.numel() for p in model.fusion.parameters()) == 2592


@pytest.mark.slow
def test_full_size_maps_of_an_odd_image():
    torch.manual_seed(0)
    model = WeakTrConfig(num_outputs=3).build().eval()
    maps = model.maps(images(333, 500, count=1), layers=range(1, 13))
    assert maps.cross.shape == (1, 6, 12, 3, 20, 31)
    assert maps.fine.shape == maps.coarse.shape == (1, 3, 20, 31)
    assert (maps.cross.sum(dim=(4, 5)) <= 1).all()


def test_names_are_those_of_timm():
    timm = pytest.importorskip("timm")
    with torch.device("meta"):
        theirs = timm.create_model("deit_small_patch16_224").state_dict()
        ours = WeakTrConfig(num_outputs=1).build().state_dict()
    own = {"head.weight", "head.bias", "fusion.0.weight", "fusion.2.weight"}
    assert set(ours) - own == set(theirs) - {"head.weight", "head.bias"}
    assert all(ours[key].shape == theirs[key].shape for key in set(ours) - own)


def deit_like(grid=4, seed=3):
    """The tensors of a tiny DeiT with one class token and another head."""
    source = tiny(seed, num_outputs=1, image_size=8 * grid)
    state = {k: v for k, v in source.state_dict().items() if not k.startswith(("head", "fusion"))}
    return state | {"head.weight": torch.rand(7, 16), "head.bias": torch.rand(7)}


@pytest.mark.parametrize("wrapped", [True, False])
def test_deit_repeats_its_class_token(tmp_path, wrapped):
    state = deit_like()
    torch.save({"model": state} if wrapped else state, tmp_path / "deit.pth")
    model = tiny()
    before = model.head.weight.clone()
    initialize_from_deit(model, str(tmp_path / "deit.pth"))
    torch.testing.assert_close(model.cls_token[0], state["cls_token"][0].expand(5, -1))
    torch.testing.assert_close(model.pos_embed[0, 4], state["pos_embed"][0, 0])
    torch.testing.assert_close(model.pos_embed[0, 5:], state["pos_embed"][0, 1:])
    torch.testing.assert_close(model.blocks[2].mlp.fc1.weight, state["blocks.2.mlp.fc1.weight"])
    assert torch.equal(model.head.weight, before)


def test_deit_positions_of_another_grid_are_resized(tmp_path):
    state = deit_like(grid=6)
    torch.save(state, tmp_path / "deit.pth")
    model = tiny()
    initialize_from_deit(model, str(tmp_path / "deit.pth"))
    square = state["pos_embed"][:, 1:].mT.unflatten(2, (6, 6))
    want = torch.nn.functional.interpolate(square, size=(4, 4), mode="bicubic").flatten(2).mT
    torch.testing.assert_close(model.pos_embed[:, 5:], want)


def test_unfit_deit_files_are_refused(tmp_path):
    path = tmp_path / "deit.pth"
    for change, message in (
        ({"blocks.3.norm1.weight": torch.rand(16)}, "are not part of a DeiT"),
        ({"norm.bias": torch.rand(9)}, r"norm.bias has the shape \(9,\); expected \(16,\)"),
    ):
        torch.save(deit_like() | change, path)
        with pytest.raises(ValueError, match=message):
            initialize_from_deit(tiny(), str(path))
    state = deit_like()
    del state["blocks.1.attn.qkv.bias"]
    torch.save(state, path)
    with pytest.raises(ValueError, match="deit.pth lacks .*blocks.1.attn.qkv.bias"):
        initialize_from_deit(tiny(), str(path))
    with pytest.raises(FileNotFoundError, match="absent.pth: no such file"):
        initialize_from_deit(tiny(), "absent.pth")


def published(path, tokens, prefix="adaptive."):
    """A file as upstream's: fusion under another name, a namespace of arguments beside weights."""
    import argparse

    model = tiny(num_outputs=tokens)
    state = {k.replace("fusion.", prefix): v for k, v in model.state_dict().items()}
    torch.save({"model": state, "epoch": 3, "args": argparse.Namespace(lr=1.0)}, path)
    return model


def test_published_file_round_trip(tmp_path):
    want = published(tmp_path / "w.pth", 5)
    model = read_weaktr(tmp_path / "w.pth", category_ids=[1, 2, 3, 4, 5]).eval()
    pictures = images(count=1)
    got, expected = model.maps(pictures, (2,)), want.maps(pictures, (2,))
    torch.testing.assert_close(got.fine, expected.fine)
    torch.testing.assert_close(got.cross, expected.cross)
    assert model.config == want.config


def test_coco_file_of_90_tokens_gives_the_categories_in_order(tmp_path):
    want = published(tmp_path / "w.pth", 90)
    ids = [1, 13, 90]
    model = read_weaktr(tmp_path / "w.pth", category_ids=ids).eval()
    pictures, rows = images(count=1), [0, 12, 89]
    assert model.num_classes == 3
    torch.testing.assert_close(model.scores(pictures), want.scores(pictures)[:, rows])
    every, some = want.maps(pictures, (1,)), model.maps(pictures, (1,), classes=[2, 0])
    torch.testing.assert_close(some.fine, every.fine[:, [89, 0]])
    torch.testing.assert_close(some.cross, every.cross[:, :, :, [89, 0]])
    torch.testing.assert_close(some.logits, every.logits[:, rows])


def test_unfit_published_files_are_refused(tmp_path):
    path = tmp_path / "w.pth"
    published(path, 5)
    with pytest.raises(ValueError, match="w.pth has 5 classes, the dataset 4"):
        read_weaktr(path, category_ids=[1, 2, 3, 4])
    content = torch.load(path, weights_only=False)
    for change, message in (
        ({"extra.thing": torch.rand(3)}, "are not part of WeakTr"),
        ({"extra.weight": torch.rand(3, 3)}, "two matrices of the attention fusion"),
        ({"norm.bias": torch.rand(2)}, "norm.bias has the shape"),
        ({"pos_embed": torch.rand(1, 5 + 15, 16)}, "a square of patches"),
    ):
        torch.save({"model": content["model"] | change}, path)
        with pytest.raises(ValueError, match=message):
            read_weaktr(path, category_ids=range(1, 6))
    torch.save({"weights": 1}, path)
    with pytest.raises(ValueError, match="no weights of WeakTr"):
        read_weaktr(path, category_ids=range(1, 6))


def test_impossible_shapes_are_refused():
    for changes in ({"pool": "sum"}, {"num_heads": 3}, {"image_size": 30}, {"outputs": (9,)}):
        with pytest.raises(ValueError):
            WeakTrConfig(**{**TINY.__dict__, **changes})
