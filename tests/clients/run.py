"""Tries the clients that are installed against a running server, as their users would.

    python tests/clients/run.py http://127.0.0.1:8000 MODEL [CLIENT …]

Prints a line for each capability of each client. A client that is not installed is skipped. MODEL
needs a chat template with tools for the capabilities `tools` and `structured`.
"""

import asyncio
import importlib.metadata
import json
import sys
import warnings

SCHEMA = {
    "type": "object",
    "properties": {"place": {"enum": ["hive", "meadow"]}},
    "required": ["place"],
    "additionalProperties": False,
}
TOOL = {"type": "function", "function": {"name": "fly", "parameters": SCHEMA}}
ASK = [{"role": "user", "content": "Fly to the meadow."}]


def openai_sync(url, model):
    from openai import OpenAI

    client = OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)
    chat = client.chat.completions
    ask = {"model": model, "messages": ASK, "max_tokens": 40}
    yield "chat", lambda: chat.create(**ask).choices[0].message.content
    yield (
        "stream",
        lambda: "".join(
            part.choices[0].delta.content or "" for part in chat.create(**ask, stream=True)
        ),
    )
    yield (
        "prompts",
        lambda: len(client.completions.create(model=model, prompt=["a", "b"], n=2).choices),
    )
    yield "logprobs", lambda: len(chat.create(**ask, logprobs=True).choices[0].logprobs.content)
    format = {"type": "json_schema", "json_schema": {"name": "x", "schema": SCHEMA}}
    yield (
        "structured",
        lambda: json.loads(chat.create(**ask, response_format=format).choices[0].message.content)[
            "place"
        ],
    )
    more = {"tools": [TOOL], "tool_choice": "required", "max_tokens": 100}
    yield (
        "tools",
        lambda: chat.create(**ask | more).choices[0].message.tool_calls[0].function.arguments,
    )


def openai_async(url, model):
    from openai import AsyncOpenAI

    async def run():
        async with AsyncOpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client:
            stream = await client.chat.completions.create(
                model=model, messages=ASK, max_tokens=8, stream=True
            )
            return "".join([part.choices[0].delta.content or "" async for part in stream])

    yield "stream", lambda: asyncio.run(run())


def litellm(url, model):
    import litellm

    ask = {"model": f"openai/{model}", "api_base": f"{url}/v1", "api_key": "none", "messages": ASK}
    ask |= {"max_tokens": 40, "metadata": {"trace": "x"}, "user": "me"}
    yield "chat", lambda: litellm.completion(**ask).choices[0].message.content
    yield (
        "stream",
        lambda: "".join(
            part.choices[0].delta.content or "" for part in litellm.completion(**ask, stream=True)
        ),
    )
    yield "tools", lambda: (
        litellm.completion(**ask, tools=[TOOL], tool_choice="required")
        .choices[0].message.tool_calls[0].function.arguments
    )  # fmt: skip


def langchain_openai(url, model):
    from langchain_openai import ChatOpenAI, OpenAI

    ask = {"base_url": f"{url}/v1", "api_key": "none", "model": model, "max_tokens": 40}
    chat = ChatOpenAI(**ask)
    schema = {"title": "fly", "description": "Fly to a place."} | SCHEMA
    yield "chat", lambda: chat.invoke("Bees").content
    yield "stream", lambda: "".join(part.content for part in chat.stream("Bees"))
    yield "prompts", lambda: OpenAI(**ask).batch(["a", "b"])
    yield "structured", lambda: chat.with_structured_output(schema).invoke("Fly to the meadow.")
    yield (
        "tools",
        lambda: (
            chat.bind_tools([schema], tool_choice="required")
            .invoke("Fly to the meadow.")
            .tool_calls
        ),
    )


def llama_index(url, model):
    from llama_index.core.llms import ChatMessage
    from llama_index.llms.openai_like import OpenAILike

    ask = {"model": model, "api_base": f"{url}/v1", "api_key": "none", "max_tokens": 40}
    chat = OpenAILike(**ask, is_chat_model=True)
    yield "chat", lambda: chat.chat([ChatMessage(role="user", content="Bees")]).message.content
    yield "stream", lambda: "".join(p.delta or "" for p in chat.stream_complete("Bees"))
    yield "completion", lambda: OpenAILike(**ask).complete("Bees").text


def pydantic_ai(url, model):
    from pydantic import BaseModel
    from pydantic_ai import Agent, NativeOutput
    from pydantic_ai.models.openai import OpenAIChatModel
    from pydantic_ai.providers.openai import OpenAIProvider

    class Flight(BaseModel):
        place: str

    provider = OpenAIProvider(base_url=f"{url}/v1", api_key="none")
    chat = OpenAIChatModel(model, provider=provider)
    settings = {"max_tokens": 60}
    yield "chat", lambda: Agent(chat, model_settings=settings).run_sync("Bees").output
    yield "structured", lambda: (
        Agent(chat, output_type=NativeOutput(Flight), model_settings=settings)
        .run_sync("Fly to the meadow.").output
    )  # fmt: skip
    yield (
        "tools",
        lambda: (
            Agent(chat, output_type=Flight, model_settings=settings).run_sync("Fly away.").output
        ),
    )


def instructor(url, model):
    import instructor
    from openai import OpenAI
    from pydantic import BaseModel

    class Flight(BaseModel):
        place: str

    client = OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)

    def create(mode):
        return instructor.from_openai(client, mode=mode).chat.completions.create(
            model=model, messages=ASK, max_tokens=60, response_model=Flight, max_retries=0
        )

    yield "tools", lambda: create(instructor.Mode.TOOLS)
    yield "structured", lambda: create(instructor.Mode.JSON_SCHEMA)


def llm(url, model):
    from llm.default_plugins.openai_models import Chat

    chat = Chat("whet", model_name=model, api_base=f"{url}/v1", supports_schema=True)
    chat.key = "none"
    yield "chat", lambda: chat.prompt("Bees", stream=False, max_tokens=8).text()
    yield "stream", lambda: "".join(chat.prompt("Bees", max_tokens=8))
    yield "structured", lambda: chat.prompt("Fly.", schema=SCHEMA, stream=False).text()


CLIENTS = {
    "openai": ("openai", openai_sync),
    "openai async": ("openai", openai_async),
    "litellm": ("litellm", litellm),
    "langchain-openai": ("langchain-openai", langchain_openai),
    "llama-index": ("llama-index-llms-openai-like", llama_index),
    "pydantic-ai": ("pydantic-ai-slim", pydantic_ai),
    "instructor": ("instructor", instructor),
    "llm": ("llm", llm),
}


def run(url, model, names=()):
    """Yield client, version, capability, and the result or the error."""
    warnings.simplefilter("ignore")
    for name, (package, capabilities) in CLIENTS.items():
        if names and name not in names:
            continue
        try:
            version = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            yield name, "", "", "skipped: not installed"
            continue
        for capability, call in capabilities(url, model):
            try:
                result = f"ok {str(call())[:60]!r}"
            except Exception as error:
                result = f"FAILED {type(error).__name__}: {str(error)[:200]}"
            yield name, version, capability, result


if __name__ == "__main__":
    url, model, *names = sys.argv[1:]
    for line in run(url, model, names):
        print(*line, sep=" | ", flush=True)
