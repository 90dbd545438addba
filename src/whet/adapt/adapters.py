"""What a slot has learned by LoRA, as it travels: PEFT's format, into a slot, into the weights.

Source: the format of the `peft` library, which vLLM and SGLang read too: `adapter_config.json` and
`adapter_model.safetensors`.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from whet.adapt.config import LoRA
from whet.adapt.loading import weights_fingerprint
from whet.adapt.model import LanguageModel
from whet.adapt.slots import Slots
from whet.adapt.tuners.lora import DOWN, UP, is_conv1d, linear_layers, widths
from whet.errors import ModelError
from whet.io import atomic_write, write_json

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
MORE = ("use_rslora", "use_dora", "alpha_pattern", "rank_pattern", "modules_to_save")
PREFIX, SUFFIX = "base_model.model.", ".weight"


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Adapter:
    """The matrices that LoRA has trained, and of which model."""

    config: LoRA
    weights: Mapping[str, Tensor]
    """`LAYER.lora_A` [rank, in] and `LAYER.lora_B` [out, rank]."""
    base_model: str
    """The model's name."""
    fingerprint: str
    """Tells its weights from others; empty if the adapter was made elsewhere."""
    transposed: bool
    """Whether the layers are GPT-2's, which store their weights transposed."""

    def __repr__(self) -> str:
        return (
            f"Adapter({self.base_model!r}, rank {self.config.r}, {len(self.weights) // 2} layers)"
        )

    @classmethod
    def from_slot(cls, slots: Slots, slot: int) -> "Adapter":
        """A copy of what `slot` has learned by now.

        Raises:
            ValueError: If it learns by other means than LoRA.
        """
        options, model = _lora(slots), slots.model
        views = slots.params.views(slots.params.values[slot : slot + 1])
        weights = {name: view[0].detach().clone() for name, view in views.items()}
        layers = linear_layers(model.hf_model, options.target_modules)
        transposed = any(map(is_conv1d, layers.values()))
        return cls(options, weights, model.name, fingerprint(model), transposed)

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> "Adapter":
        """The adapter in `folder`, made by whet or by peft.

        Raises:
            ModelError: If there is none, or it is more than LoRA on linear layers.
        """
        try:
            config = json.loads((Path(folder) / CONFIG).read_text())
            rank, alpha = config["r"], config["lora_alpha"]
            base = str(config["base_model_name_or_path"])
            with safe_open(Path(folder) / WEIGHTS, "pt") as file:
                told = file.metadata() or {}
                tensors = {name: file.get_tensor(name) for name in file.keys()}
        except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
            raise ModelError(
                f"{folder} holds no adapter: expected {CONFIG} and {WEIGHTS} ({error})"
            ) from error
        for name in MORE:
            if config.get(name):
                raise ModelError(
                    f"adapter {folder} has {name} {config[name]!r}: expected plain LoRA"
                )
        weights = {n.removeprefix(PREFIX).removesuffix(SUFFIX): t for n, t in tensors.items()}
        if other := [name for name in weights if not name.endswith((DOWN, UP))]:
            raise ModelError(f"adapter {folder} holds {other[0]}: expected LoRA's A and B alone")
        layers = sorted({name.rpartition(".")[0].rpartition(".")[2] for name in weights})
        options = LoRA(r=rank, lora_alpha=alpha, target_modules=tuple(layers))
        return cls(
            options, weights, base, told.get("whet_base", ""), bool(config.get("fan_in_fan_out"))
        )

    def save_pretrained(self, folder: str | Path) -> None:
        """Write the adapter where `peft` and vLLM can read it; the configuration comes last."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        tensors = {PREFIX + name + SUFFIX: tensor.cpu() for name, tensor in self.weights.items()}
        with atomic_write(folder / WEIGHTS) as new:
            save_file(tensors, new, {"format": "pt", "whet_base": self.fingerprint})
        config = {
            "peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": self.base_model,
            "r": self.config.r, "lora_alpha": self.config.lora_alpha, "lora_dropout": 0.0,
            "target_modules": sorted({n.split(".")[-2] for n in self.weights}), "bias": "none",
            "fan_in_fan_out": self.transposed, "inference_mode": True,
        }  # fmt: skip
        write_json(folder / CONFIG, config)

    @torch.no_grad()
    def load_into(self, slots: Slots, slot: int) -> None:
        """Let `slot` go on from here; its optimiser and learning rate stay.

        Raises:
            ModelError: If the adapter was made for another model.
            ValueError: If the slots' LoRA has another rank, alpha or other targets.
        """
        options = _lora(slots)
        self._check(slots.model)
        views = slots.params.views(slots.params.values[slot : slot + 1])
        have = (options.r, options.lora_alpha, views.keys())
        if have != (self.config.r, self.config.lora_alpha, self.weights.keys()):
            raise ValueError(
                f"adapter has rank {self.config.r}, alpha {self.config.lora_alpha} and "
                f"{len(self.weights) // 2} layers, the slots {options.r}, {options.lora_alpha} and "
                f"{len(views) // 2}: expected the same"
            )
        for name, view in views.items():
            view[0].copy_(self.weights[name])

    @torch.no_grad()
    def merge_into(self, model: LanguageModel) -> None:
        """Add what was learned to the weights of `model`, for good.

        Raises:
            ModelError: If the adapter was made for another model, or the model is lent.
        """
        self._check(model)
        scale = self.config.lora_alpha / self.config.r
        with model.exclusive():
            for name, layer in self._layers(model).items():
                change = scale * self.weights[name + UP] @ self.weights[name + DOWN]
                layer.weight += (change.T if is_conv1d(layer) else change).to(layer.weight)

    def _layers(self, model: LanguageModel) -> dict[str, Any]:
        known = linear_layers(model.hf_model)
        return {name: known.get(name) for name in {n.rpartition(".")[0] for n in self.weights}}

    def _check(self, model: LanguageModel) -> None:
        why = ""
        known = fingerprint(model)
        # saved by the first version of whet: 64 digits of another hash, which cannot be compared
        if len(self.fingerprint) == len(known) and self.fingerprint != known:
            why = "its weights are others"
        for name, layer in self._layers(model).items():
            have = (self.weights[name + DOWN].shape[1], self.weights[name + UP].shape[0])
            if layer is None or widths(layer) != have:
                why = f"it has no layer {name} from {have[0]} to {have[1]} numbers"
        if why:
            raise ModelError(
                f"adapter was made for {self.base_model}, not for {model.name}: {why}. "
                "Load the model that it was made for"
            )


def fingerprint(model: LanguageModel) -> str:
    """Identifies the base weights that an adapter belongs to."""
    return weights_fingerprint(dict(model.hf_model.named_parameters()))


def _lora(slots: Slots) -> LoRA:
    if not isinstance(slots.adapter, LoRA):
        kind = type(slots.adapter).__name__
        raise ValueError(f"slots train {kind}: expected LoRA, the only adapter that can be saved")
    return slots.adapter
