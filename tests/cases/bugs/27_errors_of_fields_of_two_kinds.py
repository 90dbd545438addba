"""Messages for fields that may be a text or a list. Right: they name what is wrong with the list that was given."""
from pydantic import ValidationError
from _tiny import told
from whet.serve.schemas.chat import ChatRequest

def message(model, body):
    try:
        model.model_validate(body)
    except ValidationError as error:
        first = error.errors()[0]  # whet tells the first of them
        return f"{first['msg']}"
    return ""

chat = {"model": "m", "messages": [{"role": "user", "content": "Hi"}]}
part = lambda part: {**chat, "messages": [{"role": "user", "content": [part]}]}
faults = []
for name, model, body, expected in (
    ("a number in stop", ChatRequest, {**chat, "stop": ["a", 5]}, "string"),
    ("an image", ChatRequest, part({"type": "image_url", "image_url": {"url": "x"}}), "text"),
    ("a text in a part", ChatRequest, part({"type": "text", "text": 5}), "string"),
    ("null in stop", ChatRequest, {**chat, "stop": ["a", None]}, "None"),
):
    told_ = message(model, body)
    if expected not in told_:
        faults.append(f"{name}: {told_!r}")
told(faults)
