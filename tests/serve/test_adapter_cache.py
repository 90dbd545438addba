"""The cache of adapters."""

import json

import torch
from hypothesis import given
from hypothesis import strategies as st
from support import serving

from whet.adapt.adapters import Adapter
from whet.adapt.config import LoRA
from whet.serve.adapter_cache import AdapterCache, CachedAdapter, adapter_id


def cached(owner, name, *, size=10, space="docs", rows=(1,), build="one"):
    weights = {"w": torch.zeros(size, dtype=torch.uint8)}
    return CachedAdapter(
        id=name, owner=owner, space_name=space, build_id=build, version="1", adapter_name="lora",
        rows=rows, created=0, adapter=Adapter(LoRA(), weights, "tiny", "", False),
    )  # fmt: skip


@given(
    st.lists(st.tuples(st.sampled_from("ab"), st.integers(0, 9), st.integers(1, 60)), max_size=30)
)
def test_each_owner_evicts_its_own_least_recently_used(puts):
    adapters, orders = AdapterCache(200, owners=2), {"a": {}, "b": {}}
    for owner, name, size in puts:
        order = orders[owner]
        assert adapters.put(cached(owner, str(name), size=size))
        order.pop(str(name), None)
        order[str(name)] = size
        while sum(order.values()) > 100:
            order.pop(next(iter(order)))
        for each, expected in orders.items():
            assert [item.id for item in adapters.list_for(each)] == list(expected)[::-1]
        assert adapters.num_bytes == sum(sum(order.values()) for order in orders.values()) <= 200


def test_adapter_belongs_to_its_owner():
    adapters = AdapterCache(100)
    adapters.put(cached("a", "ad_1"))
    assert adapters.get("b", "ad_1") is None and adapters.list_for("b") == []
    assert not adapters.delete("b", "ad_1") and adapters.delete("a", "ad_1")
    assert adapter_id("a", "m", "h", "1", [1]) != adapter_id("b", "m", "h", "1", [1])


def test_adapter_larger_than_the_capacity_is_not_cached():
    adapters = AdapterCache(5)
    assert not adapters.put(cached("a", "ad_1")) and len(adapters) == 0


def test_stale_adapters_are_evicted():
    adapters = AdapterCache(100)
    adapters.put(cached("a", "ad_1", rows=(1, 2, 1)))
    adapters.put(cached("a", "ad_2", rows=(3,)))
    adapters.put(cached("a", "ad_3", rows=(2,), space="other"))
    adapters.put(cached("a", "ad_4", rows=(3,), build="another"))
    adapters.evict_stale("docs", "one", {1, 3})
    assert [item.id for item in adapters.list_for("a")] == ["ad_3", "ad_2"]


def test_folder_for_other_engines_has_the_cached_adapters(llama_folder, tmp_path):
    place, folder = serving.space(tmp_path / "docs.whet"), tmp_path / "adapters"
    (folder / f"ad_{'0' * 32}").mkdir(parents=True)  # left by an earlier run
    (folder / "mine").mkdir()
    names = lambda: sorted(path.name for path in folder.iterdir())  # noqa: E731
    with serving.running(
        serving.app(llama_folder, place, keys=None, adapter_folder=folder)
    ) as client:
        assert names() == ["mine"]
        create = lambda prompt: client.post(  # noqa: E731
            "/v1/adapters", {"model": "tiny", "prompt": prompt}
        ).json()["id"]
        name = create("bee honey")
        assert names() == [name, "mine"] and create("bee honey") == name
        steps, both = (
            client.post("/v1/completions", {
                "model": "tiny", "prompt": "bee honey", "max_tokens": 1, "adapt": {"use": use}
            }).json()["adapt"]["adapter_id"] for use in ("steps", "both")
        )  # fmt: skip
        assert steps == name != both  # whose steps are smaller
        config = json.loads((folder / name / "adapter_config.json").read_text())
        assert config["peft_type"] == "LORA"
        assert config["base_model_name_or_path"] == str(llama_folder)
        assert (folder / name / "adapter_model.safetensors").exists()
        for each in (name, both):
            client.send("DELETE", f"/v1/adapters/{each}")
        assert names() == ["mine"]
        (folder / "mine").rmdir()
        folder.rmdir()
        folder.write_text("in the way")
        other = create("wax")  # nothing is lost
        assert client.get(f"/v1/adapters/{other}/peft").status == 200
        folder.unlink()
        folder.mkdir()
        assert create("wax") == other and names() == [other]
    assert names() == []
