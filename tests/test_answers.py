import json

import pytest

from nlzoo.answers.files import answer, find_all, own_name
from nlzoo.preprocessing import Unreadable


@pytest.mark.parametrize(
    ("name", "images", "message"),
    [
        ("a.JPG", False, "this network watches videos, .*a.JPG is an image"),
        ("a.tar", False, "this network watches videos, .*a.tar is a tar file of images"),
        ("a.mp4", True, "this network sees images, .*a.mp4 is a video"),
        (".", True, "no image in .*, and this network sees images"),
        (".", False, "no video in .*, and this network watches videos"),
    ],
)
def test_files_of_the_other_kind_are_refused(tmp_path, name, images, message):
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        find_all([str(tmp_path / name)], images)


@pytest.mark.parametrize("images", [True, False])
def test_what_may_be_either_is_left_to_its_reader(tmp_path, images):
    names = [str(tmp_path / name) for name in ("a.gif", "a")]
    assert find_all(names, images) == names


def test_files_that_fail_are_answers_too(capsys):
    def watch(file):
        if "bad" in file:
            raise Unreadable(f"{file}: not an image")
        return {"file": file, "top": [{"class": "a", "score": 1.0}]}

    for as_json in (True, False):
        with pytest.raises(SystemExit) as exit_:
            answer(["bad", "good"], watch, as_json)
        assert exit_.value.code == 1
        out, error = capsys.readouterr()
        assert error == "nlzoo: bad: not an image\n"
        assert "good" in out
        if as_json:
            assert json.loads(out)[1] == {"file": "bad", "error": "not an image"}
    with pytest.raises(Unreadable, match=r"bad: not an image \(and 1 more\)"):
        answer(["bad", "bad too"], watch, as_json=True)


def test_files_of_one_name_have_pictures_of_their_own():
    taken = set()
    names = [own_name(stem, taken) for stem in ("a", "a", "a_2", "b", "a")]
    assert names == ["a", "a_2", "a_2_2", "b", "a_3"]
