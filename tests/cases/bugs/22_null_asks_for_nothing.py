"""Fields that OpenAI's API lets be null, sent as null by clients that write all fields. Right: accepted, as whet does for most."""
from _tiny import told
from whet.serve.schemas.chat import ChatRequest

faults = []
for more in ({"stream": None}, {"stream_options": {"include_usage": None}}, {"adapt": {"lam": None}}, {"adapt": {"include": None}}, {"adapt": {"progress": None}},
             {"messages": [{"role": "assistant", "content": None, "tool_calls": None}, {"role": "user", "content": "Hi"}]}, {"top_p": 0}, {"safety_identifier": None}, {"prompt_cache_key": None}):
    try:
        ChatRequest.model_validate({"model": "m", "messages": [{"role": "user", "content": "Hi"}], **more})
    except ValueError as error:
        faults.append(f"{more}: {error.errors()[0]['msg'][:48]}")
told(faults)
