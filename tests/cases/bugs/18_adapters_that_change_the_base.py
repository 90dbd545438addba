"""PEFT adapters whose initialisation changed the base weights (PiSSA, OLoRA). Right: `Adapter.from_pretrained` refuses them, as it does DoRA and
rsLoRA, or computes what PEFT computes."""
import torch
from _tiny import folder, llama2, told
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM
from whet import Adapter, LanguageModel
from whet.errors import ModelError

base, tokens, faults = llama2(folder()), torch.tensor([[1, 260, 261, 262]]), []
for kind in (True, "gaussian", "pissa", "pissa_niter_4", "olora"):
    torch.manual_seed(0)
    tuned = get_peft_model(AutoModelForCausalLM.from_pretrained(base), LoraConfig(task_type="CAUSAL_LM", r=4, lora_alpha=8, target_modules=["q_proj", "v_proj"], init_lora_weights=kind))
    for name, weight in tuned.named_parameters():
        if "lora_B" in name:
            weight.data += 0.3 * torch.randn_like(weight)
    where = folder()
    tuned.save_pretrained(where)
    model = LanguageModel.from_pretrained(base)
    try:
        Adapter.from_pretrained(where).merge_into(model)
    except ModelError:
        continue  # told
    with torch.no_grad():
        gap = float((model.hf_model(input_ids=tokens).logits - tuned.eval()(input_ids=tokens).logits).abs().max())
    if gap > 1e-4:
        faults.append(f"init_lora_weights={kind!r}: logits are off by {gap:.3f}")
told(faults)
