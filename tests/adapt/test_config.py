"""Defaults of the adapters for a model, and the warning about unusual learning rates."""

import pytest
from support import tiny_models

from whet.adapt.config import LMHead, LoRA, lora_rate, suited_config
from whet.adapt.model import LanguageModel


def test_a_model_of_the_user_gets_lora_with_a_rate_for_its_width():
    config = suited_config("auto", 576, {})
    assert config == LoRA(lr=lora_rate(576), r=16, lora_alpha=32)
    assert config.lr == pytest.approx(2e-3, rel=0.02)  # as measured on SmolLM2-135M
    assert lora_rate(3072) == pytest.approx(5e-4, rel=0.1)  # Phi-3-mini in the paper
    assert suited_config("lora", 576, {}, r=8).lora_alpha == 16
    assert suited_config("lora", 576, {}, r=8, lora_alpha=8, lr=1e-3) == LoRA(
        lr=1e-3, r=8, lora_alpha=8
    )


def test_wider_models_get_smaller_rates_within_limits():
    widths = [1, 256, 576, 2048, 4096, 16_384, 10**6]
    rates = [lora_rate(width) for width in widths]
    assert rates == sorted(rates, reverse=True)
    assert rates[0] == rates[1] < 5e-3 and rates[-1] == rates[-2] > 1e-4


def test_tuned_rates_go_first():
    tuned = {"full": 2e-4}
    assert suited_config("auto", 192, tuned).lr == 2e-4
    assert suited_config("lora", 192, tuned) == LoRA()
    assert suited_config("head", 192, tuned) == LMHead()
    assert suited_config("lora", 192, {"lora": 3e-3}).lr == 3e-3


@pytest.mark.parametrize(("lr", "warning"), [(1e-5, "hardly changes"), (1.0, "may destroy"),
                                             (2e-3, ""), (5e-4, ""), (None, "")])  # fmt: skip
def test_a_rate_far_outside_is_logged(caplog, lr, warning):
    suited_config("lora", 576, {}, lr=lr)
    assert (warning + " the model: about 0.002" if warning else "") in caplog.text
    assert bool(caplog.records) == bool(warning)


def test_options_are_checked():
    with pytest.raises(ValueError, match="adapter is 'qlora': expected full, lora, head"):
        suited_config("qlora", 576, {})
    with pytest.raises(ValueError, match="rank"):
        suited_config("lora", 576, {}, rank=4)
    with pytest.raises(ValueError, match="r is 0"):
        suited_config("lora", 576, {}, r=0)


def test_a_model_knows_its_width(tmp_path):
    model = LanguageModel.from_pretrained(tiny_models.save(tmp_path, "llama"))
    assert model.adapter_config() == suited_config("auto", 16, {})
