"""Scripts still come to the figures that tests.golden.record has recorded, up to rounding.

ELLM_GOLDEN_EXACT=1 asks for the same bits, as on the machine that figures.json names.
"""

import os

import pytest

from tests.golden.cases import all_cases, compare, read_figures, run_case

EXACT = os.environ.get("ELLM_GOLDEN_EXACT") == "1"
RECORDED = read_figures()
CASES = {case.full_name: case for case in all_cases()}


def test_every_script_is_among_the_cases():
    assert CASES.keys() >= RECORDED.keys() and len(CASES) == len(all_cases())
    assert {name.split("/")[0] for name in RECORDED} == {case.script for case in all_cases()}


@pytest.mark.slow
@pytest.mark.parametrize("name", RECORDED)
def test_run_comes_to_its_figures(monkeypatch, tmp_path, name):
    assert not compare(RECORDED[name], run_case(monkeypatch, CASES[name], tmp_path), EXACT)
