import os
import threading
from pathlib import Path

import pytest
from safetensors import SafetensorError

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


def test_what_a_file_will_hold_must_be_in_its_name(tmp_path):
    files.check_writable(tmp_path / "a.PNG", ".png")
    with pytest.raises(OutputError, match="expected a name that ends in .png"):
        files.check_writable(tmp_path / "a.gif", ".png")


def test_what_is_in_the_way_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="is a folder"):
        files.check_writable(tmp_path)
    with pytest.raises(OutputError, match="file is a file, not a folder"):
        files.check_writable(tmp_path / "file" / "below")
    with pytest.raises(OutputError, match="can't be written"):
        files.write_text(tmp_path / "file" / "below", "")


def test_what_is_no_file_is_written_to_and_stays_what_it_is(tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    heard = []

    def listen():
        heard.extend(pipe.read_text() for _ in range(2))

    listener = threading.Thread(target=listen, daemon=True)
    listener.start()
    files.check_writable(pipe)
    files.write_text(pipe, "whole")
    with files.growing(pipe) as add:
        add("line")
    listener.join(timeout=10)
    assert heard == ["whole", "line\n"]
    assert pipe.is_fifo()
    assert list(tmp_path.iterdir()) == [pipe]


def test_a_full_device_is_named(tmp_path):
    full = tmp_path / "full"
    full.symlink_to("/dev/full")
    with pytest.raises(OutputError, match="full can't be written .No space left"):
        files.write_text(full, "text")
    with pytest.raises(OutputError, match="full can't be written .No space left"), files.growing(full) as add:
        add("line")
    assert full.is_symlink()
    assert Path("/dev/full").is_char_device()


@pytest.mark.parametrize("way", [files.replacing, files.replacing_together])
def test_a_disk_that_is_full_for_safetensors_is_named(tmp_path, way):
    with pytest.raises(OutputError, match=r"a.blemish can't be written .*No space left"), way(tmp_path / "a.blemish"):
        raise SafetensorError("I/O error: No space left on device")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("is_there", [True, False])
def test_a_link_stays_and_what_it_points_to_is_written(tmp_path, is_there):
    real, link = tmp_path / "runs" / "1.json", tmp_path / "latest.json"
    link.symlink_to(real)
    for write in (lambda: files.write_text(link, "whole\n"), lambda: _grow(link, "line")):
        if is_there:
            real.parent.mkdir(exist_ok=True)
            real.write_text("old")
        files.check_writable(link)
        write()
        assert link.is_symlink()
        assert real.read_text() in ("whole\n", "line\n")
        assert list(real.parent.iterdir()) == [real]


def _grow(path, line):
    with files.growing(path) as add:
        add(line)
