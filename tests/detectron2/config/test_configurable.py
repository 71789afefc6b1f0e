"""@configurable: the same object from plain arguments and from a config, and clear refusals."""

import pytest

from detectron2.config import CfgNode, configurable


class Base:
    @configurable
    def __init__(self, first: int, second, third=3):
        """Doc of Base."""
        self.values = (first, second, third)

    @classmethod
    def from_config(cls, cfg):
        return {"first": cfg.FIRST, "second": cfg.SECOND}


class WithShape(Base):
    @configurable
    def __init__(self, shape, first, second, third=3):
        super().__init__(first, second, third)
        self.shape = shape

    @classmethod
    def from_config(cls, cfg, shape):
        return {**super().from_config(cfg), "shape": shape}


class Inherits(WithShape):
    pass


class WrittenForCfg(WithShape):
    """A subclass in the older style, with a plain constructor that takes the config."""

    def __init__(self, config, shape, extra=4):
        super().__init__(config, shape)
        self.extra = extra


class PassesKeywords(WithShape):
    @configurable
    def __init__(self, shape, extra=4, **kwargs):
        super().__init__(shape, **kwargs)
        self.extra = extra


class DecidesAboutKeywords(WithShape):
    @classmethod
    def from_config(cls, cfg, shape, **kwargs):
        return {**super().from_config(cfg, shape), **kwargs}


class ForwardsShape(Base):
    """Its from_config is Base's, which does not know `shape`."""

    @configurable
    def __init__(self, shape, first: int, second, third=3):
        super().__init__(first, second, third)
        self.shape = shape


CFG = CfgNode({"FIRST": 1, "SECOND": 2, "THIRD": 30})
SHAPED = [WithShape, Inherits, WrittenForCfg, PassesKeywords, DecidesAboutKeywords, ForwardsShape]


def test_plain_arguments():
    assert Base(1, second=2).values == (1, 2, 3)
    for cls in (WithShape, Inherits, DecidesAboutKeywords, ForwardsShape):
        assert cls("s", first=1, second=2, third=5).values == (1, 2, 5)


def test_config_by_position_and_by_keyword():
    assert Base(CFG).values == Base(cfg=CFG).values == (1, 2, 3)
    for cls in SHAPED:
        made = cls(CFG, shape="s")
        assert made.values == (1, 2, 3) and made.shape == "s"
    assert WithShape(CFG, "s").shape == WithShape(cfg=CFG, shape="s").shape == "s"


def test_leftover_keywords_override_the_config():
    assert Base(CFG, third=9).values == (1, 2, 9)
    for cls in (WithShape, Inherits, PassesKeywords, DecidesAboutKeywords, ForwardsShape):
        assert cls(CFG, shape="s", second=8).values == (1, 8, 3)


def test_arguments_that_fit_nowhere_are_refused():
    for cls in (WithShape, DecidesAboutKeywords, ForwardsShape):
        with pytest.raises(TypeError):
            cls(CFG, shape="s", unknown=1)
    with pytest.raises(TypeError):
        ForwardsShape(CFG, "s")  # positional arguments go to from_config only
    with pytest.raises(TypeError):
        WithShape(CFG)


def test_metadata_of_the_wrapped_constructor_stays():
    assert "Doc of Base" in Base.__init__.__doc__
    assert ForwardsShape.__init__.__annotations__["first"] is int


def test_classes_without_a_proper_from_config_are_refused():
    class Missing:
        @configurable
        def __init__(self, a=1):
            pass

    class NoClassmethod(Missing):
        def from_config(self, cfg):
            return {}

    class WrongName(Missing):
        @classmethod
        def from_config(cls, config):
            return {}

    with pytest.raises(AttributeError, match="Missing.*from_config"):
        Missing(a=1)
    with pytest.raises(TypeError, match="classmethod"):
        NoClassmethod(a=1)
    with pytest.raises(TypeError, match="WrongName.from_config.*'cfg'"):
        WrongName(CFG)


@configurable(from_config=lambda cfg, second: {"first": cfg.FIRST, "second": second})
def add_up(first, second=2, third=3, fourth=4):
    return first, second, third, fourth


def test_functions():
    assert add_up(1) == (1, 2, 3, 4)
    with pytest.raises(TypeError):
        add_up(CFG)
    assert add_up(CFG, second=5) == (1, 5, 3, 4)
    assert add_up(CFG, first=10, second=20, fourth=40) == (10, 20, 3, 40)
    assert add_up(cfg=CFG, second=5) == (1, 5, 3, 4)
    assert callable(add_up.from_config)


def test_misuse_of_the_decorator():
    with pytest.raises(TypeError, match="from_config"):

        @configurable
        def build(a):
            return a

    with pytest.raises(TypeError, match="must be a function"):
        configurable(from_config={"a": 1})

    class Called:
        @configurable()
        def __init__(self, a):
            self.a = a

        @classmethod
        def from_config(cls, cfg):
            return {"a": cfg.FIRST}

    assert Called(CFG).a == 1
