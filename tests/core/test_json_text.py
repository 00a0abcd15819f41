import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from genfed.core.errors import RecordError
from genfed.core.json_text import DEEPEST, read_json

LEAF: Any = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text() | st.text('[]{}",\\:')
ANY = st.recursive(LEAF, lambda inner: st.lists(inner) | st.dictionaries(st.text('[]{}",a'), inner), max_leaves=20)


@settings(max_examples=200, deadline=None)
@given(ANY, st.booleans())
def test_what_is_within_the_bounds_is_read(value: Any, ascii_only: bool) -> None:
    assert read_json(json.dumps(value, ensure_ascii=ascii_only)) == value


@settings(max_examples=200, deadline=None)
@given(st.text('[]{}",:1a\\ '))
def test_any_text_is_read_or_refused(text: str) -> None:
    try:
        expected = json.loads(text)
    except ValueError:
        with pytest.raises(RecordError, match=r"^not JSON"):
            read_json(text)
    else:
        assert read_json(text) == expected


@pytest.mark.parametrize("opens", ["[", '{"a":', '[{"]}":', '["[",['])
def test_depth_is_bounded_before_it_is_parsed(opens: str) -> None:
    for text in (opens * 100_000, opens * (DEEPEST + 1)):
        with pytest.raises(RecordError, match=r"^nested too deeply: more than 64 lists or tables"):
            read_json(text)
    assert read_json("[" * DEEPEST + "]" * DEEPEST)
    with pytest.raises(RecordError, match=r"^nested too deeply"):
        read_json("[" * (DEEPEST + 1) + "]" * (DEEPEST + 1))


def test_brackets_in_texts_do_not_count() -> None:
    for text in ("[" * 1000, '"' * 1000, "{[" * 1000 + '"', "\\[" * 1000, ",[" * 1000):
        assert read_json(json.dumps([text, {text: 1}]), most=10) == [text, {text: 1}]


def test_length_and_number_of_values_are_bounded() -> None:
    assert read_json("[1, [2], 3]", longest=11, most=5) == [1, [2], 3]
    with pytest.raises(RecordError, match=r"^longer than 10 characters"):
        read_json("[1, [2], 3]", longest=10)
    for text in ("[1, [2], 3]", "[[],[],[]]", '[{"a":1},{"b":2}]', "[1,1,1,1,1"):
        with pytest.raises(RecordError, match=r"^too large: it has more than 4 values"):
            read_json(text, most=4)


@pytest.mark.parametrize("text", ["", "nul", "[1", "1" * 5000, "[]]", '"\\', "\udcff"])
def test_what_is_not_json_is_refused(text: str) -> None:
    with pytest.raises(RecordError, match=r"^not JSON"):
        read_json(text)
