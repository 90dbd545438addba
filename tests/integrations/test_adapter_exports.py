"""Adapters in other engines: GGUF files as llama.cpp reads them, and the calls of vLLM and SGLang."""

import http.server
import json
import socket
import subprocess
import sys
import threading
from contextlib import contextmanager
from importlib.util import find_spec

import gguf
import numpy as np
import pytest
import torch
from click.testing import CliRunner
from support import tiny_gguf

from whet.adapt.adapters import Adapter
from whet.adapt.config import LoRA
from whet.adapt.model import LanguageModel
from whet.adapt.tuners.lora import LORA_A, LORA_B, in_out_features, linear_layers
from whet.cli import main
from whet.errors import ModelError
from whet.integrations.llama_cpp import save_gguf
from whet.integrations.lora_engines import load_into_engine


def random_adapter(model, name, rank=2):
    weights, generator = {}, torch.Generator().manual_seed(0)
    for layer, module in linear_layers(model.hf_model).items():
        inputs, outputs = in_out_features(module)
        weights[layer + LORA_A] = torch.randn(rank, inputs, generator=generator)
        weights[layer + LORA_B] = torch.randn(outputs, rank, generator=generator)
    return Adapter(LoRA(r=rank, lora_alpha=6), weights, str(name), "", False)


@pytest.fixture(scope="module")
def llama_adapter(llama, llama_folder):
    return random_adapter(llama, llama_folder)


@pytest.fixture
def saved(llama_adapter, tmp_path):
    llama_adapter.save_pretrained(tmp_path / "ad_1")
    return tmp_path / "ad_1"


def read(path):
    reader = gguf.GGUFReader(path)
    fields = {name: field.contents() for name, field in reader.fields.items()}
    return fields, {tensor.name: tensor.data for tensor in reader.tensors}


def as_llama_cpp_stores(weight, heads):
    """The rows of each head, where row i of a half follows row i of the other: (0, d/2, 1, …)."""
    size = len(weight) // heads
    order = [
        head * size + half * size // 2 + i
        for head in range(heads)
        for i in range(size // 2)
        for half in (0, 1)
    ]
    return weight[order]


def test_gguf_changes_the_weights_as_the_adapter_does(llama, llama_adapter, tmp_path):
    save_gguf(llama_adapter, tmp_path / "a.gguf")
    fields, tensors = read(tmp_path / "a.gguf")
    assert fields["general.type"] == "adapter" and fields["general.architecture"] == "llama"
    assert fields["adapter.type"] == "lora" and fields["adapter.lora.alpha"] == 6.0
    config, weights = llama.hf_model.config, llama_adapter.weights
    heads = {"attn_q": config.num_attention_heads, "attn_k": config.num_key_value_heads}
    assert config.num_attention_heads > config.num_key_value_heads  # each has its own order
    names = {
        "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
        "self_attn.o_proj": "attn_output", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up",
        "mlp.down_proj": "ffn_down",
    }  # fmt: skip
    assert len(tensors) == len(weights) == 2 * len(names) * config.num_hidden_layers
    for block in range(config.num_hidden_layers):
        for ours, theirs in names.items():
            layer, tensor = f"model.layers.{block}.{ours}", f"blk.{block}.{theirs}.weight"
            expected = (weights[layer + LORA_B] @ weights[layer + LORA_A]).numpy()
            if theirs in heads:
                expected = as_llama_cpp_stores(expected, heads[theirs])
            change = tensors[tensor + ".lora_b"] @ tensors[tensor + ".lora_a"]
            np.testing.assert_allclose(change, expected, rtol=1e-5, atol=1e-5)


LLAMA_CPP = """
import json, sys
import xllamacpp
model, adapter, tokens, answers = json.loads(sys.argv[1])
params = xllamacpp.CommonParams()
params.model.path, params.warmup = model, False
params.n_ctx, params.n_parallel, params.cpuparams.n_threads = 64, 1, 1
params.cache_type_k = params.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
params.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
if adapter:
    params.lora_adapters = [xllamacpp.CommonAdapterLoraInfo(adapter, 1.0)]
ask = {"prompt": tokens, "max_tokens": 1, "logit_bias": {"66": 100}, "logprobs": 260}
answer = xllamacpp.Server(params).handle_completions(ask)
[position] = answer["choices"][0]["logprobs"]["content"]
with open(answers, "w") as file:
    json.dump({token["id"]: token["logprob"] for token in position["top_logprobs"]}, file)
"""
"""Writes the log-probabilities of the next token to a file: llama.cpp logs to both streams. Numbers
are float32 as in whet, for an exact comparison; by default keys and values are float16. A token that
is a part of a letter would have no log-probabilities, so the bias, which these do not contain, makes
the next one `c`."""


def next_logprobs_in_llama_cpp(model, adapter, tokens, folder):
    answers = folder / "answers.json"
    arguments = json.dumps([str(model), adapter and str(adapter), tokens, str(answers)])
    done = subprocess.run(
        [sys.executable, "-c", LLAMA_CPP, arguments], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr[-2000:]
    logprobs = json.loads(answers.read_text())
    return [logprobs[str(token)] for token in range(len(logprobs))]


def next_logprobs(model, tokens):
    with torch.no_grad():
        return model.hf_model(torch.tensor([tokens])).logits[0, -1].log_softmax(-1).tolist()


def test_llama_cpp_computes_what_the_adapted_model_does(tmp_path, monkeypatch):
    if find_spec("xllamacpp") is None:
        pytest.skip("llama.cpp is not installed (xllamacpp)")
    monkeypatch.setenv("WHET_CACHE", str(tmp_path / "cache"))
    path = tiny_gguf.save(tmp_path / "tiny.gguf")
    model, tokens = LanguageModel.from_pretrained(path, device="cpu"), [256, 66, 101, 101, 32]
    adapter = random_adapter(model, path)
    save_gguf(adapter, tmp_path / "a.gguf")
    base = next_logprobs(model, tokens)
    adapter.merge_into(model)
    adapted = next_logprobs(model, tokens)
    assert np.abs(np.subtract(base, adapted)).max() > 1
    for file, expected in [(None, base), (tmp_path / "a.gguf", adapted)]:
        found = next_logprobs_in_llama_cpp(path, file, tokens, tmp_path)
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4)


def test_gguf_of_a_model_with_transposed_weights(tmp_path):
    model = LanguageModel.from_pretrained("whet-pico", device="cpu")
    save_gguf(random_adapter(model, "whet-pico"), tmp_path / "a.gguf")
    fields, tensors = read(tmp_path / "a.gguf")
    width = model.hf_model.config.n_embd
    assert fields["general.architecture"] == "gpt2"
    assert tensors["blk.0.attn_qkv.weight.lora_a"].shape == (2, width)
    assert tensors["blk.0.attn_qkv.weight.lora_b"].shape == (3 * width, 2)


def test_gguf_that_cannot_be_written_leaves_the_file_as_it_was(llama_adapter, tmp_path):
    path = tmp_path / "a.gguf"
    path.write_bytes(b"old")
    neox, empty = tmp_path / "neox", tmp_path / "empty"
    neox.mkdir()
    empty.mkdir()
    (neox / "config.json").write_text('{"architectures": ["GPTNeoXForCausalLM"]}')
    for model, message in [
        (str(neox), "is a GPTNeoXForCausalLM: adapters can be written as GGUF for Gemma"),
        ("whet-pico", "has no counterpart in llama.cpp's gpt2"),
        (str(empty), "cannot be read|has no config.json"),
    ]:
        with pytest.raises(ModelError, match=message):
            save_gguf(llama_adapter, path, model=model)
    assert path.read_bytes() == b"old" and not list(tmp_path.glob("*.new"))


def test_export_on_the_command_line(saved, tmp_path):
    done = CliRunner().invoke(main, ["adapter", "export", str(saved), str(tmp_path / "a.gguf")])
    assert done.exit_code == 0, done.output
    assert read(tmp_path / "a.gguf")[0]["general.type"] == "adapter"
    missing = CliRunner().invoke(main, ["adapter", "export", str(tmp_path / "no"), "a.gguf"])
    assert missing.exit_code == 1 and "contains no adapter" in missing.output


@contextmanager
def engine(status, answer):
    """Something that answers as an engine does; gives its address and the requests."""
    requests = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self):
            body = self.rfile.read(int(self.headers["content-length"]))
            requests.append((self.path, json.loads(body), self.headers["authorization"]))
            self.send_response(status)
            self.send_header("content-length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, *_):
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}", requests
        finally:
            server.shutdown()
            thread.join()


@pytest.mark.parametrize(
    "name, route", [("vllm", "/v1/load_lora_adapter"), ("sglang", "/load_lora_adapter")]
)
def test_engine_is_given_the_folder_and_the_name(saved, name, route):
    with engine(200, b"ok") as (url, requests):
        assert load_into_engine(saved, url + "/", name, api_key="k") == "ad_1"
        done = CliRunner().invoke(main, ["adapter", "load", str(saved), url, "--engine", name])
        assert done.output == "ad_1\n"
    body = {"lora_name": "ad_1", "lora_path": str(saved)}
    assert requests == [(route, body, "Bearer k"), (route, body, None)]


@pytest.mark.parametrize(
    "status, answer, message",
    [
        (404, b"Not Found", r"status 404, Not Found \(start it with --enable-lora and VLLM_ALLOW"),
        (
            400,
            b'{"error": {"message": "rank 64 is too large"}}',
            "status 400, rank 64 is too large",
        ),
        (500, b"\xff" * 5000, "status 500"),
    ],
)
def test_adapter_that_an_engine_refuses_is_kept(saved, status, answer, message):
    files = {path.name: path.read_bytes() for path in saved.iterdir()}
    with engine(status, answer) as (url, _):
        with pytest.raises(ConnectionError, match=message) as caught:
            load_into_engine(saved, url, "vllm")
    assert f"The adapter is still in {saved}" in str(caught.value) and len(str(caught.value)) < 900
    assert files == {path.name: path.read_bytes() for path in saved.iterdir()}


def test_engine_that_is_down_or_is_something_else(saved):
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        with pytest.raises(ConnectionError, match="cannot be reached .*start it, then run this"):
            load_into_engine(saved, f"http://127.0.0.1:{port}", "vllm", timeout_s=0.1)
    done = CliRunner().invoke(
        main, ["adapter", "load", str(saved), f"http://127.0.0.1:{port}", "--engine", "sglang"]
    )
    assert done.exit_code == 1 and "cannot be reached" in done.output
    with pytest.raises(ValueError, match="url is 'localhost:8000': expected http://"):
        load_into_engine(saved, "localhost:8000", "vllm")
    with pytest.raises(ModelError, match="contains no adapter"):
        load_into_engine(saved.parent, f"http://127.0.0.1:{port}", "vllm")
