"""Class words: where they stand in captions, and which boxes are kept for them, as the released tool does it."""

import pytest

from mmdiff_model.annotation.words import (
    MANY,
    NO_BOX,
    UNEQUAL,
    UNNAMED,
    Box,
    Rejected,
    choose,
    find_words,
    is_subject,
    keep_apart,
    parse_words,
    place_words,
    write_caption,
)

LEFT, RIGHT, MIDDLE = (0.0, 0.0, 40.0, 90.0), (60.0, 0.0, 99.0, 90.0), (45.0, 0.0, 55.0, 20.0)


def found(caption: str, words: str) -> list[str]:
    places = find_words(caption, parse_words(words))
    assert all(caption[place.start : place.end] == place.text for place in places)
    return [f"{place.start}:{place.text}" for place in places]


@pytest.mark.parametrize(
    ("caption", "words", "expected"),
    [
        ("a dog and a cat on a sofa", "dog, cat", ["2:dog", "12:cat"]),
        ("a cat, a dog", "dog, cat", ["2:cat", "9:dog"]),
        ("A Dog's bowl", "dog", ["2:Dog"]),
        ("dogs, hotdog, dog-house and bulldog", "dog", []),
        ("two dogs and a dog", "dogs, dog", ["15:dog"]),
        ("Many  dogs", "dogs", []),
        ("a hot dog beside a dog", "dog, hot dog", ["2:hot dog", "19:dog"]),
        ("a woman and a woman", "woman", ["2:woman", "14:woman"]),
        ("a dog", "", []),
        ("a caf\u00e9 (new) by a t-shirt", "caf\u00e9, t-shirt, .", ["2:caf\u00e9", "18:t-shirt"]),
        ("", "dog", []),
    ],
)
def test_words_are_found_where_they_stand(caption, words, expected):
    assert found(caption, words) == expected


def test_a_list_of_words_is_read_as_people_write_it():
    assert parse_words(" dog,  hot   dog;cat\nDog, ,.") == ("Dog", "hot dog", "cat")
    assert parse_words("  ") == ()


@pytest.mark.parametrize(("chunk", "kept"), [("a dog", True), ("a man running", False), ("a ring bearer", True)])
def test_chunks_that_end_in_ing_name_no_subject(chunk, kept):
    assert is_subject(chunk) is kept


def test_a_written_caption_holds_its_words():
    assert write_caption(["dog"]) == "a photo of a dog"
    assert write_caption(["owl", "cat"]) == "a photo of an owl and a cat"


def test_boxes_that_overlap_or_count_are_dropped():
    nearly = (1.0, 0.0, 42.0, 91.0)
    boxes = [Box("dog", nearly, 0.5), Box("cat", LEFT, 0.9), Box("two dogs", RIGHT, 0.9), Box(". ,", MIDDLE, 0.9)]
    assert keep_apart(boxes) == [boxes[1]]
    assert keep_apart([]) == []


def pairs(caption: str, words: str, *boxes: Box) -> list[tuple[int, tuple]]:
    return [(phrase.start, box.edges) for phrase, box in choose(find_words(caption, parse_words(words)), boxes)]


def test_boxes_go_to_their_words():
    assert pairs("a dog and a cat", "dog, cat", Box("cat", LEFT, 1), Box("dog", RIGHT, 1)) == [(2, RIGHT), (12, LEFT)]
    assert pairs("a T-shirt", "t-shirt", Box("t - shirt", LEFT, 1)) == [(2, LEFT)]


def test_one_of_two_boxes_may_be_of_no_word():
    assert pairs("a dog and a sofa", "dog", Box("sofa", LEFT, 1), Box("dog", RIGHT, 1)) == [(2, RIGHT)]


def test_two_of_one_word_take_its_places_from_left_to_right():
    women = Box("woman", RIGHT, 0.9), Box("woman", LEFT, 0.5)
    assert pairs("a woman and a woman", "woman", *women) == [(2, LEFT), (14, RIGHT)]


@pytest.mark.parametrize(
    ("caption", "labels", "reason"),
    [
        ("a dog", [], NO_BOX),
        ("a dog and a cat", ["dog", "cat", "sofa"], MANY),
        ("a dog", ["dog cat"], UNNAMED),
        ("a dog and a cat", ["dog", "dog"], UNEQUAL),
        ("a dog, a dog and a dog", ["dog", "dog"], UNEQUAL),
    ],
)
def test_pictures_are_rejected_for_a_reason(caption, labels, reason):
    boxes = [Box(label, edges, 1) for label, edges in zip(labels, (LEFT, RIGHT, MIDDLE), strict=False)]
    with pytest.raises(Rejected) as caught:
        pairs(caption, "dog, cat", *boxes)
    assert caught.value.reason == reason


def test_words_of_masks_take_the_next_place():
    assert [place.start for place in place_words("a woman and a Woman", ["woman", "woman"])] == [2, 14]
    assert [place.start for place in place_words("a cat and a dog", ["dog", "cat"])] == [12, 2]


@pytest.mark.parametrize(
    ("caption", "words", "problem"),
    [
        ("two dogs", ["dog"], "'dog' does not stand in"),
        ("a woman", ["woman", "woman"], "'woman' does not stand once more in"),
    ],
)
def test_words_of_masks_that_the_caption_lacks_are_named(caption, words, problem):
    with pytest.raises(ValueError, match=f'caption: {problem} "{caption}"'):
        place_words(caption, words)
