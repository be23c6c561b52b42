"""Files and folders that are written whole or not at all."""

from pathlib import Path

import pytest

from mim4d.errors import UserError
from mim4d.io.files import write_bytes, write_file, write_folder


def write(folder: Path, text: str) -> None:
    write_folder(folder, lambda partial: (partial / "a").write_text(text), "a test")


def test_a_folder_takes_the_place_of_the_one_before(tmp_path):
    for text in ("first", "second"):
        write(tmp_path / "folder", text)
        assert (tmp_path / "folder" / "a").read_text() == text
        assert [path.name for path in tmp_path.iterdir()] == ["folder"]


class Killed(BaseException):
    """Nothing catches it, as nothing catches kill -9."""


@pytest.mark.parametrize("last", [Killed, OSError])
def test_the_one_before_outlives_whatever_happens_between_the_renames(last, tmp_path, monkeypatch):
    write(tmp_path / "folder", "first")
    rename = Path.rename

    def ends(path: Path, target: Path) -> Path:
        if path.name == ".folder.partial":
            raise last
        return rename(path, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", ends)
        with pytest.raises(UserError if last is OSError else last):
            write(tmp_path / "folder", "second")
    where = "folder" if last is OSError else ".folder.old"
    assert (tmp_path / where / "a").read_text() == "first"
    write(tmp_path / "folder", "third")
    assert (tmp_path / "folder" / "a").read_text() == "third"
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]


def test_an_error_while_filling_leaves_the_folder_before_and_nothing_else(tmp_path):
    write(tmp_path / "folder", "first")

    def fails(partial: Path) -> None:
        (partial / "a").write_text("second")
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        write_folder(tmp_path / "folder", fails, "a test")
    assert (tmp_path / "folder" / "a").read_text() == "first"
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]


def test_bytes_are_written_to_a_folder_that_is_made(tmp_path):
    write_bytes(tmp_path / "a" / "b" / "file", b"content")
    assert (tmp_path / "a" / "b" / "file").read_bytes() == b"content"
    with pytest.raises(UserError, match=f"cannot make the folder {tmp_path}/a/b/file: "):
        write_bytes(tmp_path / "a" / "b" / "file" / "c", b"")


def test_a_link_in_place_of_the_temporary_file_is_not_written_through(tmp_path):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.write_text("kept")
    (tmp_path / ".file.partial").symlink_to(elsewhere)
    write_file(tmp_path / "file", lambda partial: partial.write_text("new"))
    assert (tmp_path / "file").read_text() == "new"
    assert elsewhere.read_text() == "kept"
