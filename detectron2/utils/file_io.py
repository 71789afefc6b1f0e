"""Open local paths, URLs, `detectron2://` and `torchvision://` names through one `PathManager`."""

import os
import re
from typing import IO, Any
from urllib.parse import unquote

from iopath.common.file_io import (
    HTTPURLHandler,
    OneDrivePathHandler,
    PathHandler,
    get_cache_dir,
)
from iopath.common.file_io import PathManager as PathManagerBase

from weaklabels.files import file_sha256

__all__ = ["PathHandler", "PathManager"]


class CachedURLHandler(HTTPURLHandler):
    """Download a URL once; on failure, say where to put a file that was fetched by hand."""

    def _get_local_path(
        self, path: str, force: bool = False, cache_dir: str | None = None, **kwargs: Any
    ) -> str:
        scheme, rest = path.split("://", 1)
        url_path = rest.partition("/")[2]
        if scheme != "https" or ".." in unquote(url_path).split("/"):
            raise ValueError(f"{path}: expected an https:// URL without '..': download it by hand")
        wanted = os.path.join(get_cache_dir(cache_dir), url_path)
        was_there = os.path.isfile(wanted) and not force
        try:
            local = super()._get_local_path(path, force=force, cache_dir=cache_dir, **kwargs)
            if not was_there:
                _check_digest(path, local)
            return local
        except OSError as error:
            raise FileNotFoundError(
                f"could not download {path} ({error}). Without a network, fetch that URL elsewhere "
                f"and put the file at {wanted} (the variable FVCORE_CACHE sets the folder)"
            ) from error


def _check_digest(url: str, local: str) -> None:
    """Remove a download whose SHA-256 is not what its name ends with, as torchvision's names do."""
    named = re.search(r"-([0-9a-f]{8,64})\.\w+$", url)
    if named and not file_sha256(local).startswith(named[1]):
        os.remove(local)
        raise ValueError(
            f"{url}: what arrived has another SHA-256 than {named[1]}...: run it again"
        )


class _AliasHandler(PathHandler):
    """Resolve names with a prefix to URLs, which are cached locally."""

    PREFIX: str

    def _get_supported_prefixes(self) -> list[str]:
        return [self.PREFIX]

    def _url(self, path: str) -> str:
        raise NotImplementedError(f"{type(self).__name__} must define _url()")

    def _get_local_path(self, path: str, force: bool = False, **kwargs: Any) -> str:
        return PathManager.get_local_path(self._url(path), force=force, **kwargs)

    def _open(self, path: str, mode: str = "r", buffering: int = -1, **kwargs: Any) -> IO:
        return PathManager.open(self._url(path), mode, buffering, **kwargs)


class Detectron2Handler(_AliasHandler):
    """`detectron2://ImageNetPretrained/MSRA/R-50.pkl` and the like: the public model files."""

    PREFIX = "detectron2://"
    S3_DETECTRON2_PREFIX = "https://dl.fbaipublicfiles.com/detectron2/"

    def _url(self, path: str) -> str:
        return self.S3_DETECTRON2_PREFIX + path[len(self.PREFIX) :]


class TorchvisionHandler(_AliasHandler):
    """`torchvision://vgg16` and the like: the default weights of a model."""

    PREFIX = "torchvision://"

    def _url(self, path: str) -> str:
        from torchvision.models import get_model_weights, list_models  # slow to import

        name = path[len(self.PREFIX) :]
        if name not in list_models():
            raise FileNotFoundError(
                f"{path}: torchvision has no model {name!r}; expected a name such as 'vgg16' or "
                "'resnet50' out of torchvision.models.list_models()"
            )
        return get_model_weights(name).DEFAULT.url


PathManager = PathManagerBase()
for _handler in (
    CachedURLHandler(),
    OneDrivePathHandler(),
    Detectron2Handler(),
    TorchvisionHandler(),
):
    PathManager.register_handler(_handler)
