"""What several tests need: the reference data beside the checkout, and a tiny diffusers checkpoint made on the spot."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import jax
import pytest
from checkpoints import write_tiny

SHARED = Path(__file__).parents[2] / "shared"


@pytest.fixture(scope="session", autouse=True)
def cache_of_the_session(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Tests leave the user's own cache alone, and need not compile what another has, also in another process."""
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("cache")
        patch.setenv("SDJAX_CACHE", str(folder))
        yield folder


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of reference models and configs, which lies beside the checkout."""
    if not SHARED.is_dir():
        pytest.skip(f"the reference data are not there: {SHARED}")
    return SHARED


@pytest.fixture(scope="session")
def shapes_sd(shared: Path) -> Path:
    """A small trained Stable Diffusion in diffusers layout."""
    return shared / "models" / "shapes-sd"


@pytest.fixture(scope="session")
def tiny_original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny checkpoint in diffusers layout; read it only."""
    return write_tiny(tmp_path_factory.mktemp("tiny") / "tiny-sd")


@pytest.fixture
def tiny(tiny_original: Path, tmp_path: Path) -> Path:
    """A copy of the tiny checkpoint, to be damaged at will."""
    return Path(shutil.copytree(tiny_original, tmp_path / "tiny-sd"))


@pytest.fixture
def compilations():
    """Counts XLA compilations (and loads of compiled programs) while it is used."""
    count = []

    def listen(event, duration, **_):
        if event == "/jax/core/compile/backend_compile_duration":
            count.append(event)

    jax.monitoring.register_event_duration_secs_listener(listen)
    yield count
    jax.monitoring.unregister_event_duration_listener(listen)
