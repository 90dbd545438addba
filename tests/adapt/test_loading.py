"""Checkpoints that do not hold the whole network are refused: nothing runs with random weights."""

import json
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from support import tiny_models

from whet.adapt.checkpoints.processor import (
    computes_correctly,
    default_device,
    fast_dtype,
    fastest_threads,
    usable_cpus,
)
from whet.adapt.config import LoRA
from whet.adapt.model import LanguageModel
from whet.adapt.session import adapted
from whet.adapt.tuners.lora import linear_layers
from whet.embed.hidden_states import HiddenStates
from whet.errors import ModelError

SMALL = {"vocab_size": 257, "max_position_embeddings": 32, "bos_token_id": 256, "eos_token_id": 256}


def save(folder, network):
    network.save_pretrained(folder)
    tiny_models.tokenizer().save_pretrained(folder)
    return folder


def change_weights(folder, change):
    """Replace the tensors of a saved model by `change` of them."""
    path = folder / "model.safetensors"
    save_file(change(load_file(path)), path, {"format": "pt"})


def bart():
    sizes = {"d_model": 16, "encoder_layers": 1, "decoder_layers": 1, "pad_token_id": 0}
    heads = {"encoder_attention_heads": 2, "decoder_attention_heads": 2}
    return transformers.BartConfig(**SMALL | sizes | heads)


def bert():
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    return transformers.BertConfig(**SMALL | sizes, intermediate_size=16)


def test_a_checkpoint_without_output_head_is_refused(tmp_path):
    config = tiny_models.CONFIGS["llama"]
    save(tmp_path, transformers.LlamaModel(config))
    with pytest.raises(ModelError, match=r"lacks weights of a causal .*: lm_head\.weight\. They"):
        LanguageModel.from_pretrained(tmp_path)


@pytest.mark.parametrize("kind", list(tiny_models.CONFIGS))
def test_any_missing_weight_is_named(tmp_path, kind):
    tiny_models.save(tmp_path, kind)
    missing = sorted(load_file(tmp_path / "model.safetensors"))[3]
    change_weights(tmp_path, lambda weights: {n: w for n, w in weights.items() if n != missing})
    with pytest.raises(ModelError, match=missing.replace(".", r"\.")):
        LanguageModel.from_pretrained(tmp_path)


def test_a_long_list_of_missing_weights_is_shortened(tmp_path):
    tiny_models.save(tmp_path, "llama")
    change_weights(tmp_path, lambda weights: {f"wrapped.{n}": w for n, w in weights.items()})
    with pytest.raises(ModelError, match=r"lm_head\.weight, .* and \d+ more"):
        LanguageModel.from_pretrained(tmp_path)


def test_a_weight_of_another_size_is_refused(tmp_path):
    tiny_models.save(tmp_path, "llama")
    name = "model.layers.0.mlp.down_proj.weight"
    change_weights(tmp_path, lambda weights: weights | {name: weights[name][:, :-1].contiguous()})
    with pytest.raises(ModelError, match="cannot load model|down_proj"):
        LanguageModel.from_pretrained(tmp_path)


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "model.safetensors"])
def test_a_part_that_a_folder_lacks_is_named(tmp_path, name):
    tiny_models.save(tmp_path, "llama")
    (tmp_path / name).unlink()
    with pytest.raises(ModelError, match=f"the folder has no .*{name}"):
        LanguageModel.from_pretrained(tmp_path)


def test_weights_that_are_cut_off_are_called_damaged(tmp_path):
    tiny_models.save(tmp_path, "llama")
    file = tmp_path / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(ModelError, match="damaged or incomplete"):
        LanguageModel.from_pretrained(tmp_path)


def test_an_encoder_decoder_is_not_loaded_as_its_decoder(tmp_path):
    network = transformers.BartForConditionalGeneration(bart())
    save(tmp_path, network)
    with pytest.raises(ModelError, match=r"model\.decoder\.embed_tokens\.weight"):
        LanguageModel.from_pretrained(tmp_path)
    embedding = network.model.shared.weight.detach().clone()
    tied = {"model.decoder.embed_tokens.weight": embedding, "lm_head.weight": embedding.clone()}
    change_weights(tmp_path, lambda weights: weights | tied)
    with pytest.raises(ModelError, match="is an encoder-decoder: expected a causal"):
        LanguageModel.from_pretrained(tmp_path)


def test_an_encoder_that_reads_later_tokens_is_refused(tmp_path):
    torch.manual_seed(0)
    save(tmp_path, transformers.BertForMaskedLM(bert()))
    with pytest.raises(ModelError, match="not those of its output layer|from those after it"):
        LanguageModel.from_pretrained(tmp_path)


def test_a_network_that_reads_later_tokens_is_refused(tmp_path):
    loaded = LanguageModel.from_pretrained(tiny_models.save(tmp_path, "llama"))
    trunk = loaded.hf_model.base_model
    causal = trunk.forward

    def forward(input_ids, **options):
        output = causal(input_ids=input_ids, **options)
        output.last_hidden_state = output.last_hidden_state.mean(1, True).expand(
            output.last_hidden_state.shape
        )
        return output

    trunk.forward = forward
    with pytest.raises(ModelError, match="predicts a token from those after it"):
        LanguageModel(loaded.hf_model, loaded.tokenizer, "ahead")


def test_a_gpu_that_computes_wrongly_is_not_chosen():
    assert computes_correctly("cpu") and not computes_correctly("meta")  # meta computes nothing
    assert default_device() == ("cuda" if torch.cuda.is_available() else "cpu")


def test_an_encoder_without_its_pooler_embeds(tmp_path):
    torch.manual_seed(0)
    save(tmp_path, transformers.BertForMaskedLM(bert()))
    assert HiddenStates(str(tmp_path)).encode(["some text"]).shape == (1, 16)
    change_weights(
        tmp_path, lambda weights: {n: w for n, w in weights.items() if "layer.0" not in n}
    )
    with pytest.raises(ModelError, match=r"encoder\.layer\.0"):
        HiddenStates(str(tmp_path))


VISION = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1,
          "num_attention_heads": 2, "image_size": 28, "patch_size": 14}  # fmt: skip
TEXT = {"vocab_size": 257, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2,
        "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 8,
        "max_position_embeddings": 32, "sliding_window": 16}  # fmt: skip


def multimodal(kind):
    common = {"text_config": TEXT | {"bos_token_id": 256, "eos_token_id": 256}}
    if kind == "gemma3":
        return transformers.Gemma3Config(
            **common, vision_config=VISION, mm_tokens_per_image=4, image_token_index=250,
            boi_token_index=251, eoi_token_index=252, initializer_range=0.3,
        )  # fmt: skip
    text = common["text_config"] | {"model_type": "mistral"}
    vision = VISION | {"model_type": "pixtral", "head_dim": 8}
    return transformers.Mistral3Config(
        text_config=text, vision_config=vision, image_token_index=250, spatial_merge_size=2
    )


@pytest.mark.parametrize("kind", ["gemma3", "mistral3"])
def test_the_text_model_in_a_multimodal_one_is_loaded(tmp_path, kind):
    torch.manual_seed(0)
    full = transformers.AutoModelForImageTextToText.from_config(multimodal(kind)).eval()
    save(tmp_path, full)
    model = LanguageModel.from_pretrained(tmp_path, device="cpu")
    ids = torch.arange(12)[None]
    with torch.no_grad():
        expected = full(input_ids=ids).logits
        torch.testing.assert_close(model.hf_model(input_ids=ids).logits, expected)
    assert len(linear_layers(model.hf_model)) == 7 * 2
    with adapted(model, LoRA(r=2, lora_alpha=2, lr=1e-2)) as session:
        assert session.step("some text") > session.step("some text")
    change_weights(tmp_path, lambda ws: {n: w for n, w in ws.items() if "vision" not in n})
    assert LanguageModel.from_pretrained(tmp_path).fingerprint == model.fingerprint
    change_weights(tmp_path, lambda ws: {n: w for n, w in ws.items() if "down_proj" not in n})
    with pytest.raises(ModelError, match=r"lacks weights .*down_proj"):
        LanguageModel.from_pretrained(tmp_path)


UNBOUNDED = {
    "bloom": transformers.BloomConfig(vocab_size=257, hidden_size=16, n_layer=1, n_head=2,
                                      bos_token_id=256, eos_token_id=256),
    "mamba": transformers.MambaConfig(vocab_size=257, hidden_size=16, num_hidden_layers=1,
                                      state_size=4, bos_token_id=256, eos_token_id=256),
}  # fmt: skip


@pytest.mark.parametrize("kind", list(UNBOUNDED))
def test_a_network_without_a_limit_needs_max_length(tmp_path, kind):
    torch.manual_seed(0)
    save(tmp_path, transformers.AutoModelForCausalLM.from_config(UNBOUNDED[kind]))
    with pytest.raises(ModelError, match="no max_position_embeddings: set max_length"):
        LanguageModel.from_pretrained(tmp_path)
    model = LanguageModel.from_pretrained(tmp_path, max_length=24, device="cpu")
    assert model.share_weights().max_length == 24
    text = "a text that is longer than the context"
    before = model.score(text).bits
    with adapted(model, LoRA(r=2, lr=1e-2)) as session:
        assert session.step("some text") > session.step("some text")
        if kind == "mamba":
            with pytest.raises(ModelError, match="no key-value cache, so it cannot generate"):
                session.generate("some", max_tokens=3)
        else:
            assert len(session.generate("some", max_tokens=3)) <= 3
    assert model.score(text).bits == before


def test_max_length_is_at_most_the_limit(tmp_path):
    mpt = transformers.MptConfig(vocab_size=257, d_model=16, n_layers=1, n_heads=2, max_seq_len=48)
    torch.manual_seed(0)
    save(tmp_path, transformers.AutoModelForCausalLM.from_config(mpt))
    assert LanguageModel.from_pretrained(tmp_path).max_length == 48
    assert LanguageModel.from_pretrained(tmp_path, max_length=16).max_length == 16
    with pytest.raises(ModelError, match=r"max_length is 49, but .* a context of 48: lower it"):
        LanguageModel.from_pretrained(tmp_path, max_length=49)
    for length in (0, 1, -5):
        with pytest.raises(ValueError, match="max_length is"):
            LanguageModel.from_pretrained(tmp_path, max_length=length)


def test_what_cannot_be_trained_is_named(tmp_path):
    tiny_models.save(tmp_path, "llama")
    path = tmp_path / "config.json"
    config = json.loads(path.read_text())
    for changes, message in (
        ({"quantization_config": {"quant_method": "gptq"}}, "quantized by gptq, .* a GGUF file"),
        ({"model_type": "llama99"}, "an architecture that transformers does not know"),
        (
            {"model_type": "siglip_vision_model"},
            "is a siglip_vision_model, not a causal .*vision towers",
        ),
    ):
        path.write_text(json.dumps(config | changes))
        with pytest.raises(ModelError, match=message):
            LanguageModel.from_pretrained(tmp_path)


@pytest.mark.parametrize(("limit", "cpus"), [("50000 100000", 1), ("max 100000", None), ("", None)])
def test_a_container_limits_the_threads(tmp_path, limit, cpus):
    (tmp_path / "cpu.max").write_text(limit)
    assert usable_cpus(tmp_path / "cpu.max") == (cpus or usable_cpus(tmp_path / "none"))
    assert usable_cpus(tmp_path / "none") >= 1


def test_the_precision_may_depend_on_the_processor(tmp_path):
    model = LanguageModel.from_pretrained(tiny_models.save(tmp_path), dtype="auto", device="cpu")
    assert model.hf_model.dtype == fast_dtype("cpu")
    assert fast_dtype("meta") == torch.float32  # a device that nothing is known about


@pytest.mark.parametrize(
    ("seconds", "threads"),
    [
        ({8: 1.0, 4: 1.9, 2: 3.8, 1: 7.5}, 8),
        ({8: 1.0, 4: 0.9, 2: 1.7, 1: 3.3}, 8),  # logical cores: within the noise
        ({8: 9.0, 4: 3.0, 2: 1.6, 1: 3.0}, 2),  # others use the machine, or a container limits it
        ({3: 1.0, 1: 0.5}, 1),
        ({1: 1.0}, 1),
    ],
)
def test_fewer_threads_are_used_where_they_are_clearly_faster(seconds, threads):
    assert fastest_threads(max(seconds), seconds.__getitem__) == threads


def test_models_are_loaded_by_many_threads_at_once():
    def tied(_):
        network = LanguageModel.from_pretrained("whet-pico", device="cpu").hf_model
        return network.get_input_embeddings().weight is network.get_output_embeddings().weight

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(tied, range(8)))
    assert tied(None)
