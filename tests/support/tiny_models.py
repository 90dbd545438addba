"""Tiny models with random weights and a byte-level tokenizer, in the format of Hugging Face."""

import json
import shutil

import torch
from tokenizers import (
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
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


PIECES = ["the import of the value of the list", "the list of the import", "a value in the list"]


def sentencepiece(style):
    """A tokenizer of Llama 2's kind, which puts a space in front of what it reads.

    With `prepend` the normalizer does it, as in the files of Llama 2 and Phi-3; with `always` the
    pre-tokenizer, as transformers makes Llama's and Mistral's.
    """
    special = ["<unk>", "<s>", "</s>"]
    trained = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    trained.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    bytes_ = [f"<0x{byte:02X}>" for byte in range(256)]
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=special + bytes_, show_progress=False
    )
    trained.train_from_iterator(PIECES * 4, trainer)
    made = Tokenizer(trained.model)
    if style == "prepend":
        steps = [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
        made.normalizer = normalizers.Sequence(steps)
    else:
        made.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=style, split=False)
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    made.decoder = decoders.Sequence([*steps, decoders.Strip(" ", 1, 0)])
    made.add_special_tokens(special)
    return PreTrainedTokenizerFast(
        tokenizer_object=made, bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )


TOKENIZERS = {
    "byte-level": tokenizer,
    "prepend": lambda: sentencepiece("prepend"),
    "always": lambda: sentencepiece("always"),
}


def save_llama(folder, kind):
    """A Llama of 64 tokens with one of `TOKENIZERS`, which adds the start token when asked to."""
    made = TOKENIZERS[kind]()
    start, number = made.bos_token, made.bos_token_id
    made.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single=[start, "$A"], special_tokens=[(start, number)]
    )
    torch.manual_seed(0)
    sizes = SIZES | {"max_position_embeddings": 64, "bos_token_id": number}
    sizes |= {"eos_token_id": made.eos_token_id, "initializer_range": 0.3}
    config = LlamaConfig(vocab_size=len(made), **sizes)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    made.save_pretrained(folder)
    return folder


def save(folder, kind="gpt2"):
    """A folder that `LanguageModel.from_pretrained` opens."""
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config((CONFIGS | MORE)[kind]).save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return folder


TOOLS_TEMPLATE = (  # after Qwen2.5's
    "{% if tools %}Tools:{% for tool in tools %}{{ tool.function.name }} {% endfor %}"
    "{# <tool_call> #}{% endif %}"
    "{% for m in messages %}<|endoftext|>{{ m.role }} {{ m.content }}"
    "{% for call in m.tool_calls %}{{ call.function.name }}{{ call.function.arguments | tojson }}"
    "{% endfor %}{% endfor %}<|endoftext|>"
)


def with_tools(source, folder):
    """A copy of a saved model with a chat template for tools and a longer context."""
    shutil.copytree(source, folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"max_position_embeddings": 512}))
    (folder / "chat_template.jinja").write_text(TOOLS_TEMPLATE)
    return folder
