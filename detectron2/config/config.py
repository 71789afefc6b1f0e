"""The tree of config keys, and the decorator that lets constructors take it."""

import functools
import inspect
from collections.abc import Callable
from typing import Any

from fvcore.common.config import CfgNode as _CfgNode

from detectron2.utils.file_io import PathManager
from weaklabels.files import refuse_expanding

from .upstream import DroppedKeys, is_upstream_key, unknown_key_message


class CfgNode(_CfgNode):
    """A tree of config keys. Its defaults fix the names and the types.

    Merging a file, another config or a list of options changes values only. An unknown name is a
    KeyError, unless it is a key of Detectron2 or AdelaiDet that nothing here reads
    (`upstream.py`): such keys are dropped, and one warning names them.
    """

    @classmethod
    def _open_cfg(cls, filename: str) -> Any:
        return PathManager.open(filename, "r")

    @classmethod
    def load_yaml_with_base(cls, filename: str, allow_unsafe: bool = False) -> dict[str, Any]:
        """Content of a YAML file, merged over the file(s) named by its `_BASE_`."""
        if "://" in filename:
            raise ValueError(f"config file '{filename}': a URL; download it and give its path")
        if not PathManager.isfile(filename):
            raise FileNotFoundError(f"config file '{filename}' does not exist; give its path")
        try:
            loaded = super().load_yaml_with_base(filename, allow_unsafe)
        except TypeError as error:  # raised where an empty file gives None
            raise ValueError(f"config file '{filename}' holds no keys ({error})") from error
        if not isinstance(loaded, dict):
            raise ValueError(f"config file '{filename}' must hold KEY: VALUE lines")
        refuse_expanding(loaded)
        return loaded

    def merge_from_file(self, cfg_filename: str, allow_unsafe: bool = False) -> None:
        """Take over the values of a YAML file, which must have the VERSION of this config.

        Args:
            allow_unsafe: also run YAML tags that build Python objects. This executes code from the
                file, so it is off by default (in Detectron2 it is on).
        """
        loaded = type(self)(self.load_yaml_with_base(cfg_filename, allow_unsafe=allow_unsafe))
        if "VERSION" in self:
            self._check_version(loaded, cfg_filename)
        self._merge_known(loaded, source=f"file '{cfg_filename}'")

    def merge_from_other_cfg(self, cfg_other: "_CfgNode") -> None:
        """Take over the values of another config."""
        self._merge_known(cfg_other, source="merged config")

    def merge_from_list(self, cfg_list: list) -> None:
        """Take over `["SOLVER.BASE_LR", "0.01", ...]`; strings are read as Python literals."""
        if len(cfg_list) % 2:
            raise ValueError(
                f"config options come in pairs KEY VALUE, got {len(cfg_list)} items: {cfg_list}"
            )
        dropped = DroppedKeys("command-line options", self._has)
        known: list = []
        for name, value in zip(cfg_list[::2], cfg_list[1::2], strict=True):
            if not self._has(name) and not self._is_handled_by_yacs(name):
                self._drop_or_raise(name, dropped)
            else:
                known += [name, value]
        super().merge_from_list(known)
        dropped.warn()

    def _check_version(self, loaded: "CfgNode", filename: str) -> None:
        version = loaded.get("VERSION", self.VERSION)
        if version > self.VERSION:
            raise ValueError(
                f"config file '{filename}' has VERSION {version}; expected {self.VERSION} at most"
            )
        if version < self.VERSION:
            raise ValueError(
                f"config file '{filename}' has VERSION {version}, whose key names are not read any "
                f"more. Rename its keys to those of VERSION {self.VERSION} (Detectron2's "
                "`upgrade_config` does it) and save it"
            )

    def _merge_known(self, other: "_CfgNode", source: str) -> None:
        dropped = DroppedKeys(source, self._has)
        super().merge_from_other_cfg(self._without_upstream(other, self, "", dropped))
        dropped.warn()

    def _without_upstream(
        self, other: dict, node: "CfgNode", prefix: str, dropped: DroppedKeys
    ) -> "CfgNode":
        """The part of `other` that has keys in `node`, the subtree of self at `prefix`."""
        kept = type(self)()
        for key, value in other.items():
            name = f"{prefix}{key}"
            child = node.get(key) if isinstance(node, dict) else None
            if isinstance(child, dict) and isinstance(value, dict) and not child.is_new_allowed():
                kept[key] = self._without_upstream(value, child, f"{name}.", dropped)
            elif key in node or node.is_new_allowed() or self._is_handled_by_yacs(name):
                kept[key] = value
            else:
                for leaf in _leaf_names(name, value):
                    self._drop_or_raise(leaf, dropped)
        return kept

    def _drop_or_raise(self, name: str, dropped: DroppedKeys) -> None:
        if "VERSION" in self and is_upstream_key(name):  # VERSION: a whole config, not a part
            dropped.add(name)
        else:
            raise KeyError(unknown_key_message(name, dropped.source, _leaf_names("", self)))

    def _has(self, name: str) -> bool:
        node: Any = self
        for part in name.split("."):
            if not isinstance(node, dict) or part not in node:
                return False
            node = node[part]
        return True

    def _is_handled_by_yacs(self, name: str) -> bool:
        """Whether the name is registered as deprecated or renamed, or is reserved for files."""
        is_deprecated = name in self.__dict__[CfgNode.DEPRECATED_KEYS]
        return is_deprecated or self.key_is_renamed(name) or name == "_BASE_"


def _leaf_names(name: str, value: Any) -> list[str]:
    """Dotted names of all values in `value`, the tree at `name`."""
    if not isinstance(value, dict) or not value:
        return [name]
    prefix = f"{name}." if name else ""
    return [leaf for key, item in value.items() for leaf in _leaf_names(f"{prefix}{key}", item)]


global_cfg = CfgNode()


def set_global_cfg(cfg: CfgNode) -> None:
    """Fill `detectron2.config.global_cfg` with `cfg`.

    For code that cannot be given a config in any other way. Prefer arguments.
    """
    global_cfg.clear()
    global_cfg.update(cfg)


def configurable(
    init_func: Callable | None = None, *, from_config: Callable[..., dict] | None = None
) -> Callable:
    """Let a constructor or function with plain arguments also be called with a config.

    Use `@configurable` on an `__init__` whose class has a classmethod `from_config(cls, cfg, ...)`
    that returns the arguments of the constructor as a dict. On a function, pass `from_config`:
    `@configurable(from_config=lambda cfg: {"depth": cfg.MODEL.RESNETS.DEPTH})`.

    A call has a config if its first positional argument or its keyword `cfg` is a CfgNode. Other
    arguments go to `from_config` if it takes them; other keywords override its result.
    """
    if init_func is not None:
        is_init = inspect.isfunction(init_func) and init_func.__name__ == "__init__"
        if not is_init or from_config is not None:
            raise TypeError(
                "use @configurable on an __init__ and @configurable(from_config=...) on any other "
                f"function; got {init_func!r}, from_config={from_config!r}"
            )
        return _configurable_init(init_func)
    if from_config is None:
        return configurable  # written as @configurable()
    if not inspect.isfunction(from_config):
        raise TypeError(f"from_config must be a function, got {from_config!r}")
    return functools.partial(_configurable_function, from_config)


def _configurable_init(init_func: Callable) -> Callable:
    @functools.wraps(init_func)
    def wrapped(self: Any, *args: Any, **kwargs: Any) -> None:
        cls = type(self)
        if not hasattr(cls, "from_config"):
            raise AttributeError(f"@configurable {cls.__name__} needs a classmethod from_config")
        if not inspect.ismethod(cls.from_config):
            raise TypeError(f"from_config of {cls.__name__} must be a classmethod")
        if _called_with_cfg(*args, **kwargs):
            init_func(self, **_get_args_from_config(cls.from_config, *args, **kwargs))
        else:
            init_func(self, *args, **kwargs)

    return wrapped


def _configurable_function(from_config: Callable[..., dict], func: Callable) -> Callable:
    @functools.wraps(func)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        if _called_with_cfg(*args, **kwargs):
            return func(**_get_args_from_config(from_config, *args, **kwargs))
        return func(*args, **kwargs)

    wrapped.from_config = from_config
    return wrapped


def _called_with_cfg(*args: Any, **kwargs: Any) -> bool:
    """Whether a call passes a config, as its first argument or as the keyword `cfg`."""
    candidate = args[0] if args else kwargs.get("cfg")
    return isinstance(candidate, _CfgNode) or isinstance(kwargs.get("cfg"), _CfgNode)


def _get_args_from_config(from_config: Callable[..., dict], *args: Any, **kwargs: Any) -> dict:
    """Plain arguments for a call with a config: the result of `from_config`, then the leftovers."""
    parameters = inspect.signature(from_config).parameters
    owner = getattr(from_config, "__self__", None)
    name = f"{owner.__name__}.from_config" if inspect.isclass(owner) else from_config.__name__
    if next(iter(parameters), None) != "cfg":
        raise TypeError(f"{name} must take 'cfg' as its first argument, it takes {[*parameters]}")
    variadic = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    if any(parameter.kind in variadic for parameter in parameters.values()):
        return from_config(*args, **kwargs)  # it decides about every argument itself
    leftovers = {key: kwargs.pop(key) for key in list(kwargs) if key not in parameters}
    return {**from_config(*args, **kwargs), **leftovers}
