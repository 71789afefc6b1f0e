import json
import logging
import math

import numpy as np
import pytest
import torch
from torch import nn

from detectron2 import engine
from detectron2.config import configurable, get_cfg
from detectron2.engine import (
    DefaultPredictor,
    DefaultTrainer,
    create_ddp_model,
    default_argument_parser,
    default_setup,
    default_writers,
    hooks,
)
from detectron2.evaluation import DatasetEvaluator
from detectron2.modeling import META_ARCH_REGISTRY
from detectron2.structures import Boxes, Instances
from tests.detectron2.engine.run_toy import toy_config


@META_ARCH_REGISTRY.register()
class EngineTestDetector(nn.Module):
    """Learns nothing; at test time finds one box over the left half of each image."""

    @configurable
    def __init__(self, *, device: str):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1, device=device))

    @classmethod
    def from_config(cls, cfg):
        return {"device": cfg.MODEL.DEVICE}

    def forward(self, batched_inputs):
        if self.training:
            return {"loss": self.weight.square().sum() * len(batched_inputs)}
        outputs = []
        for record in batched_inputs:
            height, width = record["height"], record["width"]
            instances = Instances((height, width))
            instances.pred_boxes = Boxes(torch.tensor([[0.0, 0.0, width / 2, height]]))
            instances.scores = torch.ones(1)
            instances.pred_classes = torch.zeros(1, dtype=torch.int64)
            outputs.append({"instances": instances, "seen": record["image"]})
        return outputs


@pytest.fixture
def cfg(toy_folder, tmp_path):
    cfg = toy_config(toy_folder, ["OUTPUT_DIR", str(tmp_path / "output")])
    cfg.MODEL.META_ARCHITECTURE = "EngineTestDetector"
    cfg.DATASETS.TEST = cfg.DATASETS.TRAIN
    cfg.SOLVER.MAX_ITER = 4
    cfg.SOLVER.CHECKPOINT_PERIOD = 2
    cfg.INPUT.MIN_SIZE_TEST = 24
    cfg.INPUT.MAX_SIZE_TEST = 64
    return cfg


def test_trainer_trains_evaluates_and_writes(cfg, tmp_path):
    cfg.TEST.EVAL_PERIOD = 2
    trainer = DefaultTrainer(cfg)
    trainer.resume_or_load(resume=False)
    assert trainer.train() is None
    output = tmp_path / "output"
    assert {path.name for path in output.glob("*.pth")} == {
        "model_0000001.pth",
        "model_0000003.pth",
        "model_final.pth",
    }
    lines = [json.loads(line) for line in (output / "metrics.json").read_text().splitlines()]
    assert lines[-1]["iteration"] == 4
    assert lines[-1]["bbox/AP"] >= 0
    assert (output / "inference" / "coco_instances_results.json").exists()
    assert trainer.storage.history("bbox/AP").values()[0][1] == 1


def test_trainer_checks_expected_results(cfg):
    trainer = DefaultTrainer(cfg)
    results = DefaultTrainer.test(cfg, trainer.model)
    expected = results["bbox"]["AP"]
    cfg.TEST.EXPECTED_RESULTS = [["bbox", "AP", expected, 0.01]]
    trainer = DefaultTrainer(cfg)
    assert trainer.train()["bbox"]["AP"] == expected
    cfg.TEST.EXPECTED_RESULTS = [["bbox", "AP", expected + 1, 0.01]]
    with pytest.raises(SystemExit):
        DefaultTrainer(cfg).train()


def test_trainer_attributes_are_those_of_its_loop(cfg):
    trainer = DefaultTrainer(cfg)
    assert trainer.model is trainer._trainer.model
    replacement = EngineTestDetector(device="cpu")
    trainer.model = replacement
    assert trainer._trainer.model is replacement
    for name in ("data_loader", "optimizer"):
        assert getattr(trainer, name) is getattr(trainer._trainer, name)
        setattr(trainer, name, None)
        assert getattr(trainer._trainer, name) is None


def test_hooks_are_in_the_order_that_checkpoints_need(cfg):
    names = [type(hook).__name__ for hook in DefaultTrainer(cfg)._hooks]
    assert names == [
        "IterationSeed",
        "IterationTimer",
        "LRScheduler",
        "PeriodicCheckpointer",
        "EvalHook",
        "PeriodicWriter",
    ]


def test_resume_without_a_checkpoint_starts_at_zero(cfg):
    trainer = DefaultTrainer(cfg)
    trainer.resume_or_load(resume=True)
    assert trainer.start_iter == 0


def test_resume_keeps_the_best_metric(cfg):
    cfg.TEST.EVAL_PERIOD = 1
    trainer = DefaultTrainer(cfg)
    best = hooks.BestCheckpointer(1, trainer.checkpointer, "bbox/AP")
    trainer.register_hooks([best])
    trainer.resume_or_load(resume=False)
    trainer.train()
    cfg.SOLVER.MAX_ITER = 6
    trainer = DefaultTrainer(cfg)
    restored = hooks.BestCheckpointer(1, trainer.checkpointer, "bbox/AP")
    trainer.register_hooks([restored])
    trainer.checkpointer.tag_last_checkpoint("model_final.pth")
    trainer.resume_or_load(resume=True)
    assert trainer.start_iter == 4
    assert restored.best_metric == best.best_metric


class CountingEvaluator(DatasetEvaluator):
    def __init__(self, factor):
        self.factor = factor

    def reset(self):
        self.images = 0

    def process(self, inputs, outputs):
        self.images += len(inputs)

    def evaluate(self):
        return {"count": {"images": self.images * self.factor}}


def test_test_takes_evaluators(cfg):
    model = EngineTestDetector(device="cpu")
    assert DefaultTrainer.test(cfg, model, CountingEvaluator(1)) == {"count": {"images": 10}}
    cfg.DATASETS.TEST = cfg.DATASETS.TEST * 2
    with pytest.raises(ValueError, match="1 evaluators"):
        DefaultTrainer.test(cfg, model, [CountingEvaluator(1)])


def test_test_accepts_what_is_no_dataset_evaluator(cfg, caplog):
    class Plain:
        def __init__(self):
            self.images = 0

        def reset(self):
            self.images = 0

        def process(self, inputs, outputs):
            self.images += len(inputs)

        def evaluate(self):
            return {"count": {"images": self.images}}

    class WithoutEvaluator(DefaultTrainer):
        @classmethod
        def build_evaluator(cls, cfg, dataset_name):
            raise NotImplementedError

    model = EngineTestDetector(device="cpu")
    assert DefaultTrainer.test(cfg, model, [Plain()]) == {"count": {"images": 10}}
    assert WithoutEvaluator.test(cfg, model) == {}
    assert "is not evaluated" in caplog.text


def test_hooks_are_names_of_the_engine():
    for name in engine.hooks.__all__:
        assert getattr(engine, name) is getattr(engine.hooks, name)


def test_predictor_resizes_and_returns_original_frame(cfg, tmp_path):
    trainer = DefaultTrainer(cfg)
    trainer.checkpointer.save("weights")
    cfg.MODEL.WEIGHTS = str(tmp_path / "output" / "weights.pth")
    predictor = DefaultPredictor(cfg)
    image = np.zeros((12, 18, 3), dtype=np.uint8)
    image[..., 0] = 255  # blue
    output = predictor(image)
    assert output["instances"].image_size == (12, 18)
    assert output["seen"].shape == (3, 24, 36)
    assert output["seen"][:, 0, 0].tolist() == [255, 0, 0]
    assert predictor.metadata.thing_classes == ["box"]
    cfg.INPUT.FORMAT = "RGB"
    assert DefaultPredictor(cfg)(image)["seen"][:, 0, 0].tolist() == [0, 0, 255]
    cfg.INPUT.FORMAT = "L"
    with pytest.raises(ValueError, match="INPUT.FORMAT='L'"):
        DefaultPredictor(cfg)


def scaled(cfg, num_workers):
    scaled_cfg = DefaultTrainer.auto_scale_workers(cfg, num_workers)
    solver = scaled_cfg.SOLVER
    return (
        *(solver.IMS_PER_BATCH, solver.BASE_LR, solver.MAX_ITER, solver.WARMUP_ITERS),
        *(*solver.STEPS, solver.CHECKPOINT_PERIOD, scaled_cfg.TEST.EVAL_PERIOD),
    )


def test_auto_scale_workers():
    cfg = get_cfg()
    cfg.SOLVER.IMS_PER_BATCH, cfg.SOLVER.BASE_LR = 16, 0.1
    cfg.SOLVER.MAX_ITER, cfg.SOLVER.WARMUP_ITERS, cfg.SOLVER.STEPS = 5000, 1000, (3000,)
    cfg.TEST.EVAL_PERIOD, cfg.SOLVER.CHECKPOINT_PERIOD = 800, 600
    unscaled = (16, 0.1, 5000, 1000, 3000, 600, 800)
    assert scaled(cfg, 4) == unscaled  # no reference: as it is
    cfg.SOLVER.REFERENCE_WORLD_SIZE = 8
    cfg.freeze()
    assert scaled(cfg, 8) == unscaled
    assert scaled(cfg, 16) == pytest.approx((32, 0.2, 2500, 500, 1500, 300, 400))
    assert DefaultTrainer.auto_scale_workers(cfg, 16).is_frozen()
    assert cfg.SOLVER.IMS_PER_BATCH == 16
    cfg.defrost()
    cfg.SOLVER.IMS_PER_BATCH = 12
    with pytest.raises(ValueError, match="IMS_PER_BATCH=12 is not divisible"):
        DefaultTrainer.auto_scale_workers(cfg, 4)


def test_default_setup_sets_up_the_environment(tmp_path, monkeypatch):
    """So that DETECTRON2_ENV_MODULE counts, and OpenCV starts no threads of its own."""
    calls = []
    monkeypatch.setattr("detectron2.engine.setup.setup_environment", lambda: calls.append(1))
    cfg = get_cfg()
    cfg.OUTPUT_DIR = str(tmp_path)
    default_setup(cfg, {})
    assert calls == [1]


def test_default_setup_writes_the_config(tmp_path):
    cfg = get_cfg()
    cfg.OUTPUT_DIR = str(tmp_path / "run")
    cfg.SEED = 7
    default_setup(cfg, {})
    first = torch.rand(1)
    reread = get_cfg()
    reread.merge_from_file(str(tmp_path / "run" / "config.yaml"))
    assert reread == cfg
    assert (tmp_path / "run" / "log.txt").exists()
    default_setup(cfg, default_argument_parser().parse_args(["--eval-only"]))
    assert torch.equal(torch.rand(1), first)


def test_argument_parser_has_detectron2s_arguments():
    args = default_argument_parser().parse_args(
        [
            "--config-file",
            "a.yaml",
            "--num-gpus",
            "2",
            "--resume",
            "SEED",
            "1",
            "MODEL.DEVICE",
            "cpu",
        ]
    )
    assert (args.config_file, args.num_gpus, args.resume, args.eval_only) == (
        "a.yaml",
        2,
        True,
        False,
    )
    assert (args.num_machines, args.machine_rank) == (1, 0)
    assert args.opts == ["SEED", "1", "MODEL.DEVICE", "cpu"]


def test_default_writers_make_their_folder(tmp_path):
    writers = default_writers(str(tmp_path / "new"), 10)
    assert [type(writer).__name__ for writer in writers] == [
        "CommonMetricPrinter",
        "JSONWriter",
        "TensorboardXWriter",
    ]
    for writer in writers:
        writer.close()


def test_ddp_is_left_out_for_one_process():
    model = nn.Linear(1, 1)
    assert create_ddp_model(model, broadcast_buffers=False) is model


def test_progress_is_logged_without_a_terminal(cfg, capsys):
    cfg.SOLVER.MAX_ITER = 21
    logging.getLogger("detectron2").setLevel(logging.INFO)
    default_setup(cfg, {})
    trainer = DefaultTrainer(cfg)
    trainer.train()
    text = capsys.readouterr().out
    for part in ("iter: 19", "eta: ", "total_loss: ", "lr: ", "10 of 10 batches"):
        assert part in text
    assert math.isfinite(trainer.storage.latest()["total_loss"][0])
