"""Tokenizers of Llama-2's kind (Llama 2, Mistral 7B, TinyLlama, Phi 3) strip a blank in front of what they decode. Right: prompt + answer
is the text that the tokens spell. (Seen with Mistral's own tokenizer.model in transformers 5.23, too: "The capital of Franceis Paris.")"""
from _tiny import folder, llama2, told
from whet import LanguageModel
from whet.adapt.decoding.sampling import SamplingParams, SequenceState

faults = []
for style in ("prepend", "always"):
    model = LanguageModel.from_pretrained(llama2(folder(), style))
    for prompt, rest in (("the import", " of the value"), ("a value", " in the list"), ("the list of", " the import")):
        tokens = model.encode(prompt + rest).tolist()[len(model.encode(prompt)):]  # what the model would say
        decoder = SequenceState(model, prompt, SamplingParams(max_tokens=len(tokens)))
        streamed = "".join(decoder.append(token) for token in tokens)
        if prompt + decoder.text != prompt + rest or prompt + streamed != prompt + rest:
            faults.append(f"{style}: {prompt + decoder.text!r} in place of {prompt + rest!r}")
told(faults)
