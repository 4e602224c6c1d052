"""A short soak of the live server, of the kind that tools/soak.py runs for long, and what it would notice."""

import io
from pathlib import Path

import folder_paths
import pytest
from PIL import Image

from soak import GIVE_BACK, soak_alone
from soak_memory import trend
from soak_pictures import look

JOBS = 60


@pytest.mark.live
def test_mixed_cancelled_and_malformed_workflows_are_all_answered(monkeypatch):
    """In a server that has done nothing else, so that memory is that of these jobs."""
    for name, value in {**GIVE_BACK, "OMP_NUM_THREADS": "1"}.items():
        monkeypatch.setenv(name, value)
    figures = soak_alone(Path(folder_paths.base_path), JOBS)
    assert not figures.lost
    assert not figures.wrong
    assert figures.plain_is_the_same
    assert sum(figures.answers.values()) == JOBS
    assert all(figures.answers[answer] for answer in ("ok", "cancelled", "refused"))
    assert figures.memory_change < 0.02
    ((jobs, freed),) = figures.settled
    assert jobs == JOBS and 0 < freed < figures.memory_last


def png(picture: Image.Image) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return buffer.getvalue()


def test_a_picture_of_one_colour_of_another_size_or_of_another_run_is_wrong():
    latent = {"width": 64, "height": 72, "batch_size": 1}
    files = [png(Image.effect_noise((64, 72), 50)) for _ in range(2)]
    first = look(files[:1], latent, None)
    assert look(files[:1], latent, first) == first
    for given, problem in ((files[1:], "than the first time"), (files, "not 1 of"), ([], "not 1 of")):
        with pytest.raises(ValueError, match=problem):
            look(given, latent, first)
    with pytest.raises(ValueError, match="one colour"):
        look([png(Image.new("RGB", (64, 72)))], latent, None)


def test_the_trend_is_a_leaks_and_no_single_jump():
    steady = [(jobs, 900.0 + 40 * (jobs == 120)) for jobs in range(60, 300, 20)]
    assert trend(steady) == 0
    assert trend([(jobs, held + 0.05 * jobs) for jobs, held in steady]) == pytest.approx(5)
