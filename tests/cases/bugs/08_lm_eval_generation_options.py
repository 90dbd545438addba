"""Options of generation that lm-eval's tasks name. Right: `normalize_gen_kwargs` of lm-eval: max_new_tokens, max_tokens and
max_completion_tokens are other names of max_gen_toks; num_beams = 1 and repetition_penalty = 1.0 ask for nothing; a temperature
above 0 without do_sample samples; null is a default."""
from _tiny import told
from whet.integrations.lm_eval import sampling_params as _sampling

faults = []
for options, right in (
    ({"until": ["\n"], "max_new_tokens": 5}, lambda s: s.max_tokens == 5),
    ({"until": ["\n"], "max_tokens": 5}, lambda s: s.max_tokens == 5),
    ({"until": ["\n"], "max_gen_toks": 5, "num_beams": 1}, lambda s: s.max_tokens == 5),
    ({"until": ["\n"], "repetition_penalty": 1.0}, lambda s: True),
    ({"until": ["\n"], "temperature": 0.7}, lambda s: s.temperature == 0.7),
    ({"until": ["\n"], "top_p": None}, lambda s: s.top_p == 1.0),
):
    try:
        if not right(_sampling(options)):
            faults.append(f"{options}: {_sampling(options)}")
    except Exception as error:
        faults.append(f"{options}: {type(error).__name__}: {str(error)[:60]}")
told(faults)
