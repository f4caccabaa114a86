import logging
import multiprocessing

import numpy as np
import pytest

from mode_ssm.lm.lexicon_cache import cached, fingerprint, pack_entries, unpack_entries
from mode_ssm.ops.cpu.build import cache_folder


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("MODE_SSM_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def never():
    raise AssertionError("was in the cache")


def test_arrays_are_made_once(folder):
    made = {"a": np.arange(5), "b": np.array(["x"])}
    assert cached("name", lambda: made) is made
    again = cached("name", never)
    assert again.keys() == made.keys()
    np.testing.assert_array_equal(again["a"], made["a"])
    assert [path.name for path in folder.iterdir()] == ["name.npz"]


@pytest.mark.parametrize("damage", [b"", b"PK\x03\x04 cut off", b"not an archive"])
def test_a_damaged_file_is_made_anew(folder, caplog, damage):
    cached("name", lambda: {"a": np.arange(5)})
    (folder / "name.npz").write_bytes(damage)
    with caplog.at_level(logging.WARNING):
        np.testing.assert_array_equal(cached("name", lambda: {"a": np.arange(3)})["a"], np.arange(3))
    assert "cannot be read and is made anew" in caplog.text
    np.testing.assert_array_equal(cached("name", never)["a"], np.arange(3))


def test_a_folder_that_cannot_be_written_is_a_warning(folder, caplog):
    folder.write_text("a file where the folder should be")
    with caplog.at_level(logging.WARNING):
        np.testing.assert_array_equal(cached("name", lambda: {"a": np.arange(3)})["a"], np.arange(3))
    assert "name is made anew in every process" in caplog.text


def make(barrier, value):
    barrier.wait()
    for _ in range(20):
        array = cached("name", lambda: {"a": np.full(20_000, value)})["a"]
        assert len(np.unique(array)) == 1
        assert len(array) == 20_000
        (cache_folder() / "name.npz").unlink(missing_ok=True)


def test_processes_that_make_the_same_do_not_see_half_of_it(folder):
    context = multiprocessing.get_context("fork")
    barrier = context.Barrier(3)
    processes = [context.Process(target=make, args=(barrier, value)) for value in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0, 0]
    assert list(folder.iterdir()) == []


def test_fingerprint_tells_parts_apart(tmp_path):
    path = tmp_path / "file"
    path.write_text("ab")
    assert fingerprint(path) == fingerprint("ab") == fingerprint(b"ab")
    assert len({fingerprint("ab"), fingerprint("a", "b"), fingerprint("b", "a"), fingerprint("abc")}) == 4


@pytest.mark.parametrize("entries", [{}, {"a": ((1,),)}, {"read": ((28, 12, 9), (28, 18, 9)), "ère": ((39, 1),)}])
def test_packing_keeps_all(entries):
    assert unpack_entries(pack_entries(entries.items())) == entries
    assert list(unpack_entries(pack_entries(entries.items()))) == list(entries)
