"""mim4d-hub's flags: a value that makes no sense is one line that names the flag, before any folder or the Hub."""

import pytest

from mim4d.hub.cli import main


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ((), "the following arguments are required: COMMAND (see mim4d-hub --help)"),
        (("push",), "the following arguments are required: RUN (see mim4d-hub push --help)"),
        (("fetch",), "COMMAND: invalid choice: 'fetch'"),
        (("pull", "a/b", "--bogus"), "unrecognized arguments: --bogus"),
        (("push", "run"), "expected --repo ORG/NAME, or your team's hub in MIM4D_HUB (an organisation or a folder)"),
        (("list",), "no hub is named: set MIM4D_HUB to your team's organisation on the Hub, or to a folder"),
        (("push", "", "--repo", "a/b"), "RUN: expected a value, got an empty one"),
        (("push", "run", "--repo", ""), "--repo: expected a value, got an empty one"),
        (("push", "run", "--repo", "name"), "--repo: name: expected ORG/NAME"),
        (("push", "run", "--repo", "a b/c"), "--repo: a b/c: expected ORG/NAME"),
        (("push", "run", "--repo", "a/b/c"), "--repo: a/b/c: expected ORG/NAME"),
        (("push", "run", "--repo", "a/b\x1b[31m"), r"--repo: 'a/b\x1b[31m' has characters that cannot be printed"),
        (("push", "run", "--repo", "a/b", "--revision", ""), "--revision: expected a value"),
        (("push", "run", "--repo", "a/b", "--revision", "x y"), "--revision: x y: no name of a branch"),
        (("push", "run", "--repo", "a/b", "--tag", " "), "--tag: expected a value"),
        (("push", "run", "--repo", "a/b", "--tag", "a..b"), "--tag: a..b: no name of a branch"),
        (("push", "run", "--repo", "a/b", "--license", ""), "--license: expected a value"),
        (("push", "run", "--repo", "a/b", "--license", "mit\ntags: x"), "--license: 'mit\\ntags: x' has characters"),
        (("pull", ""), "ORG/NAME[@REVISION]: expected a value"),
        (("pull", "name"), "ORG/NAME[@REVISION]: name: expected ORG/NAME"),
        (("pull", "a/b@"), "ORG/NAME[@REVISION]: expected a value"),
        (("pull", "a/b@v1", "--revision", "v2"), "--revision v2: a/b@v1 names another one"),
        (("pull", "a/b", "--out", ""), "--out: expected a value"),
        (("card", ""), "RUN: expected a value"),
        (("card", "run", "--repo", "name"), "--repo: name: expected ORG/NAME"),
        (("card", "run", "--license", "a\nb"), "--license: 'a\\nb' has characters"),
        (("convert", "", "x"), "FROM: expected a value"),
        (("convert", "x.pth", " "), "TO: expected a value"),
        (("convert", "x.pth", "y", "--prefix", "\n"), "--prefix: expected a value"),
        (("convert", "x.pth", "y.pth", "--names", "mmdet"), "--names: invalid choice: 'mmdet'"),
    ],
)
def test_a_wrong_value_is_one_line_that_names_the_flag(argv, message, capsys):
    with pytest.raises(SystemExit) as stop:
        main(list(argv))
    assert stop.value.code == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n"), err.startswith("error: ")) == ("", 1, True)
    assert message in err


@pytest.mark.parametrize("revision", ["main", "v1.0", "feature/x", "0" * 40])
def test_names_of_branches_tags_and_commits_are_taken(revision, monkeypatch):
    asked = []
    monkeypatch.setattr("mim4d.hub.cli.contents", lambda repo, revision: asked.append((repo, revision)) or [])
    main(["pull", f"org/name@{revision}", "--dry-run"])
    main(["pull", "org/name", "--revision", revision, "--dry-run"])
    assert asked == [("org/name", revision)] * 2
