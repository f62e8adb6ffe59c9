"""Dataclasses, and objects that compare as equal."""

from dataclasses import dataclass, replace

from tests.engine.zoo.containers import scaled
from tests.engine.zoo.program import program


@program()
def dataclass_field():
    """A field of a dataclass."""

    @dataclass
    class Config:
        scale: float = 1.0

    config = Config()
    return scaled(lambda: config.scale, lambda value: setattr(config, "scale", value))


@program()
def frozen_dataclass_replaced():
    """A frozen dataclass is replaced by another."""

    @dataclass(frozen=True)
    class Config:
        scale: float = 1.0

    holder = {"config": Config()}
    return scaled(
        lambda: holder["config"].scale, lambda value: holder.update(config=replace(holder["config"], scale=value))
    )


@program()
def dataclass_without_comparison():
    """A dataclass field that `==` leaves out."""
    from dataclasses import field

    @dataclass
    class Config:
        name: str = "a"
        scale: float = field(default=1.0, compare=False)

    config = Config()
    return scaled(lambda: config.scale, lambda value: setattr(config, "scale", value))


@program()
def equal_to_everything():
    """An object that equals everything is replaced."""

    class Config:
        def __init__(self, scale):
            self.scale = scale

        def __eq__(self, other):
            return True

        def __hash__(self):
            return 0

    holder = [Config(1.0)]
    return scaled(lambda: holder[0].scale, lambda value: holder.__setitem__(0, Config(value)))
