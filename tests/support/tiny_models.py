"""Tiny models with random weights and a byte-level tokenizer, in the format of Hugging Face."""

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    GemmaConfig,
    GPT2Config,
    LlamaConfig,
    Phi3Config,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen3Config,
)

SIZES = {
    "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24,
    "num_key_value_heads": 1, "max_position_embeddings": 32, "bos_token_id": 256, "eos_token_id":
    256,
}  # fmt: skip
CONFIGS = {
    "gpt2": GPT2Config(
        n_layer=2, n_embd=16, n_head=2, vocab_size=264, n_positions=32, bos_token_id=256,
        eos_token_id=256, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, initializer_range=0.3,
    ),
    "llama": LlamaConfig(vocab_size=257, **SIZES),
    "qwen2-tied": Qwen2Config(vocab_size=257, tie_word_embeddings=True, **SIZES),
}  # fmt: skip
MORE = {
    "phi3": Phi3Config(vocab_size=257, pad_token_id=256, **SIZES),
    "qwen3": Qwen3Config(vocab_size=257, head_dim=8, **SIZES),
    "gemma": GemmaConfig(vocab_size=257, head_dim=8, **SIZES),
}


def tokenizer():
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {letter: i for i, letter in enumerate(alphabet)} | {"<|endoftext|>": 256}
    byte_level = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    byte_level.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    byte_level.decoder = decoders.ByteLevel()
    byte_level.add_special_tokens(["<|endoftext|>"])
    return PreTrainedTokenizerFast(
        tokenizer_object=byte_level, bos_token="<|endoftext|>", eos_token="<|endoftext|>"
    )


def save(folder, kind="gpt2"):
    """A folder that `LanguageModel.from_pretrained` opens."""
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config((CONFIGS | MORE)[kind]).save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return folder
