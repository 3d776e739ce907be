import os

import pytest

from blemish import files
from blemish.errors import OutputError


def test_a_file_is_there_whole_or_not_at_all(tmp_path):
    target = tmp_path / "new" / "result.txt"
    files.write_text(target, "first")
    with pytest.raises(ValueError, match="half way"), files.replacing(target) as temporary:
        temporary.write_text("second, unfinished")
        raise ValueError("half way")
    assert target.read_text() == "first"
    assert list(target.parent.iterdir()) == [target]


def test_written_files_have_ordinary_permissions(tmp_path):
    previous = os.umask(0o022)
    try:
        files.write_bytes(tmp_path / "x", b"1")
    finally:
        os.umask(previous)
    assert (tmp_path / "x").stat().st_mode & 0o777 == 0o644


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_read_only_folder_is_named(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(OutputError, match="can't be written"):
        files.check_writable(tmp_path / "x")
    with pytest.raises(OutputError, match="can't be written"):
        files.write_text(tmp_path / "x", "")


def test_what_is_in_the_way_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="is a folder"):
        files.check_writable(tmp_path)
    with pytest.raises(OutputError, match="can't be written"):
        files.check_writable(tmp_path / "file" / "below")
    with pytest.raises(OutputError, match="can't be written"):
        files.write_text(tmp_path / "file" / "below", "")
