"""Shards on two Ray nodes of this machine pass the conformance tests and survive dying actors."""

import importlib
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import numpy as np
import psutil
import pytest
from click.testing import CliRunner
from support.hashing_embedder import DyingOnce, HashingEmbedder
from support.store_conformance import *  # noqa: F403  # its tests, and the fixture they share
from support.store_conformance import assert_same, disk_writer, table, units

from whet.cli import main
from whet.data.documents import Document
from whet.data.filters import Compare, parse
from whet.errors import SpaceError
from whet.space.ray.cluster import open_reader, serve
from whet.space.ray.reader import RayReader, SpaceDescriptor
from whet.space.ray.shard import split_segments
from whet.space.space import DataSpace
from whet.space.store.writer import DiskWriter


def ray():
    return importlib.import_module("ray")


@pytest.fixture(scope="module")
def nodes():
    pytest.importorskip("ray", reason="ray is missing (extra: ray)")
    from ray.cluster_utils import Cluster as Nodes

    nodes, size = Nodes(), {"num_cpus": 2, "object_store_memory": 80 * 2**20}
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("PYTHONPATH", os.pathsep.join(sys.path), prepend=os.pathsep)
        nodes.add_node(node_ip_address="127.0.0.2", include_dashboard=False, **size)
        nodes.add_node(node_ip_address="127.0.0.3", **size)
    yield nodes.address
    ray().shutdown()
    nodes.shutdown()


@pytest.fixture(scope="module")
def actor_names(nodes, tmp_path_factory):
    """Names of the actors of two shards; every call names the folder, so they serve any."""
    folder = tmp_path_factory.mktemp("served") / "first"
    disk_writer(folder).add(table(3), units(3))
    served = serve(folder, nodes)
    yield open_reader(served.address).descriptor.actor_names
    served.close()


class ShardedStore:
    """Writes to the folder; reads through the shards."""

    def __init__(self, folder, actor_names):
        self._writer, self._actor_names = disk_writer(folder), actor_names
        self.add, self.delete = self._writer.add, self._writer.delete

    def snapshot(self, actor_names=None, partial=False, timeout_s=30.0):
        self.local = self._writer.snapshot()
        descriptor = SpaceDescriptor.create(self.local, actor_names or self._actor_names)
        return RayReader.connect(descriptor, ray(), partial=partial, timeout_s=timeout_s)

    def close(self):
        self._writer.close()


@pytest.fixture
def make(actor_names):
    return lambda folder: ShardedStore(folder, actor_names)


def actor(name):
    return ray().get_actor(name, namespace="whet")


def pid(name):
    return ray().get(actor(name).__ray_call__.remote(lambda self: os.getpid()))


def test_killed_shards_restart_and_answer(store, actor_names):
    reader, best = store.snapshot(), store.local.search(units(2), 60)
    victim = pid(actor_names[0][0])
    actor(actor_names[0][0]).__ray_call__.remote(lambda self: time.sleep(60))  # the call waits
    with ThreadPoolExecutor(1) as pool:
        found = pool.submit(reader.search, units(2), 60)
        ray().get(actor(actor_names[1][0]).__ray_call__.remote(lambda self: None))
        os.kill(victim, signal.SIGKILL)
        assert_same(found.result(), best)
    assert pid(actor_names[0][0]) != victim


@pytest.fixture
def silent(actor_names):
    """The second shard does not respond."""
    victim = pid(actor_names[1][0])
    os.kill(victim, signal.SIGSTOP)
    yield
    os.kill(victim, signal.SIGCONT)


def test_missing_shards_are_an_error_unless_partial(store, silent):
    with pytest.raises(
        SpaceError, match="1 of 2 shards did not respond, such as shard 1: it was silent"
    ):
        store.snapshot(timeout_s=0.5).search(units(2), 5)
    found = store.snapshot(timeout_s=0.5, partial=True).search(units(2), 60, exact=True)
    assert (found.shards_ok, found.shards, found.exact) == (1, 2, False)
    assert (found.ids >= 0).sum(axis=1).tolist() == [30, 30]


def test_replicas_answer_for_silent_ones(store, actor_names, silent):
    [one], [other] = actor_names
    reader = store.snapshot(actor_names=[[one], [other, one]], timeout_s=2)
    for _ in range(2):
        assert_same(reader.search(units(2), 60), store.local.search(units(2), 60))


def test_shards_name_broken_files(store):
    reader = store.snapshot()
    broken = max(store.local.path.glob("segments/*/vectors.npy"))
    broken.write_bytes(b"")
    with pytest.raises(SpaceError, match=f"{broken} is broken"):
        reader.search(units(2), 5)


def test_rows_that_fail_a_filter_never_leave_a_shard(store, actor_names):
    store.snapshot()
    spec, where = split_segments(store.local, 2)[0], Compare("i", "<", 5)
    for method, arguments in [
        ("ids", ()),
        ("vectors", (np.arange(60),)),
        ("rows", (np.arange(60), ["id"])),
    ]:
        answer = ray().get(actor(actor_names[0][0]).call.remote(spec, where, method, *arguments))
        assert len(answer if method == "ids" else answer.values) in (0, 5)


@pytest.fixture
def space(tmp_path):
    texts = [f"{w} {v} {n}" for n in range(20) for w in ("red", "blue") for v in ("sea", "sky")]
    documents = [Document(f"t{i}", text, {"i": i}) for i, text in enumerate(texts)]
    space = DataSpace.build(documents[:50], tmp_path / "colors")
    return space.add(documents[50:])


def test_served_spaces_equal_their_folder(space, nodes):
    served = serve(space.path, nodes, replicas=2, name="colors")
    remote_space = DataSpace.open(served.address, where=parse("i < 60"))
    local_space = space.filter(parse("i < 60"))
    assert (
        len(remote_space) == 60 and remote_space.embedder.fingerprint == space.embedder.fingerprint
    )
    query = space.embedder.encode(["blue sea"])
    [one], [other] = remote_space.search(query, 9), local_space.search(query, 9)
    np.testing.assert_array_equal(one.rows, other.rows)
    assert remote_space.texts(one.rows) == local_space.texts(one.rows)
    with pytest.raises(SpaceError, match="'colors' is served at .* already"):
        serve(space.path, nodes, name="colors")
    served.close()
    with pytest.raises(SpaceError, match="no data space 'colors' is served"):
        DataSpace.open(served.address)


def test_clients_keep_the_version_they_opened(space, nodes):
    served = serve(space.path, nodes, name="versions")
    before = DataSpace.open(served.address)
    space.delete(where=parse("i < 70"))
    with DiskWriter(space.path) as writer:
        writer.compact()
    assert len(DataSpace.open(served.address)) == 10
    os.kill(pid("versions/0/0"), signal.SIGKILL)
    assert len(before.texts(before.rows)) == 80
    served.close()


def test_workers_embed_like_this_process_even_if_one_dies(nodes, tmp_path):
    texts = [Document(f"t{i}", f"word{i % 7} {i}", {}) for i in range(5000)]
    local_space = DataSpace.build(texts, tmp_path / "near", HashingEmbedder())
    remote_space = DataSpace.build(texts, tmp_path / "far", DyingOnce(tmp_path / "died"), ray=nodes)
    assert (tmp_path / "died").exists()
    assert remote_space.ids == local_space.ids
    np.testing.assert_array_equal(
        remote_space.vectors(remote_space.rows), local_space.vectors(local_space.rows)
    )


def kill_first(title):
    """Kill the first process of that title among the descendants of this one."""
    while True:
        for process in psutil.Process().children(recursive=True):
            with suppress(psutil.Error):
                if next(iter(process.cmdline()), "").startswith(title):
                    process.kill()
                    return process.pid


def test_evaluation_runs_survive_dead_workers(nodes, tmp_path):
    pytest.importorskip("torch")
    from support import eval_fixtures

    here = eval_fixtures.build(tmp_path)
    with ThreadPoolExecutor(1) as pool:
        killed = pool.submit(kill_first, "ray::_record")
        remote_run = eval_fixtures.run(here, tmp_path / "far", ray=nodes, per_set=1)
        assert killed.result()
    local_run = eval_fixtures.run(here, tmp_path / "near", per_set=1)
    one, two = (
        {(r["prompt"], r["method"], r["part"], r["step"]): r for r in run.table.to_pylist()}
        for run in (local_run, remote_run)
    )
    assert one.keys() == two.keys() and len(local_run.table) == len(remote_run.table)
    for key, row in one.items():
        assert two[key]["document"] == row["document"]
        assert (two[key]["bits"] or 0) == pytest.approx(row["bits"] or 0, rel=1e-5)
    with pytest.raises(ValueError, match="workers is 2, but ray is given too"):
        eval_fixtures.run(here, tmp_path / "far", ray=nodes, workers=2)


def test_the_command_serves_until_it_is_interrupted(space, nodes):
    command = [sys.executable, "-m", "whet", "ray", "serve", str(space.path), "--ray", nodes]
    with subprocess.Popen(
        [*command, "--name", "cli"], stdout=subprocess.PIPE, text=True
    ) as process:
        address = process.stdout.readline().strip()
        assert address == f"ray:{nodes}/cli"
        found = CliRunner().invoke(main, ["select", address, "blue sky", "-n", "3", "-k", "5"])
        process.terminate()
    assert found.exit_code == 0 and "blue sky" in found.output and process.returncode == 0
    again = CliRunner().invoke(main, ["select", address, "blue sky"])
    assert again.exit_code == 1 and "no data space 'cli' is served" in again.output


@pytest.mark.parametrize("address, message", [
    ("ray:127.0.0.2:1/x", "no Ray cluster answers at 127.0.0.2:1"),
    ("ray:nowhere/x", "'nowhere': expected HOST:PORT"),
])  # fmt: skip
def test_invalid_addresses_are_reported_at_once(address, message):
    pytest.importorskip("ray", reason="ray is not installed (extra: ray)")
    code = "import sys; from whet.cli import main; main(sys.argv[1:])"
    asked = [sys.executable, "-c", code, "select", address, "a prompt"]
    found = subprocess.run(asked, capture_output=True, text=True)
    assert message in found.stderr and found.returncode in (1, 2)
