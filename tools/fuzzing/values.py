"""What several kinds are made of: texts that are no UTF-8, numbers that half precision lacks, changes of bytes."""

from __future__ import annotations

from hypothesis import strategies as st

ODD = ("\ud83d", "\udcff")  # half an emoji; a byte of a file's name that is no UTF-8, as Python reads it
LARGE = (65505.0, 1e30, 3e38, -3e38)


def any_text(most: int) -> st.SearchStrategy[str]:
    """Texts of at most so many signs, half of them with surrogates among the signs."""
    return st.one_of(
        st.text(max_size=most),
        st.text(st.one_of(st.characters(), st.sampled_from("a" * 6 + "".join(ODD))), max_size=most),
    )


places = st.one_of(st.floats(0, 1), st.floats(0, 0.02), st.floats(0.98, 1))
byte_changes = st.lists(
    st.one_of(
        st.tuples(st.just("flip"), places, st.integers(0, 7)),
        st.tuples(st.just("put"), places, st.binary(min_size=1, max_size=16)),
        st.tuples(st.just("insert"), places, st.binary(min_size=1, max_size=16)),
        st.tuples(st.just("zero"), places, st.integers(1, 64)),
        st.tuples(st.just("cut"), places, st.just(0)),
        st.tuples(st.just("double"), places, st.integers(1, 4096)),
        st.tuples(st.just("nothing"), places, st.just(0)),
    ),
    min_size=1,
    max_size=3,
)


def change(content: bytes, changes) -> bytes:
    """The content with changes of `byte_changes` made, one after the other."""
    data = bytearray(content)
    for kind, place, how in changes:
        at = int(place * max(0, len(data) - 1))
        if not data or kind == "nothing":
            continue
        if kind == "flip":
            data[at] ^= 1 << how
        elif kind == "put":
            data[at : at + len(how)] = how
        elif kind == "insert":
            data[at:at] = how
        elif kind == "zero":
            data[at : at + how] = bytes(min(how, len(data) - at))
        elif kind == "cut":
            del data[at:]
        elif kind == "double":
            data[at:at] = data[at : at + how]
    return bytes(data)
