"""Models and clusters that the suites of this folder share."""

import os
import pathlib
import subprocess

import pytest
from cluster import Cluster


@pytest.fixture(scope="session")
def tiny_model(bin_dir, tmp_path_factory):
    """A random model of 512 tokens' context: noise, the same every time."""
    path = tmp_path_factory.mktemp("model") / "tiny.gguf"
    subprocess.run([bin_dir / "make-tiny-model", "--preset=gqa", f"--out={path}"], check=True, timeout=60)
    return path


@pytest.fixture(scope="session")
def real_model():
    path = os.environ.get("LOOPSERVE_MODEL", "")
    if not pathlib.Path(path).is_file():
        pytest.skip("LOOPSERVE_MODEL is not set: no real model ('make model' gets one)")
    return path


@pytest.fixture(scope="session")
def tiny_up_args():
    """Small tiers, one thread: a tiny cluster starts in a moment."""
    return ["--threads", "1", "--kv-device-bytes", "16MiB", "--kv-host-bytes", "16MiB", "--kv-disk-bytes",
            "64MiB", "--store-host-bytes", "16MiB", "--store-disk-bytes", "64MiB"]


@pytest.fixture(scope="module")
def shared(bin_dir, tiny_model, tmp_path_factory, tiny_up_args):
    """A cluster that no test of the module breaks."""
    with Cluster(bin_dir, tmp_path_factory.mktemp("shared"), tiny_model, up_args=tiny_up_args) as cluster:
        yield cluster


@pytest.fixture
def make_cluster(bin_dir, tiny_model, tmp_path, tiny_up_args):
    """make_cluster(workers=2, model=..., up_args=[...]): a cluster for this test alone."""
    clusters = []

    def make(workers=2, model=None, up_args=(), name="cluster"):
        cluster = Cluster(bin_dir, tmp_path / name, model or tiny_model, workers,
                          tiny_up_args + list(up_args))
        clusters.append(cluster)
        cluster.up()
        return cluster

    yield make
    for cluster in clusters:
        cluster.close()
