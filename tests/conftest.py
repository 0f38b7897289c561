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


@pytest.fixture(scope="module")
def caches(tmp_path_factory):
    """Corpora and compiled programs of the tests of one file: equal programs compile once."""
    import jax
    from jax.experimental.compilation_cache import compilation_cache

    folder = tmp_path_factory.mktemp("cache")
    before = jax.config.jax_compilation_cache_dir, jax.config.jax_persistent_cache_min_compile_time_secs
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LLMLAB_CACHE", str(folder))
        jax.config.update("jax_compilation_cache_dir", str(folder / "xla"))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
        compilation_cache.reset_cache()  # jax looks at its settings only once
        yield
    jax.config.update("jax_compilation_cache_dir", before[0])
    jax.config.update("jax_persistent_cache_min_compile_time_secs", before[1])
    compilation_cache.reset_cache()
