"""What a slot has learned travels: to PEFT and back, to another slot, into the weights."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from support import tiny_models

from whet.adapt.adapters import Adapter
from whet.adapt.config import FullFineTuning, LMHead, LoRA
from whet.adapt.model import LanguageModel
from whet.adapt.slots import Slots
from whet.errors import ModelError

MODE = LoRA(lr=1e-2, r=4)
TEXT = "what is asked of the model"


@pytest.fixture(scope="module", params=[*tiny_models.CONFIGS, "phi3"])
def folder(request, tmp_path_factory):
    return tiny_models.save(tmp_path_factory.mktemp("tiny"), request.param)


@pytest.fixture
def model(folder):
    return LanguageModel.from_pretrained(folder)


def learned(model, path):
    """An adapter in slot 1 of 2, saved to `path`, and the score with it."""
    slots = Slots(model, MODE, count=2)
    with slots.attached():
        for text in ("one text", "another"):
            slots.step({1: [model.training_tokens(text)]})
        Adapter.from_slot(slots, 1).save_pretrained(path)
        return slots.activate(1).score(TEXT).bits


def logits(network, model):
    with torch.no_grad():
        return network(input_ids=model.encode(TEXT)[None]).logits


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")  # peft's own
def test_logits_are_the_same_through_peft(folder, model, tmp_path):
    import peft

    bits, base = learned(model, tmp_path / "a"), logits(model.hf_model, model)
    theirs = peft.PeftModel.from_pretrained(
        LanguageModel.from_pretrained(folder).hf_model, tmp_path / "a"
    )
    theirs.save_pretrained(tmp_path / "b")
    slots = Slots(model, MODE, count=3)
    with slots.attached():
        Adapter.from_pretrained(tmp_path / "b").load_into(slots, 2)
        ours = logits(slots.activate(2).hf_model, model)
        assert slots.activate(2).score(TEXT).bits == bits
    torch.testing.assert_close(ours, logits(theirs, model), rtol=1e-5, atol=1e-5)
    assert not torch.allclose(ours, base)


def test_merged_weights_need_no_slot(model, tmp_path):
    bits = learned(model, tmp_path)
    Adapter.from_pretrained(tmp_path).merge_into(model)
    assert model.score(TEXT).bits == pytest.approx(bits, rel=1e-5)


def test_hidden_states_of_before_a_merge_are_not_used_after_it(model, tmp_path):
    learned(model, tmp_path)
    slots, text = Slots(model, LMHead()), [model.training_tokens("some text")]
    with slots.attached():
        before = slots.step({0: text})
    Adapter.from_pretrained(tmp_path).merge_into(model)
    fresh = Slots(model, LMHead())
    for each in (slots, fresh):
        each.reset(0)
    with slots.attached():
        after = slots.step({0: text})
    with fresh.attached():
        assert after == fresh.step({0: text}) != before


def test_an_adapter_of_another_model_is_an_error(model, tmp_path):
    learned(model, tmp_path)
    adapter = Adapter.from_pretrained(tmp_path)
    with torch.no_grad():
        next(model.hf_model.parameters()).flatten()[0] += 1
    with pytest.raises(ModelError, match="not for .*: its weights are different"):
        adapter.merge_into(model)
    other = LanguageModel.from_pretrained("whet-pico")
    with pytest.raises(ModelError, match="adapter was made for .*, not for whet-pico: it has no"):
        adapter.merge_into(other)


def test_slots_with_another_adapter_are_an_error(model, tmp_path):
    learned(model, tmp_path)
    with pytest.raises(
        ValueError, match="adapter has r=4, lora_alpha=64.0 and .* the engine has r=2"
    ):
        Adapter.from_pretrained(tmp_path).load_into(Slots(model, LoRA(r=2)), 0)
    with pytest.raises(ValueError, match="slots train FullFineTuning: expected LoRA"):
        Adapter.from_slot(Slots(model, FullFineTuning()), 0)


def test_a_folder_without_an_adapter_is_an_error(model, tmp_path):
    with pytest.raises(ModelError, match="contains no adapter: expected adapter_config.json"):
        Adapter.from_pretrained(tmp_path / "nowhere")
    learned(model, tmp_path)
    path = tmp_path / "adapter_config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps(config | {"alpha_pattern": {"c_attn": 64}}))
    with pytest.raises(ModelError, match="has alpha_pattern .*: expected plain LoRA"):
        Adapter.from_pretrained(tmp_path)
    path.write_text(json.dumps({name: v for name, v in config.items() if name != "r"}))
    with pytest.raises(ModelError, match="contains no adapter: .*'r'"):
        Adapter.from_pretrained(tmp_path)
    path.write_text(json.dumps(config))
    (tmp_path / "adapter_model.safetensors").write_bytes(b"broken")
    with pytest.raises(ModelError, match="contains no adapter"):
        Adapter.from_pretrained(tmp_path)
    assert json.loads((tmp_path / "adapter_config.json").read_text())["r"] == 4


@pytest.mark.parametrize("kind", ["pissa", "pissa_niter_4", "olora", "corda", "loftq", "lora_ga"])
def test_initializations_that_change_the_model_are_refused(model, tmp_path, kind):
    learned(model, tmp_path)
    path = tmp_path / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"init_lora_weights": kind}))
    with pytest.raises(ModelError, match=f"init_lora_weights '{kind}'"):
        Adapter.from_pretrained(tmp_path)


def test_tensors_that_do_not_fit_the_configuration_are_named(model, tmp_path):
    learned(model, tmp_path)
    path = tmp_path / "adapter_model.safetensors"
    weights = load_file(path)
    name = sorted(weights)[1]
    wrong = {
        "no .*": {n: w for n, w in weights.items() if n != name},
        "r is 4": weights | {name: weights[name][:, :1].contiguous()},
        "not finite": weights | {name: weights[name] * float("nan")},
    }
    for message, tensors in wrong.items():
        save_file(tensors, path, {"format": "pt"})
        with pytest.raises(ModelError, match=message):
            Adapter.from_pretrained(tmp_path)


def test_an_adapter_of_some_layers_loads(model, tmp_path):
    learned(model, tmp_path)
    path = tmp_path / "adapter_model.safetensors"
    weights = {n: w for n, w in load_file(path).items() if ".0." in n}
    save_file(weights, path, {"format": "pt"})
    adapter, slots = Adapter.from_pretrained(tmp_path), Slots(model, MODE)
    with slots.attached():
        adapter.load_into(slots, 0)
        bits = slots.activate(0).score(TEXT).bits
    adapter.merge_into(model)
    assert model.score(TEXT).bits == pytest.approx(bits, rel=1e-5)


CHOICES = {
    "regex": {"target_modules": r".*layers\.[1-9]\.(self_attn\.[qv]|mlp\.up)_proj"},
    "excluded": {"target_modules": ["q_proj", "up_proj"], "exclude_modules": r".*layers\.0\..*"},
    "layers": {"target_modules": ["q_proj", "down_proj"], "layers_to_transform": [1]},
    "first layer": {"target_modules": ["v_proj"], "layers_to_transform": 0},
    "all": {"target_modules": "all-linear"},
}


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")  # peft's own
@pytest.mark.parametrize("choice", list(CHOICES))
def test_adapters_of_chosen_layers_load_and_export(tmp_path, choice):
    import peft

    folder = tiny_models.save(tmp_path / "model", "llama")
    config = peft.LoraConfig(r=4, lora_alpha=8, **CHOICES[choice], task_type="CAUSAL_LM")
    theirs = peft.get_peft_model(LanguageModel.from_pretrained(folder).hf_model, config)
    for name, weight in theirs.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight)
    theirs.save_pretrained(tmp_path / "a")
    model = LanguageModel.from_pretrained(folder)
    expected = logits(theirs.eval(), model)
    adapter = Adapter.from_pretrained(tmp_path / "a")
    slots = Slots(model, adapter.config)
    assert len(slots.initial) == len(adapter.weights)  # only the chosen layers are trained
    with slots.attached():
        adapter.load_into(slots, 0)
        found = logits(slots.activate(0).hf_model, model)
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
        Adapter.from_slot(slots, 0).save_pretrained(tmp_path / "b")
    again = peft.PeftModel.from_pretrained(
        LanguageModel.from_pretrained(folder).hf_model, tmp_path / "b"
    )
    torch.testing.assert_close(logits(again, model), expected, rtol=1e-5, atol=1e-5)
    assert len(peft.get_peft_model_state_dict(again)) == len(adapter.weights)
