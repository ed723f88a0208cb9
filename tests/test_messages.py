"Values in messages are short, and their quotes are closed."
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import blurlike
from blurlike.core.checks import brief, one_of


@given(st.one_of(st.text(max_size=300), st.lists(st.text(max_size=60)), st.binary(max_size=300), st.integers(),
                 st.dictionaries(st.text(), st.text(max_size=60))), st.integers(20, 90))
def test_a_value_is_short_and_closed(value, n):
    text,whole = brief(value, n),repr(value)
    assert len(text) <= n
    assert text==whole if len(whole) <= n else '...' in text
    if not isinstance(value, int): assert (text[0], text[-1]) in {(whole[0], whole[-1]), ('"', '"'), ("'", "'")}


def test_no_message_cuts_a_repr():
    files = [o for o in Path(blurlike.__file__).parent.rglob('*.py') if re.search(r'!r:\.\d', o.read_text())]
    assert files==[]


def test_messages_close_their_quotes(learn):
    with pytest.raises(ValueError, match=r"x='a+\.\.\.' must"): one_of('x', 'a'*200, ['b'])
    with pytest.raises(ValueError, match=r"\['a+\.\.\.]"): learn.hf_predict([['a'*200]])
