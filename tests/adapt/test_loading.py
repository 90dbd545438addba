"""Checkpoints that do not hold the whole network are refused: nothing runs with random weights."""

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from support import tiny_models

from whet.adapt.loading import computes_correctly, default_device
from whet.adapt.model import LanguageModel
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
