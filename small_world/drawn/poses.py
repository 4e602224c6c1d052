"""Poses: where hands, feet and the body are for each action, in units of a character's height."""

from dataclasses import dataclass
from random import Random

from .pen import Point


@dataclass(frozen=True)
class Pose:
    """Elbow and hand of each arm from its shoulder, knee and foot of each leg from its hip; the body's lift, lean."""

    arms: tuple[tuple[Point, Point], tuple[Point, Point]]
    legs: tuple[tuple[Point, Point], tuple[Point, Point]]
    lift: float = 0.0
    lean: float = 0.0
    balloon: bool = False


DOWN = ((-0.06, -0.09), (-0.07, -0.19)), ((0.06, -0.09), (0.07, -0.19))
STRAIGHT = ((-0.01, -0.10), (-0.02, -0.20)), ((0.01, -0.10), (0.02, -0.20))
UP_RIGHT = ((0.10, 0.02), (0.15, 0.16))

POSES = {
    "standing": Pose(DOWN, STRAIGHT),
    "waving": Pose((DOWN[0], UP_RIGHT), STRAIGHT),
    "jumping": Pose(
        (((-0.10, 0.03), (-0.16, 0.15)), UP_RIGHT),
        (((-0.09, -0.05), (-0.10, -0.15)), ((0.09, -0.05), (0.10, -0.15))),
        lift=0.13,
    ),
    "sitting": Pose(DOWN, (((-0.10, -0.02), (-0.19, -0.05)), ((0.10, -0.02), (0.19, -0.05))), lift=-0.13),
    "running": Pose(
        (((-0.10, -0.02), (-0.17, 0.05)), ((0.09, -0.05), (0.17, -0.02))),
        (((-0.07, -0.09), (-0.20, -0.10)), ((0.09, -0.05), (0.10, -0.18))),
        lift=0.02,
        lean=0.04,
    ),
    "holding a balloon": Pose((DOWN[0], ((0.09, -0.02), (0.15, 0.06))), STRAIGHT, balloon=True),
}
ACTIONS = tuple(POSES)
REFERENCE_ACTIONS = tuple(action for action, pose in POSES.items() if not pose.balloon)


def sample_pose(random: Random, action: str) -> Pose:
    """The action's pose, moved a little and mirrored half of the time."""
    pose = POSES[action]
    arms, legs = (
        tuple(tuple(_moved(random, joint) for joint in limb) for limb in limbs) for limbs in (pose.arms, pose.legs)
    )
    moved = Pose(arms, legs, pose.lift, pose.lean, pose.balloon)
    return mirrored(moved) if random.random() < 0.5 else moved


def mirrored(pose: Pose) -> Pose:
    """The pose seen in a mirror: left and right change places."""
    arms, legs = (tuple(tuple((-x, y) for x, y in limb) for limb in limbs[::-1]) for limbs in (pose.arms, pose.legs))
    return Pose(arms, legs, pose.lift, -pose.lean, pose.balloon)


def _moved(random: Random, point: Point) -> Point:
    return point[0] + random.uniform(-0.012, 0.012), point[1] + random.uniform(-0.012, 0.012)
