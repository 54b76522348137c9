"""Files that are replaced as a whole: what stays after success, an error in between, and a folder that is none."""

from __future__ import annotations

from pathlib import Path

import pytest

from hybridzoo._atomic_file import whole_file


def test_the_new_file_takes_the_name(tmp_path: Path) -> None:
    path = tmp_path / "facts.json"
    path.write_text("old")
    with whole_file(path) as staged:
        staged.write_text("new")
        assert path.read_text() == "old"
        assert staged.suffix != ".json"  # a reader that lists *.json does not see it
    assert path.read_text() == "new"
    assert [p.name for p in tmp_path.iterdir()] == ["facts.json"]


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_an_error_leaves_the_old_file_and_nothing_beside_it(tmp_path: Path, error: type[BaseException]) -> None:
    path = tmp_path / "facts.json"
    path.write_text("old")

    def write_half() -> None:
        with whole_file(path) as staged:
            staged.write_text("half")
            raise error

    with pytest.raises(error):
        write_half()
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["facts.json"]


def test_the_error_is_that_of_writing(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(NotADirectoryError), whole_file(tmp_path / "file" / "facts.json") as staged:
        staged.write_text("new")
    with pytest.raises(FileNotFoundError, match=r"none/\.facts"), whole_file(tmp_path / "none/facts.json") as staged:
        staged.write_text("new")
    with pytest.raises(FileNotFoundError), whole_file(tmp_path / "facts.json"):
        pass  # nothing was written
