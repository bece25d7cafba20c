from pathlib import Path

import pytest
from stations import Stations


@pytest.fixture(scope="session")
def stations(real_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Stations:
    """A real checkpoint's way to the servers, each station made on first use."""
    return Stations(tmp_path_factory.mktemp("stations"), real_checkpoint)
