"""A tiny random model of the transformers library, and what to ask a language model."""

import tokenizers
import transformers
from tokenizers import pre_tokenizers

SHOTS = "Answer yes or no.\n\nIs fire hot? yes\nIs ice hot? no\nIs snow cold? yes\n\n"
QUESTIONS = [
    f"{SHOTS}Thing: {thing}. Is it {what}?"
    for thing in ("snow", "fire")
    for what in ("cold", "cold now", "hot")
]
LIST = "Fruit:\n\n- apple\n- pear\n- plum\n\nAnimals:\n\n- dog\n- cat\n-"
SPECIAL = ["<s>", "</s>"]
MERGES = [
    ("Ġ", "y"),
    ("Ġy", "e"),
    ("Ġye", "s"),
    ("Ġ", "n"),
    ("Ġn", "o"),
    ("y", "e"),
    ("ye", "s"),
    ("n", "o"),
]
SIZES = {
    "vocab_size": len(SPECIAL) + 256 + len(MERGES),
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "initializer_range": 0.3,
    "bos_token_id": 0,
    "eos_token_id": 1,
}


def make_tiny(folder):
    """Save a tiny random model in a folder; return the folder."""
    return save_tiny(folder, transformers.LlamaConfig(**SIZES))


def save_tiny(folder, config):
    """Save a random model of a configuration, with a tokenizer, in a folder; return the folder."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = [*SPECIAL, *letters, *(first + second for first, second in MERGES)]
    tokenizer = tokenizers.Tokenizer(
        tokenizers.models.BPE({word: i for i, word in enumerate(words)}, MERGES)
    )
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>"
    ).save_pretrained(folder)
    import torch

    torch.manual_seed(0)
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    return folder
