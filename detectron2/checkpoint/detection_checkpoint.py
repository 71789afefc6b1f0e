"""Save and load a model and everything else that a training needs to continue."""

import glob
import logging
import os
import re
from typing import Any

import torch.distributed as dist
from fvcore.common.checkpoint import Checkpointer
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from detectron2.checkpoint.c2_model_loading import (
    convert_c2_detectron_names,
    convert_torchvision_names,
    convert_torchvision_vgg16_names,
    is_torchvision_resnet,
    is_torchvision_vgg16,
    rename_by_ending,
)
from detectron2.checkpoint.load_report import LoadReport, without_loaded_aliases
from detectron2.checkpoint.safe_files import (
    check_weights,
    plain_data,
    read_pickle_file,
    read_safetensors,
    read_torch_file,
    write_torch_file,
)
from detectron2.utils import comm
from detectron2.utils.file_io import PathManager
from weaklabels.files import atomic_text
from weaklabels.model_folder import weights_file

logger = logging.getLogger(__name__)

# Suffix of a path that asks for matching by endings: "model.pth?matching_heuristics=True".
HEURISTICS_QUERY = re.compile(r"\?matching_heuristics=(True|False)$")
# Set from the config, so a checkpoint may lack them.
CONFIGURED_BUFFERS = ("pixel_mean", "pixel_std")
# Computed now; older checkpoints hold it.
COMPUTED_BUFFER = "anchor_generator.cell_anchors"
TORCHVISION_NOTE = (
    "These are torchvision's weights. They need INPUT.FORMAT RGB, MODEL.PIXEL_MEAN [123.675, "
    "116.28, 103.53], MODEL.PIXEL_STD [58.395, 57.12, 57.375] and, for a ResNet, "
    "MODEL.RESNETS.STRIDE_IN_1X1 False: check the config"
)


class DetectionCheckpointer(Checkpointer):
    """fvcore's `Checkpointer` for our files and those of Detectron2, Caffe2 and torchvision.

    Reading a file never runs code from it. Files are written under a temporary name, then renamed.
    After `load`, `load_report` says what was loaded. Only the main process saves.
    """

    def __init__(
        self,
        model: nn.Module,
        save_dir: str = "",
        *,
        save_to_disk: bool | None = None,
        **checkpointables: Any,
    ) -> None:
        """
        Args:
            model: if it is a `DistributedDataParallel`, all processes must load together.
            save_dir: local folder for checkpoints; "" saves none.
            save_to_disk: by default True on the main process only.
            checkpointables: further objects with `state_dict` and `load_state_dict`.
        """
        if save_to_disk is None:
            save_to_disk = comm.is_main_process()
        super().__init__(model, save_dir, save_to_disk=save_to_disk, **checkpointables)
        self.path_manager = PathManager
        self.load_report: LoadReport | None = None
        self._loads_together = isinstance(model, DistributedDataParallel)
        self._match_endings = False

    def save(self, name: str, **kwargs: Any) -> None:
        """Write `save_dir/name.pth`: the model, the checkpointables and `kwargs`."""
        if not self.save_dir or not self.save_to_disk:
            return
        if os.path.basename(name) != name:
            raise ValueError(f"checkpoint name {name!r}: expected a file name without folders")
        data = {key: obj.state_dict() for key, obj in self.checkpointables.items()}
        data = {key: plain_data(value, key) for key, value in {**data, **kwargs}.items()}
        path = os.path.join(self.save_dir, f"{name}.pth")
        logger.info("Saving checkpoint to %s", path)
        os.makedirs(self.save_dir, exist_ok=True)
        write_torch_file({"model": self.model.state_dict(), **data}, path)
        self.tag_last_checkpoint(f"{name}.pth")

    def tag_last_checkpoint(self, last_filename_basename: str) -> None:
        """Mark a file in `save_dir` as the one to resume from."""

        with atomic_text(os.path.join(self.save_dir, "last_checkpoint")) as file:
            file.write(last_filename_basename)

    def has_checkpoint(self) -> bool:
        """Whether there is a checkpoint to resume from, as the main process sees it."""
        has = super().has_checkpoint()
        # Other machines may not see its folder.
        return comm.all_gather(has)[0] if self._loads_together else has

    def resume_or_load(self, path: str, *, resume: bool = True) -> dict[str, Any]:
        """Load everything from the last checkpoint in `save_dir`, or the model alone from `path`.

        Args:
            path: see `load`; used if `resume` is False or there is no last checkpoint. Where that
                one is damaged, the newest that is whole is used, and a warning says so.
        """
        if not (resume and self.has_checkpoint()):
            return self.load(path, checkpointables=[])
        paths = self._checkpoints_to_resume_from()
        for path in paths[:-1]:
            try:
                return self.load(path)
            except (ValueError, FileNotFoundError) as error:
                logger.warning("%s. The checkpoint before it is used", error)
        return self.load(paths[-1])

    def _checkpoints_to_resume_from(self) -> list[str]:
        """The last checkpoint, then the others of a training, the newest first."""
        last = self.get_checkpoint_file()
        others = glob.glob(os.path.join(glob.escape(self.save_dir), "model_*.pth"))
        others = sorted(set(others) - {last}, key=os.path.getmtime, reverse=True)
        paths = [last, *others]
        return comm.all_gather(paths)[0] if self._loads_together else paths

    def load(self, path: str, checkpointables: list[str] | None = None) -> dict[str, Any]:
        """Load the model and checkpointables; returns the rest of the file.

        Args:
            path: local file, folder of `wsis package` or URL; "" loads nothing. The suffix
                `?matching_heuristics=True` matches names by their endings.
            checkpointables: names of those to load; None for all.
        """
        if not path:
            logger.info("No checkpoint is given: the model keeps its initial weights")
            return {}
        logger.info("Reading checkpoint %s", path)
        query = HEURISTICS_QUERY.search(path)
        self._match_endings = query is not None and query[1] == "True"
        checkpoint = self._read(path[: query.start()] if query else path)
        self._log_incompatible_keys(self._load_model(checkpoint))
        for key in self.checkpointables if checkpointables is None else checkpointables:
            if key in checkpoint:
                self.checkpointables[key].load_state_dict(checkpoint.pop(key))
            else:
                logger.warning("%s holds no state of %r", path, key)
        return checkpoint

    def _read(self, path: str) -> dict[str, Any]:
        """Content of a file; the main process sends it to those that cannot read it."""
        path = weights_file(path)
        local = path if os.path.isfile(path) else self.path_manager.get_local_path(path)
        found = os.path.isfile(local)
        all_found = comm.all_gather(found) if self._loads_together else [found]
        if not all_found[0]:
            raise FileNotFoundError(
                f"checkpoint {path} is not there. Put the file at {os.path.abspath(local)}, or "
                "set MODEL.WEIGHTS to its path, or to '' to start from new weights"
            )
        checkpoint = self._load_file(local) if found else None
        if not all(all_found):
            logger.warning("Some processes cannot read %s: the main process sends it to them", path)
            shared = [checkpoint if comm.is_main_process() else None]
            dist.broadcast_object_list(shared, src=0, group=dist.new_group(backend="gloo"))
            checkpoint = shared[0]
        return checkpoint

    def _load_file(self, f: str) -> dict[str, Any]:
        """Content of a local file: a dict with the state dict `model`.

        `matching_heuristics` asks for matching names by their endings; `__author__` says whose
        names they are.
        """
        if f.endswith(".safetensors"):
            weights = read_safetensors(f)
            check_weights(weights, f)
            return {"model": weights}
        is_pickle = f.endswith(".pkl")
        data = read_pickle_file(f) if is_pickle else read_torch_file(f)
        if not isinstance(data, dict):
            raise ValueError(f"{f} holds a {type(data).__name__}; expected a dict of tensors")
        if is_pickle and not ("model" in data and "__author__" in data):
            weights = data.get("blobs", data)
            check_weights(weights, f)
            weights = {k: v for k, v in weights.items() if not k.endswith("_momentum")}
            return {"model": weights, "__author__": "Caffe2", "matching_heuristics": True}
        if "model" not in data and isinstance(data.get("state_dict"), dict):  # OpenMMLab's
            data = {"model": data["state_dict"]}
        if "model" not in data:
            if not data or not all(hasattr(value, "shape") for value in data.values()):
                raise ValueError(
                    f"{f} is not a checkpoint: it holds {sorted(map(str, data))}, but neither "
                    "'model' nor tensors only"
                )
            data = {"model": data}
        check_weights(data["model"], f)
        if is_torchvision_resnet(data["model"]) or is_torchvision_vgg16(data["model"]):
            data |= {"__author__": "torchvision", "matching_heuristics": True}
        return data

    def _load_model(self, checkpoint: dict[str, Any]) -> Any:
        """Load and remove `checkpoint["model"]`; returns fvcore's lists of keys."""
        match_endings = checkpoint.pop("matching_heuristics", False) or self._match_endings
        author = checkpoint.pop("__author__", None)
        if match_endings:
            checkpoint["model"] = self._match(checkpoint["model"], author)
        if convert := getattr(self.model, "convert_weights", None):
            checkpoint["model"] = convert(checkpoint["model"])
        weights = checkpoint["model"]
        # Not left to fvcore, which looks up a module by each such name; hooks may have renamed it.
        shapes = {name: tuple(value.shape) for name, value in self.model.state_dict().items()}
        mismatched = [
            (name, tuple(value.shape), shapes[name])
            for name, value in weights.items()
            if name in shapes and tuple(value.shape) != shapes[name]
        ]
        for name, _, _ in mismatched:
            del weights[name]
        incompatible = super()._load_model(checkpoint)
        mismatched += incompatible.incorrect_shapes  # of names that begin with "module."
        own_buffers = dict(self.model.named_buffers(recurse=False))
        ignored = {name for name in CONFIGURED_BUFFERS if name in own_buffers}
        ignored |= {name for name, _, _ in mismatched}
        missing = [name for name in incompatible.missing_keys if name not in ignored]
        incompatible = incompatible._replace(
            missing_keys=without_loaded_aliases(missing, self.model),
            unexpected_keys=[k for k in incompatible.unexpected_keys if COMPUTED_BUFFER not in k],
            incorrect_shapes=mismatched,
        )
        model_names = self.model.state_dict().keys()
        self.load_report = LoadReport(
            missing=incompatible.missing_keys,
            unexpected=incompatible.unexpected_keys,
            mismatched=mismatched,
            num_model_tensors=len(model_names),
            loaded=[name for name in weights if name in model_names],
        )
        return incompatible

    def _match(self, weights: dict[str, Any], author: str | None) -> dict[str, Tensor]:
        """Weights of a file by the names of the model."""
        self._convert_ndarray_to_tensor(weights)
        if author == "Caffe2":
            weights, _ = convert_c2_detectron_names(weights)
        elif author == "torchvision" and is_torchvision_resnet(weights):
            logger.warning(TORCHVISION_NOTE)
            weights = convert_torchvision_names(weights)
        elif author == "torchvision" and is_torchvision_vgg16(weights):
            logger.warning(TORCHVISION_NOTE)
            weights = convert_torchvision_vgg16_names(weights)
        names = rename_by_ending(weights, self.model.state_dict())
        return {names.get(name, name): value for name, value in weights.items()}

    def _log_incompatible_keys(self, incompatible: Any) -> None:
        report = self.load_report
        logger.log(logging.INFO if report.is_complete else logging.WARNING, "%s", report)
