"""Where Chromium is looked for, and in what order, when nobody has named one."""

import shutil

import pytest

from tests import find_chromium


@pytest.fixture
def found(monkeypatch: pytest.MonkeyPatch) -> dict[str, bool]:
    """Programs by their path and whether each starts; those named here are all there are."""
    programs: dict[str, bool] = {}
    monkeypatch.delenv("CHROMIUM", raising=False)
    monkeypatch.setattr(shutil, "which", lambda name: f"/bin/{name}" if f"/bin/{name}" in programs else None)
    monkeypatch.setattr(find_chromium, "PLACES", ("/place/chrome",))
    monkeypatch.setattr(find_chromium, "playwrights_own", lambda: "/own/chrome")
    monkeypatch.setattr(find_chromium, "works", lambda path: programs.get(path, False))
    monkeypatch.setattr("sys.argv", ["find_chromium.py"])
    return programs


def test_the_path_then_the_usual_places_then_playwrights_own(found: dict[str, bool]) -> None:
    assert find_chromium.find() is None
    for path in ("/own/chrome", "/place/chrome", "/bin/google-chrome", "/bin/chromium"):
        found[path] = True
        assert find_chromium.find() == path


def test_one_that_does_not_start_is_passed_over(found: dict[str, bool]) -> None:
    found |= {"/bin/chromium": False, "/place/chrome": False, "/own/chrome": True}
    assert find_chromium.find() == "/own/chrome"


def test_one_is_got_only_when_asked(
    found: dict[str, bool], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(find_chromium, "install", lambda: found.update({"/own/chrome": True}))
    assert find_chromium.main() == 1
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert find_chromium.REMEDY in err
    monkeypatch.setattr("sys.argv", ["find_chromium.py", "--install"])
    assert find_chromium.main() == 0
    assert capsys.readouterr().out == "/own/chrome\n"
