import shutil
from pathlib import Path

import pytest

from mode_ssm.decode import (
    arrival_kernel,
    beam_kernel,
    compiled,
    correction_kernel,
    emission_kernel,
    history_kernel,
    transducer_kernel,
)

FOLDER = Path(compiled.__file__).parent


@pytest.mark.parametrize("name", compiled._SOURCES)
def test_a_change_of_any_source_is_a_new_fingerprint(tmp_path, name):
    folder = tmp_path / "mode_ssm" / "decode"
    folder.mkdir(parents=True)
    for source in compiled._SOURCES:
        shutil.copy(FOLDER / source, folder / source)
    assert compiled.fingerprint(folder) == compiled.fingerprint(FOLDER)
    (folder / name).write_text((folder / name).read_text() + "\n")
    assert compiled.fingerprint(folder) != compiled.fingerprint(FOLDER)


def test_numba_compares_the_fingerprint_of_every_function():
    functions = [
        function
        for module in (
            arrival_kernel,
            beam_kernel,
            history_kernel,
            correction_kernel,
            emission_kernel,
            transducer_kernel,
        )
        for function in vars(module).values()
        if hasattr(function, "py_func")
    ]
    assert len(functions) > 20
    stamps = {function._cache._cache_file._source_stamp for function in functions}
    assert stamps == {compiled.fingerprint(FOLDER)}


def test_another_fingerprint_finds_nothing_in_the_cache(monkeypatch, tmp_path):
    monkeypatch.setattr("numba.core.config.CACHE_DIR", str(tmp_path))

    def double(x):
        return 2 * x

    def hits(stamp):
        monkeypatch.setattr(compiled, "_STAMP", stamp)
        function = compiled.compiled(double)
        assert function(3) == 6
        return sum(function.stats.cache_hits.values())

    assert [hits(stamp) for stamp in ("a", "a", "b")] == [0, 1, 0]
