"""
The protocol's frozen dataclasses, compared with those of the standard library.
"""

import copy
import dataclasses
import pickle
from typing import ClassVar

import pytest

from deploy.host import message
from deploy.host.protocol import LeaseStatus


def declare(dataclass):
    """
    Return one class, built by *dataclass*.
    """

    class Point:
        KIND: ClassVar[str] = "point"
        x: int
        y: int = 2
        tags: dict = dataclasses.field(default_factory=dict)

    return dataclass(frozen=True)(Point)


OURS, THEIRS = declare(message.dataclass), declare(dataclasses.dataclass)


def outcome(action, point):
    """
    Return the result of *action* for *point*, or the type of its error.
    """
    try:
        return action(point)
    except Exception as error:
        return type(error)


@pytest.mark.parametrize(
    "action",
    [
        lambda point: point(),
        lambda point: point(1, 2, {}, 4),
        lambda point: point(1, x=1),
        lambda point: point(1, z=1),
        lambda point: repr(point(1)),
        lambda point: repr(point(1, tags={"a": 1})),
        lambda point: point(1) == point(1, 2),
        lambda point: point(1) == point(2),
        lambda point: point(1) == (1, 2, {}),
        lambda point: hash(point(1)),
        lambda point: hash(point(1, tags=())) == hash(point(1, 2, ())),
        lambda point: setattr(point(1), "x", 2),
        lambda point: delattr(point(1), "x"),
        lambda point: setattr(point(1), "new", 2),
        lambda point: [field.name for field in dataclasses.fields(point)],
        lambda point: dataclasses.asdict(point(1)),
        lambda point: repr(dataclasses.replace(point(1), y=5)),
        lambda point: point(1).tags is point(1).tags,
        lambda point: (point.KIND, point(1).y, dataclasses.is_dataclass(point)),
        lambda point: copy.deepcopy(point(1)) == point(1),
    ],
)
def test_it_behaves_like_the_standard_dataclass(action):
    """
    Arguments, defaults, comparison, text and immutability.
    """
    assert outcome(action, OURS) == outcome(action, THEIRS)


def test_objects_of_two_classes_are_never_equal():
    """
    Two classes with equal values are two messages.
    """
    assert OURS(1) != THEIRS(1)


def test_messages_of_the_protocol_use_it():
    """
    The protocol's classes share their functions, and can be pickled.
    """
    lease = LeaseStatus("ann", None, 3, 1.5)
    assert type(lease).__init__ is OURS.__init__
    assert pickle.loads(pickle.dumps(lease)) == lease
