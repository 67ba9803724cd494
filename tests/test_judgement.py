"""Judgement of where things belong: grades by hand, groups, a store from end to end."""

import dataclasses
import hashlib
import itertools
import json
import re

import numpy as np
import pytest

from benchmarks import judgement
from goals.asking import Asker
from goals.pairs import PairsForm
from goals.store import Store
from lab.errors import UserError
from tests.helpers.scripted_model import ScriptedModel, last_line
from worlds.housekeep.truth import read_twc
from worlds.housekeep.world import Housekeep, reference_things

SCORES = np.array([[3.0, 1.0, 0.0], [1.0, 2.0, 0.5]])
RIGHT = np.array([[1, 0, 0], [0, 0, 1]], bool)
SAID = np.array([[1, 1, 0], [0, 0, 1]], bool)


def test_grades_by_hand():
    figures = judgement.grade(SCORES, SAID, RIGHT)
    # The pair of score 3 beats all four wrong ones, that of .5 one of them.
    assert figures["auc"] == pytest.approx(5 / 8)
    assert figures["accuracy"] == pytest.approx(5 / 6)
    assert (figures["precision"], figures["recall"]) == pytest.approx((2 / 3, 1.0))
    assert figures["f1"] == pytest.approx(4 / 5)
    assert figures["first_two"] == 0.5
    assert set(figures) == set(judgement.FIGURES) and figures["auc_error"] > 0


def test_auc_is_the_share_of_pairs_of_pairs():
    rng = np.random.default_rng(0)
    scores, right = rng.integers(5, size=(6, 4)).astype(float), rng.random((6, 4)) < 0.3
    wins = [
        (good > bad) + (good == bad) / 2
        for good, bad in itertools.product(scores[right], scores[~right])
    ]
    assert judgement.auc(scores, right) == pytest.approx(np.mean(wins))
    assert np.isnan(judgement.auc(scores, np.zeros_like(right)))


def test_saying_no_to_all_has_no_precision():
    figures = judgement.grade(SCORES, np.zeros_like(SAID), RIGHT)
    assert np.isnan(figures["precision"]) and figures["recall"] == figures["f1"] == 0.0


def test_the_best_threshold_lies_between_two_scores():
    assert judgement.best_threshold(SCORES, RIGHT) == pytest.approx(2.5)
    # Equal scores are taken together: here all, or none.
    assert judgement.best_threshold(np.ones((2, 2)), np.eye(2, dtype=bool)) < 1
    rng = np.random.default_rng(1)
    scores, right = rng.integers(9, size=(6, 4)).astype(float), rng.random((6, 4)) < 0.3
    best = judgement.grade(scores, scores > judgement.best_threshold(scores, right), right)["f1"]
    others = [judgement.grade(scores, scores > value - 0.5, right)["f1"] for value in range(9)]
    assert best == pytest.approx(max(others))


@pytest.fixture(scope="module")
def bench():
    return judgement.Bench(Housekeep(), read_twc(), "test", 10)


def test_things_are_judged_some_at_a_time_beside_the_references(bench):
    asked = []

    def judge(things):
        asked.append(tuple(things))
        return np.full((len(things), 2), float(len(asked)))

    things = bench.objects("test")[:13]
    scores = bench.judge(judge, things)
    references = reference_things(bench.truth)
    assert asked == [(*things[:10], *references), (*things[10:], *references)]
    assert scores[:, 0].tolist() == [1.0] * 10 + [2.0] * 3


class Knowing(ScriptedModel):
    """Know where all things belong."""

    def __init__(self):
        truth = read_twc()
        where = zip(truth.objects, truth.belongs, strict=True)
        self.right = {name: {truth.places[i] for i in np.flatnonzero(row)} for name, row in where}
        super().__init__(likelihood=self.likely)

    def likely(self, prompt, candidate):
        named = re.findall("[Tt]he (.+?) (?:goes|is) ", last_line(prompt))
        pairs = itertools.permutations([*named, candidate.strip()])
        return 4.0 * any(
            place in self.right.get(thing, ()) for thing, *rest in pairs for place in rest
        )


class Encoder:
    """Embed a text as a unit vector of its own."""

    def encode(self, texts):
        digits = [hashlib.sha256(text.encode()).digest() for text in texts]
        vectors = np.array([list(digest) for digest in digits], np.float32) - 127.5
        return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def test_a_store_is_graded_from_end_to_end(bench, tmp_path, monkeypatch):
    monkeypatch.setattr(judgement, "load_sentence_encoder", lambda name: Encoder())
    args = judgement.Args(stores=(tmp_path / "store.sqlite",), out=tmp_path / "out.json")
    things = bench.objects("test")[::10]
    with Store(args.stores[0]) as store:
        form = PairsForm(bench.world)
        asker = Asker("knowing@0", store, Knowing())
        form.judge(asker.answers, [*things, *reference_things(bench.truth)])
    results = judgement.main(args)
    assert json.loads(args.out.read_text())["models"].keys() == {"knowing@0, recipe"}
    row = results["models"]["knowing@0, recipe"]
    assert row["num_objects"] == len(things) == 13
    assert row["auc"] > 0.99 and row["first_two"] == 1.0 and row["best_threshold"] is None
    assert sum(part["num_objects"] for part in row["by_category"].values()) == 13
    similarity, prior, alike = results["references"].values()
    assert prior["num_objects"] == similarity["num_objects"] == alike["num_objects"] == 125
    assert prior["auc"] > 0.8 and 0.3 < similarity["auc"] < 0.7
    with pytest.raises(UserError, match=f"^--out {tmp_path} is a folder"):
        judgement.main(dataclasses.replace(args, out=tmp_path))
    valid = dataclasses.replace(args, split="valid")
    with pytest.raises(UserError, match=r"no answers about the valid objects: record") as caught:
        judgement.main(valid)
    assert "\n" not in str(caught.value)
