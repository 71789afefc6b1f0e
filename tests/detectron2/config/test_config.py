"""CfgNode: values and types are fixed by the defaults; unknown keys are dropped or refused."""

import logging
import re
from pathlib import Path

import pytest
import yaml

import detectron2.config as config_package
from detectron2.config import CfgNode, get_cfg, set_global_cfg
from detectron2.config.defaults import _C
from detectron2.config.upstream import UPSTREAM_KEYS

ROOT = Path(__file__).resolve().parents[3]
GOLDEN = ROOT.parent / "shared" / "golden"


@pytest.fixture
def write(tmp_path):
    def write_yaml(name: str, text: str) -> str:
        (tmp_path / name).write_text(text)
        return str(tmp_path / name)

    return write_yaml


def dropped_warnings(caplog) -> list[str]:
    return [r.getMessage() for r in caplog.records if "no effect" in r.getMessage()]


def leaf_items(tree: dict, prefix: str = "") -> dict:
    items = {}
    for key, value in tree.items():
        is_node = isinstance(value, dict)
        items |= leaf_items(value, f"{prefix}{key}.") if is_node else {f"{prefix}{key}": value}
    return items


def test_get_cfg_gives_independent_copies():
    cfg = get_cfg()
    cfg.SOLVER.BASE_LR = 7.0
    cfg.MODEL.PIXEL_MEAN[0] = -1.0
    assert get_cfg().SOLVER.BASE_LR == 0.001
    assert get_cfg().MODEL.PIXEL_MEAN == [103.530, 116.280, 123.675]


def test_file_is_merged_on_top_of_its_base(write):
    write("base.yaml", "SOLVER: {BASE_LR: 0.5, MAX_ITER: 10}\nVERSION: 2\n")
    path = write("child.yaml", "_BASE_: base.yaml\nSOLVER: {BASE_LR: 0.25}\n")
    cfg = get_cfg()
    cfg.merge_from_file(path)
    assert (cfg.SOLVER.BASE_LR, cfg.SOLVER.MAX_ITER) == (0.25, 10)
    assert "_BASE_" not in cfg


def test_strings_that_hold_python_literals_are_decoded(write):
    cfg = get_cfg()
    cfg.MODEL.GRIDS = [40, 36, 24, 16, 12]
    path = write("a.yaml", "MODEL: {GRIDS: '80,64,32,24,12'}\nVERSION: 2\n")
    cfg.merge_from_file(path)
    assert cfg.MODEL.GRIDS == [80, 64, 32, 24, 12]
    cfg.merge_from_list(["DATASETS.TRAIN", "('a',)", "SOLVER.WEIGHT_DECAY_BIAS", "0.5"])
    assert cfg.DATASETS.TRAIN == ("a",)
    assert cfg.SOLVER.WEIGHT_DECAY_BIAS == 0.5


@pytest.mark.parametrize("value", ["fast", "[1.0]", "(1, 2)"])
def test_types_are_checked(value):
    with pytest.raises(ValueError, match="BASE_LR"):
        get_cfg().merge_from_list(["SOLVER.BASE_LR", value])


def test_unknown_key_names_key_file_and_a_close_match(write):
    path = write("typo.yaml", "MODEL: {RESNETS: {DEPHT: 18}}\nVERSION: 2\n")
    with pytest.raises(KeyError, match=r"MODEL\.RESNETS\.DEPHT.*typo\.yaml.*MODEL\.RESNETS\.DEPTH"):
        get_cfg().merge_from_file(path)
    with pytest.raises(KeyError, match=r"BASE_LR .*command-line.*SOLVER\.BASE_LR"):
        get_cfg().merge_from_list(["BASE_LR", "0.1"])
    with pytest.raises(KeyError, match=r"MODEL\.FCOS\.NROM.*MODEL\.FCOS\.NORM"):
        get_cfg().merge_from_list(["MODEL.FCOS.NROM", "GN"])
    with pytest.raises(KeyError, match="NOTHING_LIKE_THIS"):
        get_cfg().merge_from_other_cfg(CfgNode({"NOTHING_LIKE_THIS": {"A": 1}}))


def test_upstream_keys_are_dropped_with_one_warning(write, caplog):
    path = write(
        "a.yaml",
        "MODEL: {FCOS: {NORM: GN, NMS_TH: 0.5}, KEYPOINT_ON: false, DEVICE: cpu}\nVERSION: 2\n",
    )
    cfg = get_cfg()
    cfg.merge_from_file(path)
    (message,) = dropped_warnings(caplog)
    for name in ("MODEL.FCOS.NORM", "MODEL.FCOS.NMS_TH", "MODEL.KEYPOINT_ON", "a.yaml"):
        assert name in message
    assert cfg.MODEL.DEVICE == "cpu" and "FCOS" not in cfg.MODEL
    caplog.clear()
    cfg.merge_from_list(["MODEL.FCOS.NORM", "BN", "SOLVER.BASE_LR", "0.125", "GLOBAL.HACK", "2.0"])
    (message,) = dropped_warnings(caplog)
    assert "MODEL.FCOS.NORM" in message and "GLOBAL" in message
    caplog.clear()
    cfg.merge_from_list(["MODEL.KEYPOINT_ON", "True"])
    assert dropped_warnings(caplog)[0].endswith("dropped: MODEL.KEYPOINT_ON")
    assert cfg.SOLVER.BASE_LR == 0.125


def test_a_key_that_got_a_default_is_no_longer_dropped(caplog):
    cfg = get_cfg()
    cfg.MODEL.SOLOV2 = CfgNode({"NUM_GRIDS": [40, 36], "LOSS": {"DICE_WEIGHT": 3.0}})
    other = CfgNode({"MODEL": {"SOLOV2": {"NUM_GRIDS": "8,4", "LOSS": {"DICE_WEIGHT": 1.0}}}})
    cfg.merge_from_other_cfg(other)
    cfg.merge_from_list(["MODEL.SOLOV2.LOSS.DICE_WEIGHT", "2.0"])
    assert cfg.MODEL.SOLOV2 == {"NUM_GRIDS": [8, 4], "LOSS": {"DICE_WEIGHT": 2.0}}
    assert not dropped_warnings(caplog)
    with pytest.raises(KeyError, match=r"MODEL\.SOLOV2\.NUM_GRID .*MODEL\.SOLOV2\.NUM_GRIDS"):
        cfg.merge_from_list(["MODEL.SOLOV2.NUM_GRID", "1"])


def test_parts_of_a_config_do_not_drop():
    with pytest.raises(KeyError, match="GLOBAL"):
        CfgNode({"A": 1}).merge_from_other_cfg(CfgNode({"GLOBAL": {"HACK": 1.0}}))


def test_nodes_that_allow_new_keys_take_them():
    cfg = get_cfg()
    cfg.FREE = CfgNode(new_allowed=True)
    cfg.merge_from_other_cfg(CfgNode({"FREE": {"ANY": 1, "NODE": {"DEEP": 2}}}))
    assert cfg.FREE == {"ANY": 1, "NODE": {"DEEP": 2}}


def test_keys_registered_as_deprecated_or_renamed_act_as_in_yacs():
    cfg = get_cfg()
    cfg.register_deprecated_key("OLD")
    cfg.register_renamed_key("BEFORE", "SOLVER.BASE_LR")
    cfg.merge_from_list(["OLD", "1"])
    with pytest.raises(KeyError, match=r"renamed to SOLVER\.BASE_LR"):
        cfg.merge_from_other_cfg(CfgNode({"BEFORE": 1.0}))


def test_bad_input_is_named(write):
    with pytest.raises(FileNotFoundError, match="nowhere.yaml"):
        get_cfg().merge_from_file("nowhere.yaml")
    for text in ("", "# nothing\n", "- a\n", "words\n"):
        with pytest.raises(ValueError, match="odd.yaml"):
            get_cfg().merge_from_file(write("odd.yaml", text))
    with pytest.raises(ValueError, match="pairs"):
        get_cfg().merge_from_list(["SOLVER.BASE_LR"])
    with pytest.raises(AssertionError, match="_BASE_"):
        get_cfg().merge_from_list(["_BASE_", "a.yaml"])


def test_files_run_no_code_unless_asked_to(write):
    path = write("x.yaml", "OUTPUT_DIR: !!python/object/apply:str ['a']\nVERSION: 2\n")
    cfg = get_cfg()
    with pytest.raises(yaml.constructor.ConstructorError):
        cfg.merge_from_file(path)
    cfg.merge_from_file(path, allow_unsafe=True)
    assert cfg.OUTPUT_DIR == "a"


def test_dump_and_load_give_the_same_config(write):
    cfg = get_cfg()
    cfg.merge_from_list(["DATASETS.TRAIN", "('a', 'b')", "MODEL.RESNETS.DEPTH", "18"])
    loaded = get_cfg()
    loaded.merge_from_file(write("dump.yaml", cfg.dump()))
    assert loaded == cfg


def test_frozen_config_refuses_attributes():
    cfg = get_cfg()
    cfg.freeze()
    with pytest.raises(AttributeError):
        cfg.SOLVER.BASE_LR = 1.0


def test_global_cfg_is_filled_in_place():
    held = config_package.global_cfg
    set_global_cfg(get_cfg())
    assert held is config_package.global_cfg and held.SOLVER.BASE_LR == 0.001
    set_global_cfg(CfgNode({"ONLY": 1}))
    assert held == {"ONLY": 1}


# Versions


@pytest.mark.parametrize("version", [0, 1, 3])
def test_files_of_other_versions_are_refused(write, version):
    with pytest.raises(ValueError, match=rf"other\.yaml.*VERSION {version}"):
        get_cfg().merge_from_file(write("other.yaml", f"VERSION: {version}\n"))


def test_a_file_without_a_version_is_read_as_it_is(write):
    cfg = get_cfg()
    cfg.merge_from_file(write("plain.yaml", "SOLVER: {BASE_LR: 0.5}\n"))
    assert (cfg.SOLVER.BASE_LR, cfg.VERSION) == (0.5, 2)


# The reference's configurations


def test_defaults_and_the_upstream_list_do_not_overlap():
    upstream = {f"{node}.{key}" for node, keys in UPSTREAM_KEYS.items() for key in keys}
    upstream = {name.lstrip(".") for name in upstream}
    assert not upstream & set(leaf_items(_C))


def test_every_default_is_read_somewhere():
    sources = [
        p for package in ("detectron2", "AdelaiDet", "wsis") for p in (ROOT / package).rglob("*.py")
    ]
    code = "\n".join(p.read_text() for p in sources if p.parent.name != "config")
    names = {key.rpartition(".")[2] for key in leaf_items(_C)} - {"VERSION"}
    assert not {name for name in names if not re.search(rf"\.{name}\b", code)}


@pytest.mark.parametrize("name", ["cfg_pointwssis_r101_teacher", "cfg_solov2_r101_3x"])
def test_full_reference_configs_load(name, caplog):
    path = GOLDEN / f"{name}.yaml"
    if not path.exists():
        pytest.skip(f"{path} is not here")
    caplog.set_level(logging.WARNING)
    cfg = get_cfg()
    cfg.merge_from_file(str(path))
    assert len(dropped_warnings(caplog)) == 1
    want = leaf_items(yaml.safe_load(path.read_text()))
    have = leaf_items(cfg)
    for key in want.keys() & have.keys():
        value = have[key]
        assert (list(value) if isinstance(value, tuple) else value) == want[key], key
