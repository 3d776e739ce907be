"""The command line as a test types it."""

import pytest

from blemish import cli

TINY = ["--preset", "tiny", "--device", "cpu"]


def call(*words: object) -> int:
    """The exit status of `blemish` with these arguments."""
    with pytest.raises(SystemExit) as stopped:
        cli.main([str(word) for word in words])
    return stopped.value.code
