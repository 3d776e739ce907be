from shell import call


def test_what_an_artifact_holds(artifact, capsys):
    assert call("inspect", artifact) == 0
    said = capsys.readouterr().out
    assert "patchcore" in said
    assert "16 good pictures" in said
    assert "at most 1 in 4 good parts" in said
