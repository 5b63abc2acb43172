"""Files and disks that went bad: damage costs time, never a wrong token, a session or a process."""

import pathlib
import random
import shutil
import subprocess

import pytest
from cluster import fails, session_pb2, until

TEXT = "the quick brown fox jumps over the lazy dog, again and again "


def block_files(cluster):
    """What the tiers wrote on disk: KV blocks, not the sessions' records."""
    return [p for p in cluster.dir.rglob("*") if p.is_file() and p.stat().st_size > 0
            and "blocks" in p.relative_to(cluster.dir).parts]


def truncate(data, rng):
    return data[:rng.randrange(len(data))]


def flip_bits(data, rng):
    damaged = bytearray(data)
    for _ in range(max(8, len(data) // 512)):
        damaged[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    return bytes(damaged)


def garbage(data, rng):
    return rng.randbytes(len(data))


def empty(data, rng):
    return b""


@pytest.mark.parametrize("damage", [truncate, flip_bits, garbage, empty], ids=lambda d: d.__name__)
def test_damaged_cache_files_are_recomputed(make_cluster, damage):
    cluster = make_cluster()
    first = cluster.chat(TEXT * 3, max_tokens=12)
    expected = cluster.chat("and then?", session=cluster.fork(first.session), max_tokens=24)
    cluster.down()
    files = block_files(cluster)
    assert files, "nothing was written to disk"
    rng = random.Random(7)
    for path in files:
        path.write_bytes(damage(path.read_bytes(), rng))
    cluster.up()
    after = cluster.chat("and then?", session=first.session, max_tokens=24)
    assert after.index == 1
    assert after.tokens == expected.tokens
    assert after.usage.computed_tokens > 0
    assert cluster.alive("w1") and cluster.alive("w2") and cluster.alive("kvstore")
    assert cluster.chat("next", session=first.session).index == 2


def test_cache_files_that_vanished_are_recomputed(make_cluster):
    cluster = make_cluster()
    first = cluster.chat(TEXT * 3, max_tokens=12)
    expected = cluster.chat("and then?", session=cluster.fork(first.session), max_tokens=24)
    cluster.down()
    for path in block_files(cluster):
        path.unlink()
    cluster.up()
    after = cluster.chat("and then?", session=first.session, max_tokens=24)
    assert after.tokens == expected.tokens
    assert after.usage.computed_tokens == after.usage.prompt_tokens


def test_a_foreign_models_cache_is_not_used(make_cluster, bin_dir, tmp_path):
    """The same directory under another model: nothing of the old KV may be taken for the new one's."""
    other = tmp_path / "other.gguf"
    subprocess.run([bin_dir / "make-tiny-model", "--preset=gqa", "--seed=99", f"--out={other}"], check=True)
    fresh = make_cluster(model=other, name="fresh")
    expected = fresh.chat(TEXT * 3, max_tokens=24)
    cluster = make_cluster(name="used")
    ours = cluster.chat(TEXT * 3, max_tokens=24)
    cluster.down()
    cluster.model = str(other)
    cluster.up()
    theirs = cluster.chat(TEXT * 3, max_tokens=24)
    assert theirs.usage.computed_tokens == theirs.usage.prompt_tokens
    assert theirs.tokens == expected.tokens
    assert theirs.tokens != ours.tokens


@pytest.fixture
def small_disk(tmp_path):
    """small_disk(bytes): a file system of its own, so that it can be full or read-only."""
    mounted = []

    def make(size):
        path = tmp_path / f"disk{len(mounted)}"
        path.mkdir()
        run = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", path],
                             capture_output=True, text=True)
        if run.returncode != 0:
            pytest.skip(f"SKIPPED LOUDLY: this machine lets nobody mount a tmpfs: {run.stderr.strip()}")
        mounted.append(path)
        return path

    yield make
    for path in mounted:
        subprocess.run(["umount", "-l", path], check=True)


def conversations(cluster, count):
    sessions = [cluster.chat(f"{i} {TEXT * 3}", max_tokens=8).session for i in range(count)]
    for session in sessions:
        again = cluster.chat("go on", session=session, max_tokens=8)
        assert again.index == 1
    return sessions


def test_a_full_disk_loses_nothing_but_cache(make_cluster, small_disk, tmp_path):
    disk = small_disk(256 * 1024)
    target = tmp_path / "cluster"
    target.mkdir()
    for name in ("w1", "w2"):
        (disk / name).mkdir()
    (target / "workers").symlink_to(disk)
    cluster = make_cluster()
    sessions = conversations(cluster, 12)
    for session in sessions:
        cluster.park(session)
    used = shutil.disk_usage(disk)
    assert used.free < used.total / 2, "the disk was meant to fill up"
    for session in sessions:
        assert cluster.chat("still?", session=session, max_tokens=8).index == 2


def test_a_read_only_disk_is_told_and_nothing_is_lost(make_cluster, small_disk, tmp_path):
    disk = small_disk(16 << 20)
    target = tmp_path / "cluster"
    target.mkdir()
    for name in ("w1", "w2"):
        (disk / name).mkdir()
    (target / "workers").symlink_to(disk)
    cluster = make_cluster()
    session = conversations(cluster, 1)[0]
    expected = cluster.chat("and then?", session=cluster.fork(session), max_tokens=16)
    cluster.down()
    subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
    refused = cluster.cli("up", "--port", "0", "--dir", str(cluster.dir), "--model", cluster.model, check=False)
    assert refused.returncode == 1
    assert "Read-only file system" in refused.stderr and "w1" in refused.stderr
    subprocess.run(["mount", "-o", "remount,rw", disk], check=True)
    cluster.up()
    after = cluster.chat("and then?", session=session, max_tokens=16)
    assert (after.index, after.tokens) == (2, expected.tokens)


def fill(path):
    with open(path, "wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(4096))
        except OSError:
            pass  # full


def test_a_full_store_stops_no_conversation(make_cluster, small_disk, tmp_path):
    """Where only records lie: beside blocks, the blocks would give way."""
    disk = small_disk(256 * 1024)
    (tmp_path / "cluster" / "kvstore").mkdir(parents=True)
    (tmp_path / "cluster" / "kvstore" / "sessions").symlink_to(disk)
    cluster = make_cluster()
    session = conversations(cluster, 1)[0]
    fill(disk / "filler")
    turn = cluster.chat("still?", session=session, max_tokens=8)
    assert turn.index == 2
    assert cluster.chat("hello", max_tokens=8).index == 0
    assert "the kvstore does not take session records" in cluster.log(turn.worker)
    (disk / "filler").unlink()
    until(lambda: "session records brought to the kvstore" in cluster.log(turn.worker))
    cluster.kill(turn.worker)
    assert cluster.chat("and now?", session=session, max_tokens=8).index == 3


def test_a_stores_blocks_give_way_to_its_records(make_cluster, small_disk, tmp_path):
    disk = small_disk(1 << 20)
    (tmp_path / "cluster").mkdir()
    (tmp_path / "cluster" / "kvstore").symlink_to(disk)
    cluster = make_cluster()
    sessions = conversations(cluster, 24)
    for session in sessions:
        assert cluster.chat("still?", session=session, max_tokens=8).index == 2
    used = shutil.disk_usage(disk)
    assert used.total / 32 < used.free < used.total / 2, "full but for the reserve"
    for worker in ("w1", "w2"):
        assert "the kvstore does not take session records" not in cluster.log(worker)


def test_a_read_only_store_stops_no_conversation(make_cluster):
    cluster = make_cluster()
    sessions = conversations(cluster, 2)
    records = cluster.dir / "kvstore" / "sessions"
    run = subprocess.run(["mount", "--bind", records, records], capture_output=True, text=True)
    if run.returncode != 0:
        pytest.skip(f"SKIPPED LOUDLY: this machine lets nobody mount: {run.stderr.strip()}")
    try:
        subprocess.run(["mount", "-o", "remount,bind,ro", records], check=True)
        workers = {}
        for session in sessions:
            turn = cluster.chat("still?", session=session, max_tokens=8)
            workers[session] = turn.worker
            assert turn.index == 2
            assert "Read-only file system" in cluster.log(turn.worker)
            assert "kvstore lost" not in cluster.log(turn.worker)
        assert cluster.chat("hello", max_tokens=8).index == 0
        # Deleting cannot be promised: the service would bring the session back.
        error = fails(lambda: cluster.sessions.DeleteSession(
            session_pb2.DeleteSessionRequest(session_id=sessions[1]), timeout=30))
        assert (error.code, error.reason) == ("INTERNAL", "INTERNAL")
    finally:
        subprocess.run(["umount", records], check=True)
    for worker in workers.values():
        until(lambda w=worker: "session records brought to the kvstore" in cluster.log(w))
    cluster.kill(workers[sessions[0]])
    assert cluster.chat("and now?", session=sessions[0], max_tokens=8).index == 3


@pytest.mark.parametrize("executable", ["loopserve-worker", "loopserve-kvstore"])
def test_a_store_directory_that_cannot_be_is_told(bin_dir, tiny_model, tmp_path, executable):
    """A plain file where the directory should be, which stops root as well."""
    path = tmp_path / "file"
    path.write_text("in the way")
    args = {"loopserve-worker": [f"--model={tiny_model}", f"--kv-disk-dir={path}", "--id=w1"],
            "loopserve-kvstore": [f"--dir={path}"]}[executable]
    run = subprocess.run([bin_dir / executable, "--listen=127.0.0.1:0", "--metrics-listen=127.0.0.1:0",
                          *args], capture_output=True, text=True, timeout=60)
    assert run.returncode in (1, 2), run
    assert str(path) in run.stdout + run.stderr
    assert path.read_text() == "in the way"


def damaged_models(data):
    rng = random.Random(3)
    for cut in (0, 3, 20, 100, len(data) // 3, len(data) - 1):
        yield f"cut at {cut}", data[:cut]
    yield "other magic", b"ELF!" + data[4:]
    yield "version 77", data[:4] + (77).to_bytes(4, "little") + data[8:]
    yield "2^63 tensors", data[:8] + (2**63).to_bytes(8, "little") + data[16:]
    yield "2^64-1 keys", data[:16] + (2**64 - 1).to_bytes(8, "little") + data[24:]
    for i in range(24):  # the header only: a flipped weight is a legal, other model
        at, bit = rng.randrange(min(4096, len(data))), 1 << rng.randrange(8)
        yield f"bit {bit} of byte {at} flipped", data[:at] + bytes([data[at] ^ bit]) + data[at + 1:]


def test_damaged_models_end_the_worker_with_a_clear_line(bin_dir, tiny_model, tmp_path):
    path = tmp_path / "damaged.gguf"
    refused = 0
    for name, data in damaged_models(pathlib.Path(tiny_model).read_bytes()):
        path.write_bytes(data)
        process = subprocess.Popen(
            [bin_dir / "loopserve-worker", "--id=w1", "--listen=127.0.0.1:0", "--threads=1",
             "--metrics-listen=127.0.0.1:0", f"--model={path}", "--kv-device-bytes=4MiB",
             "--kv-host-bytes=1MiB"], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        lines = []
        for line in process.stdout:
            lines.append(line)
            if line.startswith("ready "):
                process.terminate()
        code = process.wait(timeout=60)
        ready = any(line.startswith("ready ") for line in lines)
        if ready:  # the damage hit what does not matter, e.g. a name in the vocabulary
            assert code in (0, 128 + 15), (name, code, lines)
            continue
        refused += 1
        assert code in (1, 2), (name, code, lines)
        assert lines and len(lines[-1].strip()) > 10, (name, lines)
    assert refused >= 10
