import pytest

from nlzoo.answer import find_all


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
