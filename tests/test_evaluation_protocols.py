"""The protocols of several subjects, on made vectors and tables whose value is known by hand."""

import math

import numpy as np
import pytest
import torch

from mmdiff_model.evaluation.boxes import best_boxes, caption_of, class_words, square_crop
from mmdiff_model.evaluation.figures import face_inside, mean_copy_paste, mean_cosine, tell_apart
from mmdiff_model.evaluation.matching import FaceMatcher, face_cosines, greedy_match, match_faces
from mmdiff_model.evaluation.protocols import (
    copy_paste,
    hungarian_match,
    is_swapped,
    multi_id,
    xverse_id,
    xverse_ip,
)
from mmdiff_model.evaluation.report import Report, Score, SwapMatrix

BOX = (0.0, 0.0, 8.0, 8.0)


def at(degrees: float) -> np.ndarray:
    """The unit vector of an angle."""
    return np.array([math.cos(math.radians(degrees)), math.sin(math.radians(degrees))])


# greedy takes 0.9 first and is left with 0.1; the Hungarian sum 0.8 + 0.7 beats 0.9 + 0.1
TABLE = np.array([[0.9, 0.8], [0.7, 0.1]])


def test_fastcomposers_minimum_and_multiids_mean_differ_where_greedy_is_not_best():
    assert greedy_match(TABLE) == [0, 1] and hungarian_match(TABLE) == [1, 0]
    assert match_faces(TABLE, [BOX, BOX]).minimum == pytest.approx(0.1)
    assert multi_id(TABLE) == pytest.approx((0.7 + 0.8) / 2)


@pytest.mark.parametrize("faces", [0, 1, 3])
def test_multiid_skips_another_number_of_faces(faces):
    assert multi_id(np.full((faces, 2), 0.5)) is None


def test_multiid_keeps_what_is_below_zero_and_fastcomposer_does_not():
    table = np.array([[-0.2, -0.9], [-0.9, 0.6]])
    assert multi_id(table) == pytest.approx(0.2)
    assert match_faces(table, [BOX, BOX]).similarities == (0.0, pytest.approx(0.6))


def test_xverse_id_lets_one_face_serve_two_subjects():
    assert xverse_id(TABLE) == pytest.approx((0.9 + 0.8) / 2)
    assert xverse_id(np.array([[0.4, 0.3]])) == pytest.approx(0.35)
    assert xverse_id(np.zeros((0, 2))) == 0


def test_xverse_ip_takes_each_subjects_best_crop_and_zero_without():
    assert xverse_ip([[0.2, 0.6, 0.5], []]) == pytest.approx(0.3)
    assert xverse_ip([[0.2], [0.4, 0.3]]) == pytest.approx(0.3)


@pytest.mark.parametrize(("generated", "value"), [(0, 1.0), (60, -1.0), (30, 0.0), (45, -0.5), (-30, 1.0), (90, -1.0)])
def test_copy_paste_by_angles(generated, value):
    """The reference is at 0 degrees and the unseen photo at 60."""
    assert copy_paste(at(generated), at(60), at(0)[None]) == pytest.approx(value, abs=1e-6)


def test_copy_paste_takes_the_nearest_reference():
    references = np.stack([at(0), at(-90)])
    assert copy_paste(at(-90), at(60), references) == pytest.approx(1)


def test_copy_paste_of_a_picture_is_the_mean_over_the_matched():
    references = [at(0)[None], at(180)[None]]
    matcher = FaceMatcher(None, references, unseen=[at(60), at(120)])
    # the second face is the first subject's reference again, the first face the second subject's unseen photo
    vectors = np.stack([at(120), at(0)])
    assert mean_copy_paste(vectors, face_cosines(vectors, references), matcher) == pytest.approx((1 - 1) / 2, abs=1e-6)
    assert mean_copy_paste(vectors[:1], face_cosines(vectors[:1], references), matcher) is None


def test_face_cosines_are_means_over_a_subjects_photos():
    table = face_cosines(at(0)[None], [np.stack([at(60), at(0)]), at(90)[None]])
    assert table[0] == pytest.approx([0.75, 0])
    assert face_cosines(np.zeros((0, 2)), [at(0)[None]] * 2).shape == (0, 2)


def test_dreambenchs_score_is_the_mean_over_all_pairs():
    pictures = torch.tensor(np.stack([at(0), at(90)])).float()
    photos = torch.tensor(np.stack([at(0), at(60), at(90)])).float()
    values = [mean_cosine(picture, photos) for picture in pictures]
    assert values == pytest.approx(((1 + 0.5 + 0) / 3, (0 + math.sqrt(3) / 2 + 1) / 3))


# swaps


@pytest.mark.parametrize(
    ("table", "swapped"),
    [
        ([[0.9, 0.1], [0.1, 0.9]], False),
        ([[0.1, 0.9], [0.9, 0.1]], True),
        ([[0.5, 0.5], [0.5, 0.5]], False),
        ([[0.2, 0.3], [0.1, 0.9]], False),
        ([[0.1, 0.9, 0.1], [0.1, 0.1, 0.9], [0.9, 0.1, 0.1]], True),
    ],
    ids=["right", "swapped", "blended", "one row alone is not a swap", "three in a ring"],
)
def test_swap_by_hand(table, swapped):
    assert is_swapped(np.array(table)) is swapped


def test_swap_matrix_means_leave_out_what_was_not_found():
    swap = SwapMatrix(
        "DINO",
        ("dog", "cat"),
        ([[0.8, 0.2], [0.3, 0.7]], [[0.4, 0.6], [0.9, 0.1]], [[0.6, 0.4], None]),
    )
    assert swap.means == [pytest.approx([0.6, 0.4]), pytest.approx([0.6, 0.4])]
    assert swap.swapped == (1, 2)
    assert swap.table().endswith("Swapped in 1 of 2 pictures that show every word.")
    assert SwapMatrix("face", ("man", "woman"), ([None, [0.1, 0.2]],)).means[0] is None


def test_words_that_are_alike_cannot_show_a_swap():
    assert tell_apart(["dog", "cat"]) and not tell_apart(["woman", "woman"]) and not tell_apart(["dog"])


def test_face_inside_a_place():
    faces = [(0, 0, 10, 10), (20, 20, 60, 60), (24, 24, 30, 30)]
    assert face_inside(faces, [(15, 15, 80, 80), (0, 0, 12, 12)]) == 1
    assert face_inside(faces, [(90, 90, 99, 99)]) is None and face_inside(faces, []) is None


# boxes and crops


def test_boxes_are_the_surest_three_that_are_large_and_apart():
    boxes = torch.tensor(
        [
            [0.0, 0.0, 40.0, 40.0],
            [1.0, 1.0, 41.0, 41.0],  # the first again
            [50.0, 0.0, 90.0, 40.0],
            [50.0, 50.0, 120.0, 120.0],  # over the edge
            [0.0, 50.0, 40.0, 90.0],
            [0.0, 0.0, 4.0, 4.0],  # smaller than a 20th of the width, squared
            [60.0, 60.0, 61.0, 99.0],  # thinner than an 80th
        ]
    )
    scores = torch.tensor([0.5, 0.6, 0.4, 0.9, 0.3, 0.95, 0.95])
    found = best_boxes(boxes, scores, (100, 100))
    assert found == [(50, 50, 100, 100), (1, 1, 41, 41), (50, 0, 90, 40)]
    assert best_boxes(boxes, scores * 0.2, (100, 100)) == []


def test_crop_is_squared_on_white():
    picture = torch.zeros(10, 20, 3)
    crop = square_crop(picture, (2.0, 1.0, 8.0, 3.0))
    assert crop.shape == (6, 6, 3)
    assert (crop[2:4] == 0).all() and (crop[:2] == 1).all() and (crop[4:] == 1).all()


def test_words_stand_where_the_text_says():
    text, spans = caption_of(["Dog", "stuffed animal"])
    assert text == "dog. stuffed animal."
    assert [text[start:end] for start, end in spans] == ["dog", "stuffed animal"]


@pytest.mark.parametrize(
    ("words", "prompt", "found"),
    [
        ("", "a man<|subj|> and a (woman<|subj|>:1.2) dancing", ["man", "woman"]),
        ("dog, stuffed animal.", "no trigger", ["dog", "stuffed animal"]),
        ("dog; stuffed  animal", "no trigger", ["dog", "stuffed animal"]),
        ("dog\nstuffed animal\n", "no trigger", ["dog", "stuffed animal"]),
        ("", "a ((cat))<|subj|> and a woman <|subj|>", ["cat", "woman"]),
    ],
)
def test_class_words(words, prompt, found):
    assert class_words(words, prompt, 2) == found


@pytest.mark.parametrize(
    ("words", "prompt"),
    [("dog", "a"), ("", "a dog<|subj|>"), ("dog,", "a"), ("", "a man<|subj:2|> and a woman<|subj:1|>"), ("", "")],
)
def test_missing_class_words_are_asked_for(words, prompt):
    with pytest.raises(ValueError, match="^words: box_model needs the class word of each of the 2 references"):
        class_words(words, prompt, 2)


# report


def test_means_are_over_the_measured_pictures():
    score = Score("MultiID", (0.2, None, 0.4))
    assert score.mean == pytest.approx(0.3) and score.interval == (0.2, 0.4)
    assert Score("MultiID", (None, None)).mean is None and Score("MultiID", (None, 0.3)).interval is None


def test_intervals_of_many_pictures_are_those_of_one_table(monkeypatch):
    from mmdiff_model.evaluation import report

    values = tuple(np.random.default_rng(1).normal(0.5, 0.1, 40))
    whole = Score("DINO", values).interval
    monkeypatch.setattr(report, "PICKS", 40 * 300)
    assert Score("DINO", values).interval == whole


def test_protocols_have_a_table_of_their_own():
    protocols = (Score("face count", (1.0, 0.0)), Score("MultiID", (0.6, None)), Score("copy-paste", (None, None)))
    table = Report("", (1, 1), {}, (Score("face minimum", (0.6, 0.0)),), protocols=protocols).table()
    assert "| face count | 0.500 | 0.000 to 1.000 |   2 of 2 |" in table
    assert "| MultiID    | 0.600 |    one picture |   1 of 2 |" in table
    assert "| copy-paste |     - |              - |   0 of 2 |" in table
