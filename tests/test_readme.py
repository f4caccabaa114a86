"""The README: its tree is the real one, its commands are those that are checked."""

import os
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text()
ROOMS_BY_FILE = ("mode_ssm", "scripts", "")  # every Python file here has a line of its own


def tree_entries(readme: str) -> dict[str, str]:
    """{path: what its line says} of the code block under the heading "The tree"; two spaces a level."""
    block = re.search(r"^## The tree\n.*?^```\n(.*?)^```", readme, re.MULTILINE | re.DOTALL)
    assert block, "README.md has no code block under '## The tree'"
    entries: dict[str, str] = {}
    folders: list[str] = []
    for line in block[1].splitlines():
        indent, name, words = re.fullmatch(r"( *)(\S+) *(.*)", line).groups()
        del folders[len(indent) // 2 :]
        entries["".join(folders) + name] = words
        if name.endswith("/"):
            folders.append(name)
    return entries


ENTRIES = tree_entries(README)


def python_files(folder: str) -> set[str]:
    pattern = "*.py" if folder == "" else "**/*.py"
    files = {str(path.relative_to(ROOT)) for path in (ROOT / folder).glob(pattern)}
    return {file for file in files if not file.endswith("__init__.py")}


def test_the_reader_of_the_tree_understands_levels():
    text = "## The tree\n\n```\na.py   one\nb/\n  c.py  two\n  d/\n    e.py three\nf.py  four\n```\n"
    assert tree_entries(text) == {
        "a.py": "one",
        "b/": "",
        "b/c.py": "two",
        "b/d/": "",
        "b/d/e.py": "three",
        "f.py": "four",
    }


@pytest.mark.parametrize("path", ENTRIES)
def test_every_path_of_the_tree_exists(path):
    assert (ROOT / path).exists(), f"README.md names {path}, which does not exist: remove or rename its line"
    assert path.endswith("/") == (ROOT / path).is_dir()


@pytest.mark.parametrize("folder", ROOMS_BY_FILE)
def test_every_python_file_has_a_line(folder):
    missing = sorted(python_files(folder) - ENTRIES.keys())
    assert not missing, f"add one line each to the tree in README.md: {', '.join(missing)}"


def test_every_file_of_the_tree_is_described():
    assert [path for path, words in ENTRIES.items() if not words and not path.endswith("/")] == []


def test_the_test_command_is_the_one_that_ci_runs():
    section = re.search(r"^## Tests\n(.*?)(?=^## )", README, re.MULTILINE | re.DOTALL)
    assert section
    assert "\nuv run pytest\n" in section[1]
    ci = ROOT / ".ci" / "run"
    assert "\nuv run pytest\n" in ci.read_text()
    assert os.access(ci, os.X_OK)


def test_the_commands_name_scripts_and_experiments_that_exist():
    scripts = set(re.findall(r"(?:uv run|--nproc_per_node=\d) ((?:scripts/)?\w+\.py)", README))
    assert {"train.py", "evaluate_model.py", "make_submission.py"} <= scripts
    assert [script for script in scripts if not (ROOT / script).is_file()] == []
    experiments = set(re.findall(r"experiment=(\w+)", README))
    assert "t15_mode_ssm" in experiments
    assert [name for name in experiments if not (ROOT / "configs" / "experiment" / f"{name}.yaml").is_file()] == []
