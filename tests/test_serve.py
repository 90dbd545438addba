"""The server as OpenAI's own client sees it, and what it adds."""

import gc
import io
import zipfile

import pytest
import serving
import tiny
from openai import BadRequestError, NotFoundError, OpenAI
from peft import PeftModel
from transformers import AutoModelForCausalLM

from whet.adapt.model import LanguageModel
from whet.serve.work import Work


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return tiny.save(tmp_path_factory.mktemp("tiny"), "llama")


@pytest.fixture(scope="module")
def server(model, tmp_path_factory):
    place = serving.space(tmp_path_factory.mktemp("space") / "docs.whet")
    with serving.running(serving.app(model, place, methods=("lora", "head", "full"))) as client:
        yield client


@pytest.fixture(scope="module")
def openai(server):
    with OpenAI(
        base_url=f"{server.url}/v1", api_key=serving.token("chief"), max_retries=0
    ) as client:
        yield client


def test_models_are_the_sharpened_one_and_the_base(openai):
    assert [model.id for model in openai.models.list()][:2] == ["tiny", "tiny@base"]


def test_completion_comes_with_how_it_was_sharpened(openai):
    made = openai.completions.create(
        model="tiny", prompt="bee dance", max_tokens=4, temperature=0,
        extra_body={"adapt": {"n": 3, "return": ["selection", "trace", "texts"]}},
    )  # fmt: skip
    assert made.choices[0].finish_reason in ("length", "stop")
    assert made.usage.total_tokens == made.usage.prompt_tokens + made.usage.completion_tokens
    assert made.adapt["steps"] == 3 and made.adapt["stop_reason"] == "n"
    assert sum(picked["count"] for picked in made.adapt["selection"]) == 3
    assert len(made.adapt["sigma"]) == 4 and len(made.adapt["loss"]) == 3
    assert made.adapt["sigma"] == sorted(made.adapt["sigma"], reverse=True)
    assert made.usage.adapt_tokens > 0


def test_streamed_text_is_the_whole_text(openai):
    ask = {"model": "tiny", "prompt": "bee dance", "max_tokens": 6, "temperature": 0}
    whole = openai.completions.create(**ask)
    parts = list(openai.completions.create(**ask, stream=True))
    assert "".join(part.choices[0].text for part in parts) == whole.choices[0].text
    assert parts[-1].choices[0].finish_reason == whole.choices[0].finish_reason
    assert not any(hasattr(part, "adapt") for part in parts)  # nobody asked


def test_chat_streams_with_usage_and_progress_when_asked(openai):
    parts = list(
        openai.chat.completions.create(
            model="tiny", messages=[{"role": "user", "content": "bee"}], max_tokens=4, stream=True,
            stream_options={"include_usage": True},
            extra_body={"adapt": {"n": 2, "progress": True}},
        )
    )  # fmt: skip
    progress = [part.adapt_progress for part in parts if hasattr(part, "adapt_progress")]
    assert len(progress[0]["selection"]) >= 1
    assert [event["done"] for event in progress[1:]] == [1, 2]
    assert parts[0].choices[0].delta.role == "assistant"
    assert parts[-1].usage.completion_tokens <= 4 and parts[-1].choices == []


def test_base_model_answers_as_before_and_after(openai):
    def base():
        made = openai.completions.create(
            model="tiny@base", prompt="bee", max_tokens=8, temperature=0
        )
        return made.choices[0].text

    before = base()
    openai.completions.create(model="tiny", prompt="bee dance", max_tokens=1)
    assert base() == before


def test_deadline_of_nothing_is_answered_by_the_base_model(openai):
    ask = {"prompt": "bee dance", "max_tokens": 8, "temperature": 0}
    late = openai.completions.create(
        model="tiny", **ask, extra_body={"adapt": {"deadline_ms": 0, "cache": "off"}}
    )
    assert late.adapt["steps"] == 0 and late.adapt["stop_reason"] == "deadline"
    base = openai.completions.create(model="tiny@base", **ask)
    assert late.choices[0].text == base.choices[0].text


def test_prompt_that_shares_nothing_with_the_texts_is_answered_all_the_same(openai):
    made = openai.completions.create(model="tiny", prompt="§§", extra_body={"adapt": {}})
    assert made.adapt["steps"] == 0 and made.adapt["stop_reason"] == "nothing_near"


def test_kept_adapter_is_taken_for_the_same_texts(server, openai):
    ask = {"model": "tiny", "prompt": "bee honey", "max_tokens": 8, "temperature": 0}
    adapt = {"n": 3}
    first = openai.completions.create(**ask, extra_body={"adapt": adapt | {"cache": "refresh"}})
    again = openai.completions.create(**ask, extra_body={"adapt": adapt})
    assert not first.adapt["cached"] and again.adapt["cached"]
    assert first.adapt["adapter"] == again.adapt["adapter"]
    assert first.choices[0].text == again.choices[0].text
    named = openai.completions.create(**ask | {"model": f"tiny@{first.adapt['adapter']}"})
    assert named.choices[0].text == first.choices[0].text
    assert 'whet_adapter_cache_total{hit="hit"}' in server.of("chief").get("/metrics").body.decode()


@pytest.mark.parametrize("method", ["lora", "head", "full"])
def test_every_method_answers_and_leaves_the_base_as_it_was(openai, method):
    ask = {"prompt": "hive pollen", "max_tokens": 8, "temperature": 0}
    base = openai.completions.create(model="tiny@base", **ask)
    adapt = {"method": method, "n": 3, "cache": "off", "return": ["trace"]}
    made = openai.completions.create(model="tiny", **ask, extra_body={"adapt": adapt})
    assert made.adapt["method"] == method and len(made.adapt["loss"]) == 3
    after = openai.completions.create(model="tiny@base", **ask)
    assert after.choices[0].text == base.choices[0].text


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")
def test_exported_adapter_answers_alike_in_peft(server, model, tmp_path):
    chief = server.of("chief")
    made = chief.post("/v1/adapters", {"model": "tiny", "prompt": "hive pollen"}).json()
    packed = chief.get(f"/v1/adapters/{made['id']}/peft")
    assert server.of("legal").get(f"/v1/adapters/{made['id']}/peft").status == 404
    with zipfile.ZipFile(io.BytesIO(packed.body)) as file:
        assert all(name.startswith(f"{made['id']}/") for name in file.namelist())
        file.extractall(tmp_path)
    there = PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(model), tmp_path / made["id"]
    )
    bits = LanguageModel(there.merge_and_unload(), tiny.tokenizer(), "there").score(
        " wax", context="bee"
    )
    asked = {"model": made["model"], "prompt": "bee", "text": " wax"}
    told = chief.post("/v1/score", asked).json()
    assert told["bits_per_byte"]["sharpened"] == pytest.approx(bits.bits_per_byte, rel=1e-5)
    assert told["bits_per_byte"]["base"] != told["bits_per_byte"]["sharpened"]


def test_adapter_is_made_listed_used_and_dropped(server):
    chief = server.of("chief")
    made = chief.post("/v1/adapters", {"model": "tiny", "prompt": "queen"}).json()
    assert made["steps"] == 3 and made["model"] == f"tiny@{made['id']}"
    assert made["id"] in [kept["id"] for kept in chief.get("/v1/adapters").json()["data"]]
    assert chief.get(f"/v1/adapters/{made['id']}").json() == made
    assert server.of("legal").get(f"/v1/adapters/{made['id']}").status == 404
    assert chief.send("DELETE", f"/v1/adapters/{made['id']}").json()["deleted"]
    assert chief.get(f"/v1/adapters/{made['id']}").status == 404


def test_score_tells_bits_per_byte_before_and_after(server):
    told = server.of("chief").post(
        "/v1/score", {"model": "tiny", "prompt": "bee dance", "text": " wax", "adapt": {"n": 3}}
    ).json()  # fmt: skip
    per_byte = told["bits_per_byte"]
    assert per_byte["base"] != per_byte["sharpened"] and told["bytes"] == 4
    assert told["nll"]["base"] == pytest.approx(per_byte["base"] * 4 * 0.6931471805599453)


def test_select_and_search_need_no_model(server):
    picks = server.of("chief").post("/v1/select", {"prompt": "bee dance", "n": 4}).json()
    assert len(picks["data"]) == 4 and len(picks["sigma"]) == 5
    found = server.of("chief").post("/v1/search", {"prompt": "bee dance", "k": 5}).json()
    scores = [abs(one["score"]) for one in found["data"]]
    assert len(scores) == 5 and scores == sorted(scores, reverse=True)


def test_nothing_of_a_request_waits_for_a_garbage_collection(server):
    gc.collect()
    gc.disable()
    try:
        body = {"model": "tiny", "prompt": "bee", "max_tokens": 2}
        assert server.of("chief").post("/v1/completions", body).status == 200
        server.get("/health")
        assert not [work for work in gc.get_objects() if type(work) is Work]
    finally:
        gc.enable()


def test_errors_are_those_that_the_client_knows(openai):
    with pytest.raises(NotFoundError, match="no model"):
        openai.completions.create(model="gpt-4", prompt="bee")
    with pytest.raises(BadRequestError, match="context") as caught:
        openai.completions.create(model="tiny", prompt="bee " * 50, max_tokens=4)
    assert caught.value.code == "context_length_exceeded"
    with pytest.raises(BadRequestError) as caught:
        openai.completions.create(model="tiny", prompt="bee", extra_body={"adapt": {"steps": 3}})
    assert caught.value.param == "adapt.steps"


def test_stop_text_ends_the_answer(openai):
    ask = {"model": "tiny@base", "prompt": "bee", "max_tokens": 12, "temperature": 0}
    whole = openai.completions.create(**ask).choices[0].text
    cut = openai.completions.create(**ask, stop=[whole[3]])
    assert cut.choices[0].text == whole[: whole.index(whole[3])]
    assert cut.choices[0].finish_reason == "stop"
