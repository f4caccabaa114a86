"""Names of sessions: dates are dates, everything else is free."""

from pathlib import Path

import pytest

from mode_ssm.data.layout_checks import check_entries, check_session_names

ROOT = Path("data")


def test_dates_with_their_zeros_and_names_without_a_date_are_fine() -> None:
    check_session_names(
        ROOT,
        [
            "t15.2023.08.11",
            "t12.2022.04.28",
            "2024.02.29",
            "fsdd.theo",
            "speaker_jackson",
            "rig.1.2.3",
            "2023.13",
            "a.b",
        ],
    )


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("t15.2023.13.01", r"the session's name holds no date, YYYY.MM.DD \(month must be in 1..12\)"),
        ("t15.2023.02.29", r"the session's name holds no date, YYYY.MM.DD \(day is out of range for month\)"),
        ("2023.00.10", r"the session's name holds no date"),
        ("t15.2023.8.11", r"sessions are ordered by name; rename it to t15.2023.08.11"),
        ("2023.08.1", r"sessions are ordered by name; rename it to 2023.08.01"),
    ],
)
def test_what_looks_like_a_date_has_to_be_one(name: str, reason: str) -> None:
    with pytest.raises(ValueError, match=rf"^data/{name}: {reason}"):
        check_session_names(ROOT, ["t15.2023.08.11", name])


def test_names_that_differ_in_case_only_are_refused() -> None:
    with pytest.raises(ValueError, match=r"^data holds the sessions Day1 and day1, which differ in case only"):
        check_session_names(ROOT, ["day2", "day1", "Day1"])


def test_hidden_entries_and_files_beside_the_sessions_are_no_matter(tmp_path: Path) -> None:
    (tmp_path / "truth.jsonl").write_text("{}")
    (tmp_path / ".#lock").symlink_to("user@machine")
    (tmp_path / "day1").mkdir()
    (tmp_path / "day1" / "data_train.hdf5").write_text("x")
    (tmp_path / "day2").symlink_to("day1")
    check_entries(tmp_path)
