"""LoRA adapters outside of slots: in PEFT's file format, into a slot, into a model's weights.

Source: the format of the `peft` library, which vLLM and SGLang can read: `adapter_config.json` and
`adapter_model.safetensors`.
"""

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from whet.errors import require

require("torch", "adapt")

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from whet.adapt.config import LoRA
from whet.adapt.model import LanguageModel
from whet.adapt.slots import Slots
from whet.adapt.tuners.lora import LORA_A, LORA_B, in_out_features, is_conv1d, linear_layers
from whet.config import Renamed
from whet.errors import ModelError
from whet.io import atomic_write, write_json
from whet.maths.arrays import as_count, as_positive

CONFIG_FILE, WEIGHTS_FILE = "adapter_config.json", "adapter_model.safetensors"
UNSUPPORTED = (
    "use_rslora", "use_dora", "alpha_pattern", "rank_pattern", "modules_to_save", "lora_bias",
    "use_qalora", "use_bdlora", "alora_invocation_tokens", "trainable_token_indices",
    "target_parameters", "layer_replication", "arrow_config", "kasa_config", "velora_config",
    "monteclora_config",
)  # fmt: skip
KEEPS_BASE = (None, True, False, "gaussian", "eva", "orthogonal")
"""Values of PEFT's `init_lora_weights` that leave the weights of the model as they are."""
CHOSEN = ("exclude_modules", "layers_to_transform")
"""Options of PEFT by which layers of one name may have an adapter or not."""
PREFIX, SUFFIX = "base_model.model.", ".weight"


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Adapter:
    """A trained LoRA adapter, and the model that it belongs to.

    >>> import whet
    >>> model = whet.LanguageModel.from_pretrained("whet-pico", device="cpu")
    >>> space = whet.DataSpace.build(["Bees dance to show where flowers are."], "bees.whet")
    >>> with whet.Engine(space, model, whet.LoRA(r=4)) as engine:
    ...     output = engine.submit(whet.Request("Bees", return_adapter=True)).result()
    >>> output.adapter.save_pretrained("my-adapter")
    >>> whet.Adapter.from_pretrained("my-adapter")
    Adapter('whet-pico', rank 4, ... layers)
    """

    of = Renamed("from_slot")
    read = Renamed("from_pretrained")
    save = Renamed("save_pretrained")
    put = Renamed("load_into")
    merge = Renamed("merge_into")
    options = Renamed("config")
    base = Renamed("base_model")

    config: LoRA
    """Rank, scale and layers."""
    weights: Mapping[str, Tensor]
    """`LAYER.lora_A` (r, in) and `LAYER.lora_B` (out, r) of each layer."""
    base_model: str
    """Name of the model."""
    fingerprint: str
    """Identifies the weights of the model; empty if the adapter was not made by whet."""
    transposed: bool
    """Whether the model stores its weights transposed, as GPT-2 does."""

    def __repr__(self) -> str:
        return (
            f"Adapter({self.base_model!r}, rank {self.config.r}, {len(self.weights) // 2} layers)"
        )

    @classmethod
    def from_slot(cls, slots: Slots, slot: int) -> "Adapter":
        """A copy of the adapter that `slot` has trained.

        Raises:
            ValueError: If the slots train something else than LoRA.
        """
        config, model = _lora_config(slots), slots.model
        views = slots.params.views(slots.params.values[slot : slot + 1])
        weights = {name: view[0].detach().clone() for name, view in views.items()}
        layers = linear_layers(model.hf_model, config.target_modules)
        transposed = any(map(is_conv1d, layers.values()))
        return cls(config, weights, model.name, model.fingerprint, transposed)

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> "Adapter":
        """Read an adapter that was saved by whet or by PEFT.

        Raises:
            ModelError: If `folder` contains no adapter, or more than plain LoRA on linear layers.
        """
        try:
            config = json.loads((Path(folder) / CONFIG_FILE).read_text("utf-8"))
            rank, alpha = as_count(config["r"], "r"), config["lora_alpha"]
            if isinstance(alpha, str | bool):
                raise TypeError(f"lora_alpha is {alpha!r}: expected a number")
            alpha = as_positive(alpha, "lora_alpha")
            base = str(config["base_model_name_or_path"])
            with safe_open(Path(folder) / WEIGHTS_FILE, "pt") as file:
                metadata = file.metadata() or {}
                tensors = {name: file.get_tensor(name) for name in file.keys()}
        except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
            raise ModelError(
                f"{folder} contains no adapter: expected {CONFIG_FILE} and {WEIGHTS_FILE} ({error})"
            ) from error
        for name in UNSUPPORTED:
            if config.get(name):
                raise ModelError(
                    f"adapter {folder} has {name} {config[name]!r}: expected plain LoRA"
                )
        initial = config.get("init_lora_weights")
        if config.get("peft_type", "LORA") != "LORA" or initial not in KEEPS_BASE:
            raise ModelError(
                f"adapter {folder} has peft_type {config.get('peft_type')!r} and init_lora_weights "
                f"{initial!r}: expected plain LoRA whose initialization keeps the model's weights. "
                "Convert it with PEFT (path_initial_model_for_weight_conversion)"
            )
        weights = {n.removeprefix(PREFIX).removesuffix(SUFFIX): t for n, t in tensors.items()}
        if other := [name for name in weights if not name.endswith((LORA_A, LORA_B))]:
            raise ModelError(
                f"adapter {folder} contains {other[0]}: expected only lora_A and lora_B"
            )
        _check_tensors(folder, weights, rank)
        layers = {name.rpartition(".")[0] for name in weights}
        chosen = [config.get(name) for name in CHOSEN]
        if not isinstance(config.get("target_modules"), str) and all(
            c in (None, []) for c in chosen
        ):
            layers = {name.rpartition(".")[2] for name in layers}
        lora = LoRA(r=rank, lora_alpha=alpha, target_modules=tuple(sorted(layers)))
        return cls(
            lora, weights, base, metadata.get("whet_base", ""), bool(config.get("fan_in_fan_out"))
        )

    def save_pretrained(self, folder: str | Path) -> None:
        """Write the adapter to `folder` in PEFT's format; the configuration is written last."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        tensors = {PREFIX + name + SUFFIX: tensor.cpu() for name, tensor in self.weights.items()}
        with atomic_write(folder / WEIGHTS_FILE) as new:
            save_file(tensors, new, {"format": "pt", "whet_base": self.fingerprint})
        layers = {name.rpartition(".")[0] for name in self.weights}
        if not any("." in target for target in self.config.target_modules):
            layers = {name.rpartition(".")[2] for name in layers}
        config = {
            "peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": self.base_model,
            "r": self.config.r, "lora_alpha": self.config.lora_alpha, "lora_dropout": 0.0,
            "target_modules": sorted(layers), "bias": "none",
            "fan_in_fan_out": self.transposed, "inference_mode": True,
        }  # fmt: skip
        if self.config.layers != "all":
            config |= _layers_to_transform(self.weights)
        write_json(folder / CONFIG_FILE, config)

    @torch.no_grad()
    def load_into(self, slots: Slots, slot: int) -> None:
        """Copy the adapter into `slot`, without changing its optimizer state and learning rate.

        Raises:
            ModelError: If the adapter was made for another model.
            ValueError: If the slots' LoRA has another rank, scale or other layers.
        """
        config = _lora_config(slots)
        self._check(slots.model)
        views = slots.params.views(slots.params.values[slot : slot + 1])
        same_scale = (config.r, config.lora_alpha) == (self.config.r, self.config.lora_alpha)
        if not same_scale or self.weights.keys() - views.keys():
            raise ValueError(
                f"adapter has r={self.config.r}, lora_alpha={self.config.lora_alpha} and "
                f"{len(self.weights) // 2} layers, but the engine has r={config.r}, "
                f"lora_alpha={config.lora_alpha} and {len(views) // 2}: expected the same"
            )
        for name, view in views.items():
            view[0].copy_(self.weights.get(name, slots.initial[name]))  # initial layers add nothing

    @torch.no_grad()
    def merge_into(self, model: LanguageModel) -> None:
        """Add the adapter to the weights of `model` permanently.

        Raises:
            ModelError: If the adapter was made for another model, or the model is in use.
        """
        self._check(model)
        scale = self.config.lora_alpha / self.config.r
        with model.exclusive():
            for name, layer in self._layers(model).items():
                change = scale * self.weights[name + LORA_B] @ self.weights[name + LORA_A]
                layer.weight += (change.T if is_conv1d(layer) else change).to(layer.weight)

    def _layers(self, model: LanguageModel) -> dict[str, Any]:
        layers = linear_layers(model.hf_model)
        return {name: layers.get(name) for name in {n.rpartition(".")[0] for n in self.weights}}

    def _check(self, model: LanguageModel) -> None:
        reason = ""
        fingerprint = model.fingerprint
        # the first version of whet saved 64 digits of another hash, which cannot be compared
        if len(self.fingerprint) == len(fingerprint) and self.fingerprint != fingerprint:
            reason = "its weights are different"
        for name, layer in self._layers(model).items():
            size = (self.weights[name + LORA_A].shape[1], self.weights[name + LORA_B].shape[0])
            if layer is None or in_out_features(layer) != size:
                reason = f"it has no layer {name} of size {size[0]} to {size[1]}"
        if reason:
            raise ModelError(
                f"adapter was made for {self.base_model}, not for {model.name}: {reason}. "
                "Load the model that it was made for"
            )


def _layers_to_transform(names: Iterable[str]) -> dict[str, object]:
    """The numbers of the layers with weights, and the name of their list, as PEFT stores them."""
    parts = [re.fullmatch(r"(?:.*\.)?(\w+)\.(\d+)\..*", name) for name in names]
    numbers = sorted({int(match[2]) for match in parts if match})
    return {
        "layers_to_transform": numbers,
        "layers_pattern": sorted({m[1] for m in parts if m}),
    }


def _check_tensors(folder: str | Path, weights: Mapping[str, Tensor], rank: int) -> None:
    """Raises ModelError if a tensor is missing, or does not fit the rank."""
    reason = "" if weights else "no tensors"
    for layer in sorted({name.rpartition(".")[0] for name in weights}):
        for name, axis in ((layer + LORA_A, 0), (layer + LORA_B, 1)):
            tensor = weights.get(name)
            if tensor is None:
                reason = f"no {name}"
            elif tensor.dim() != 2 or tensor.shape[axis] != rank:
                reason = f"{name} of shape {tuple(tensor.shape)}, but r is {rank}"
            elif not (tensor.is_floating_point() and bool(tensor.isfinite().all())):
                reason = f"numbers in {name} that are not finite floats"
    if reason:
        raise ModelError(f"adapter {folder} has {reason}: expected what PEFT saves")


def _lora_config(slots: Slots) -> LoRA:
    if not isinstance(slots.adapter, LoRA):
        kind = type(slots.adapter).__name__
        raise ValueError(f"slots train {kind}: expected LoRA, the only adapter that can be saved")
    return slots.adapter
