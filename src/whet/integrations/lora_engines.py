"""Hand a saved LoRA adapter over to a running vLLM or SGLang, by their HTTP routes.

Sources: vLLM's `POST /v1/load_lora_adapter`, which needs `VLLM_ALLOW_RUNTIME_LORA_UPDATING=True`,
and SGLang's `POST /load_lora_adapter`. Both read the adapter's folder themselves.
"""

import json
import urllib.error
import urllib.request
from pathlib import Path

from whet.adapt.adapters import Adapter

ROUTES = {"vllm": "/v1/load_lora_adapter", "sglang": "/load_lora_adapter"}
HINTS = {
    "vllm": "start it with --enable-lora and VLLM_ALLOW_RUNTIME_LORA_UPDATING=True",
    "sglang": "start it with --enable-lora",
}
MAX_MESSAGE = 300
"""Longest message of an engine that is repeated, in characters."""


def load_into_engine(
    folder: str | Path,
    url: str,
    engine: str,
    *,
    name: str | None = None,
    api_key: str | None = None,
    timeout_s: float = 60.0,
) -> str:
    """Have a running engine load the adapter in `folder`, which stays as it is.

    Args:
        folder: What `Adapter.save_pretrained` wrote, in a place that the engine can read.
        url: Where the engine listens, such as `http://127.0.0.1:8000`.
        engine: `vllm` or `sglang`.
        name: How requests name the adapter [default: the name of the folder].
        api_key: The engine's own key, if it has one.
        timeout_s: How long the engine may take.

    Returns:
        The name.

    Raises:
        ModelError: If the folder contains no adapter.
        ConnectionError: If the engine cannot be reached, or refuses the adapter.
        ValueError: If `engine` or `url` is invalid.
    """
    if engine not in ROUTES:
        raise ValueError(f"engine is {engine!r}: expected {' or '.join(ROUTES)}")
    if not url.startswith(("http://", "https://")):
        raise ValueError(f"url is {url!r}: expected http://HOST:PORT")
    folder = Path(folder).resolve()
    Adapter.from_pretrained(folder)  # before an engine tries to
    name = folder.name if name is None else name
    body = json.dumps({"lora_name": name, "lora_path": str(folder)}).encode()
    headers = {"content-type": "application/json"}
    if api_key is not None:
        headers["authorization"] = f"Bearer {api_key}"
    request = urllib.request.Request(url.rstrip("/") + ROUTES[engine], body, headers)
    try:
        with urllib.request.urlopen(request, timeout=timeout_s) as response:
            answer = response.read().decode(errors="replace")
    except urllib.error.HTTPError as error:
        answer = error.read().decode(errors="replace")
        hint = f" ({HINTS[engine]})" if error.code == 404 else ""
        raise ConnectionError(
            f"{engine} at {url} did not load {name}: status {error.code}, {_message(answer)}{hint}. "
            f"The adapter is still in {folder}"
        ) from error
    except (OSError, ValueError) as error:  # ValueError: not HTTP
        reason = getattr(error, "reason", error)
        raise ConnectionError(
            f"{engine} at {url} cannot be reached ({reason}): start it, then run this again. The "
            f"adapter is still in {folder}"
        ) from error
    return name


def _message(answer: str) -> str:
    """The error message in an engine's answer."""
    try:
        record = json.loads(answer)
    except ValueError:
        return answer[:MAX_MESSAGE]
    if isinstance(record, dict):
        error = record.get("error")
        message = error.get("message") if isinstance(error, dict) else record.get("message")
        record = message or record.get("error_message") or record.get("detail") or record
    return str(record)[:MAX_MESSAGE]
