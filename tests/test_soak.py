"""A short soak of the live server, of the kind that tools/soak.py runs for long."""

import pytest

from soak import soak

pytest_plugins = ["live_fixtures"]
pytestmark = pytest.mark.live

JOBS = 60


def test_mixed_cancelled_and_malformed_workflows_are_all_answered(server, photos):
    figures = soak(server, photos[0], JOBS)
    assert not figures.lost
    assert not figures.wrong
    assert figures.plain_is_the_same
    assert sum(figures.answers.values()) == JOBS
    assert all(figures.answers[answer] for answer in ("ok", "cancelled", "refused"))
    assert figures.memory_change < 0.02
