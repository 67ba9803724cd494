"""A run's vectors come from its recording and this machine, whatever else its store holds."""

import numpy as np
import pytest

from goals import embeddings
from goals.asking import Asker
from goals.embeddings import Embeddings
from goals.sentence_encoder import CARRIED_NAME, load_sentence_encoder
from goals.store import Store
from tests.helpers.table_model import TableModel

TEXTS = ["chop tree", "eat cow", "sleep"]


@pytest.fixture
def store(tmp_path):
    with Store(tmp_path / "store.sqlite") as store:
        yield store


@pytest.fixture(scope="module")
def encoder():
    return load_sentence_encoder(CARRIED_NAME)


@pytest.fixture(scope="module")
def computed(encoder):
    return encoder.encode(TEXTS)


def other_vectors(encoder, texts):
    """Unit vectors of these texts that are not the encoder's."""
    vectors = encoder.encode([f"not {text}" for text in texts])
    return dict(zip(texts, vectors, strict=True))


@pytest.mark.parametrize("stored_as", ["{name}", "{name},00000000"])
def test_vectors_that_others_left_in_the_store_are_not_taken(store, encoder, computed, stored_as):
    left = other_vectors(encoder, TEXTS)
    store.put_embeddings(stored_as.format(name=encoder.name), left)
    np.testing.assert_array_equal(Embeddings(CARRIED_NAME, store).embed(TEXTS), computed)


def test_what_is_recorded_counts_before_what_is_stored_or_computed(
    store, encoder, computed, tmp_path
):
    assert Embeddings(CARRIED_NAME, store).source == f"{encoder.name}, computed"
    Embeddings(CARRIED_NAME, store).embed(TEXTS)
    with Store(tmp_path / "recorded.sqlite") as recorded:
        said = other_vectors(encoder, TEXTS[:2])
        recorded.put_embeddings(encoder.name, said)
        found = Embeddings(CARRIED_NAME, store, recorded)
        expected = [*(said[text] for text in TEXTS[:2]), computed[2]]
        np.testing.assert_array_equal(found.embed(TEXTS), expected)
        assert found.source == f"{encoder.name}, recorded in recorded.sqlite, else computed"


def test_what_this_machine_computed_is_found_again_and_can_be_a_recording(
    store, computed, tmp_path, monkeypatch
):
    Embeddings(CARRIED_NAME, store).embed(TEXTS)
    asked = []

    def load(name):
        encoder = load_sentence_encoder(name)
        encode = encoder.encode
        encoder.encode = lambda texts: asked.extend(texts) or encode(texts)
        return encoder

    monkeypatch.setattr(embeddings, "load_sentence_encoder", load)
    np.testing.assert_array_equal(Embeddings(CARRIED_NAME, store).embed(TEXTS), computed)
    assert asked == [embeddings.PROBE]
    with Store(tmp_path / "new.sqlite") as new:
        as_recording = Embeddings(CARRIED_NAME, new, recorded=store)
        np.testing.assert_array_equal(as_recording.embed(TEXTS), computed)
        assert asked == [embeddings.PROBE] and not new.count()["embeddings"]


def test_recorded_answers_count_before_those_that_others_left_in_the_store(store, tmp_path):
    model, key = TableModel(), ("prompt", {})
    with Store(tmp_path / "recorded.sqlite") as recorded:
        recorded.put_answers(model.name, "prompt", "{}", {"a": "recorded"})
        store.put_answers(model.name, "prompt", "{}", {"a": "left", "b": "stored"})
        asker = Asker(model.name, store, recorded=recorded)
        assert asker.find(*key, ["a", "b"]) == {"a": "recorded", "b": "stored"}
