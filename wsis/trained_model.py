"""Build the network of a config with the weights of a finished training, all of them or none."""

from torch import nn

from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import CfgNode
from detectron2.modeling import build_model, meta_architecture

BACKBONE_WEIGHTS = "ImageNetPretrained"  # in the names of files that start a training


def load_trained(cfg: CfgNode) -> nn.Module:
    """The network in evaluation mode, on MODEL.DEVICE, with every tensor from MODEL.WEIGHTS.

    Raises:
        ValueError: no trained weights are named, or they are not those of this network.
        FileNotFoundError: the file is not there.
    """
    weights = cfg.MODEL.WEIGHTS
    if not weights or BACKBONE_WEIGHTS in weights:
        raise ValueError(
            f"MODEL.WEIGHTS is {weights!r}, which is no trained network: add "
            "'MODEL.WEIGHTS path/to/model_final.pth' at the end of the command"
        )
    model = build_model(cfg)
    checkpointer = DetectionCheckpointer(model)
    checkpointer.load(weights)
    report = checkpointer.load_report
    if not report.is_complete:
        faults = {
            "missing in the file": report.missing,
            "unknown to the network": report.unexpected,
            "of another shape": [name for name, _, _ in report.mismatched],
        }
        counts = [f"{len(v)} {k} (such as {v[0]})" for k, v in faults.items() if v]
        raise ValueError(
            f"{weights} does not fit the network of the config, which has "
            f"{meta_architecture(cfg).num_classes(cfg)} classes: {', '.join(counts)}. Give the "
            "config and the classes that it was trained with"
        )
    return model.eval()
