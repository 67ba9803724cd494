"""Scores as a short text: nothing is lost but what is finer than a hundredth."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from goals.packing import pack_scores, unpack_scores

pytestmark = pytest.mark.filterwarnings("error")
ANY_TEXT = st.text(max_size=40) | st.text("AZaz09+/=", max_size=40)


def test_numbers_by_hand():
    # Hundredths, low byte first: -2.5 is -250, or 0x06 0xff; 1 is 0x64 0x00.
    assert pack_scores([-2.5, 1.0]) == "Bv9kAA=="
    assert unpack_scores("Bv9kAA==").tolist() == [-2.5, 1.0]
    assert pack_scores([]) == "" and unpack_scores("").shape == (0,)
    assert len(pack_scores(np.zeros(134))) < 400


@settings(deadline=None)
@given(st.lists(st.floats(width=64), max_size=30))
def test_scores_survive_packing(scores):
    found = unpack_scores(pack_scores(scores))
    assert found.dtype == np.float64 and found.shape == (len(scores),)
    for given_score, score in zip(scores, found, strict=True):
        if math.isnan(given_score):
            assert math.isnan(score)
        else:
            assert score == pytest.approx(min(max(given_score, -327.67), 327.67), abs=0.005 + 1e-9)


@settings(max_examples=300, deadline=None)
@given(ANY_TEXT)
def test_any_text_can_be_read(text):
    found = unpack_scores(text)
    assert found.ndim == 1 and not np.isinf(found).any()
    np.testing.assert_array_equal(unpack_scores(pack_scores(found)), found)


@pytest.mark.parametrize(
    "text",
    ["yes", "- eat cow go", '{"yes": -1, "no": -2}', "AA==", "A", "é", "\ud800", "AAAA\n", "AAAA"],
)
def test_other_texts_hold_no_scores(text):
    assert unpack_scores(text).shape == (0,)
