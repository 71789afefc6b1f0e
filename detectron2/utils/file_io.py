"""Open local paths, URLs, `detectron2://` and `torchvision://` names through one `PathManager`."""

import os
from typing import IO, Any

from iopath.common.file_io import (
    HTTPURLHandler,
    OneDrivePathHandler,
    PathHandler,
    get_cache_dir,
)
from iopath.common.file_io import PathManager as PathManagerBase

__all__ = ["PathHandler", "PathManager"]


class CachedURLHandler(HTTPURLHandler):
    """Download a URL once; when that fails, say where a file fetched by hand is looked for."""

    def _get_local_path(
        self, path: str, force: bool = False, cache_dir: str | None = None, **kwargs: Any
    ) -> str:
        try:
            return super()._get_local_path(path, force=force, cache_dir=cache_dir, **kwargs)
        except OSError as error:
            url_path = path.split("://", 1)[1].partition("/")[2]
            wanted = os.path.join(get_cache_dir(cache_dir), url_path)
            raise FileNotFoundError(
                f"could not download {path} ({error}). Without a network, fetch that URL elsewhere "
                f"and put the file at {wanted} (the folder is set by the variable FVCORE_CACHE)"
            ) from error


class Detectron2Handler(PathHandler):
    """Resolve `detectron2://ImageNetPretrained/MSRA/R-50.pkl` to its public URL, cached locally."""

    PREFIX = "detectron2://"
    S3_DETECTRON2_PREFIX = "https://dl.fbaipublicfiles.com/detectron2/"

    def _get_supported_prefixes(self) -> list[str]:
        return [self.PREFIX]

    def _url(self, path: str) -> str:
        return self.S3_DETECTRON2_PREFIX + path[len(self.PREFIX) :]

    def _get_local_path(self, path: str, force: bool = False, **kwargs: Any) -> str:
        return PathManager.get_local_path(self._url(path), force=force, **kwargs)

    def _open(self, path: str, mode: str = "r", buffering: int = -1, **kwargs: Any) -> IO:
        return PathManager.open(self._url(path), mode, buffering, **kwargs)


class TorchvisionHandler(PathHandler):
    """Resolve `torchvision://vgg16` to the URL of that model's default weights, cached locally."""

    PREFIX = "torchvision://"

    def _get_supported_prefixes(self) -> list[str]:
        return [self.PREFIX]

    def _url(self, path: str) -> str:
        from torchvision.models import get_model_weights, list_models  # slow to import

        name = path[len(self.PREFIX) :]
        if name not in list_models():
            raise FileNotFoundError(
                f"{path}: torchvision has no model {name!r}; expected a name such as 'vgg16' or "
                "'resnet50' out of torchvision.models.list_models()"
            )
        return get_model_weights(name).DEFAULT.url

    def _get_local_path(self, path: str, force: bool = False, **kwargs: Any) -> str:
        return PathManager.get_local_path(self._url(path), force=force, **kwargs)

    def _open(self, path: str, mode: str = "r", buffering: int = -1, **kwargs: Any) -> IO:
        return PathManager.open(self._url(path), mode, buffering, **kwargs)


PathManager = PathManagerBase()
PathManager.register_handler(CachedURLHandler())
PathManager.register_handler(OneDrivePathHandler())
PathManager.register_handler(Detectron2Handler())
PathManager.register_handler(TorchvisionHandler())
