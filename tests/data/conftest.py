import pytest


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    """A cache folder for each test, so that none sees what another or the user has built."""
    monkeypatch.setenv('BIGVLM_CACHE', str(tmp_path / 'cache'))
