"""Whatever is public says what it is, and shows it where it can be called."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Iterator
from types import FunctionType

import ebbtide
import ebbtide.array
import pytest

MODULES = (ebbtide, ebbtide.array, ebbtide.array.random)


def public() -> Iterator[tuple[str, object]]:
    """Walk modules, their functions and classes, and what classes define themselves."""
    for module in MODULES:
        yield module.__name__, module
        for name in module.__all__:
            value = getattr(module, name)
            if inspect.isclass(value):
                yield f"{module.__name__}.{name}", value
                for own in vars(value):
                    if is_public(own) and was_written(value, own):
                        yield f"{module.__name__}.{name}.{own}", vars(value)[own]
            elif inspect.isroutine(value):
                yield f"{module.__name__}.{name}", value


def is_public(name: str) -> bool:
    """Whether it is an operator, or has no underscore before its name."""
    return not name.startswith("_") or name.endswith("__")


def was_written(owner: type, name: str) -> bool:
    """Whether a function or property stands in the class's file: dataclasses make some as well."""
    member = vars(owner)[name]
    function = member.fget if isinstance(member, property) else inspect.unwrap(member)
    function = getattr(function, "__func__", function)
    file = inspect.getsourcefile(owner) if isinstance(function, FunctionType) else None
    return file is not None and function.__code__.co_filename == file


def is_shown_elsewhere(name: str, value: object) -> bool:
    """Whether an example is not needed: an exception is shown where it is raised."""
    is_operator = name.endswith("__")
    is_exception = inspect.isclass(value) and issubclass(value, BaseException)
    return is_operator or is_exception or isinstance(value, property)


ALL = dict(public())


def test_the_walk_finds_what_there_is() -> None:
    assert {
        "ebbtide.Cluster.submit",
        "ebbtide.Cluster.__enter__",
        "ebbtide.Future.result",
        "ebbtide.TaskFailed",
        "ebbtide.array.Array.shape",
        "ebbtide.array.Array.__rmatmul__",
        "ebbtide.array.topk",
        "ebbtide.array.random.Generator.normal",
    } <= ALL.keys()


@pytest.mark.parametrize("name", ALL)
def test_it_says_what_it_is(name: str) -> None:
    says = ALL[name].__doc__
    assert says and says.strip().split("\n")[0].endswith((".", ":"))


@pytest.mark.parametrize("name", [name for name in ALL if not is_shown_elsewhere(name, ALL[name])])
def test_it_shows_an_example(name: str) -> None:
    says = inspect.getdoc(ALL[name]) or ""
    assert "\n>>> " in says and "+SKIP" not in says


@pytest.mark.parametrize(
    "name", [name for name, value in ALL.items() if dataclasses.is_dataclass(value)]
)
def test_it_says_what_its_fields_are(name: str) -> None:
    says = inspect.getdoc(ALL[name]) or ""
    for field in dataclasses.fields(ALL[name]):  # type: ignore[arg-type]
        assert f"\n    {field.name}: " in says
