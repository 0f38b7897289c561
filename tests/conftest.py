"""8 host devices in each process of the tests, set before jax starts.

What is compiled here runs a few times, so XLA is told to compile quickly rather than well: most of the time of these
tests would be its passes.
"""

import os
from importlib.metadata import version

QUICK = " --xla_backend_optimization_level=0"
if version("jaxlib").startswith("0.10."):  # later ones abort on this flag
    QUICK += " --xla_cpu_use_fusion_emitters=false"
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["TPU_SKIP_MDS_QUERY"] = "1"
os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + QUICK + " --xla_force_host_platform_device_count=8"

import pytest  # noqa: E402


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory):
    """The directory of a tiny published checkpoint with its tokenizer."""
    from tests.interop.tiny import checkpoint

    return checkpoint(tmp_path_factory.mktemp("checkpoint"))
