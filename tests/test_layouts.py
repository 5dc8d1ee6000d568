import os
import tarfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nlzoo.data.classes import read_classes, single_labels, to_split
from nlzoo.data.layouts import IMAGES, Files, plain, read_rows

ROOT = Path(__file__).parent.parent
LABELS = Path(os.environ.get("NLZOO_SHARED", ROOT / ".." / "shared")) / "data" / "video_labels"
needs_labels = pytest.mark.skipif(not LABELS.is_dir(), reason=f"no {LABELS}")


def tree(root, *paths, **texts):
    """Empty files, and text files `name__suffix`."""
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).touch()
    for name, text in texts.items():
        (root / name.replace("__", ".")).write_text(text)
    return root


def split_of(root, split="train", classes=""):
    """(path below the root, label) pairs, class names, names of missing videos."""
    files = Files(root)
    rows = read_rows(files, split)
    names = read_classes(root, classes, rows)
    found = to_split(rows, names)
    paths = [os.path.relpath(path, root) for path in found.files]
    return list(zip(paths, found.labels, strict=True)), names, list(found.missing)


HEAD = "label,youtube_id,time_start,time_end"
OFFICIAL = """label,youtube_id,time_start,time_end,split,is_cc
"riding a bike",-abcdefghij,1,11,train,0
zumba,abcdefghijk,20,30,train,0
zumba,abcdefghijk,120,130,train,1
"riding a bike",lostlostlos,0,10,train,0
"""
NAMES = [
    "-abcdefghij_000001_000011.mp4",
    "abcdefghijk_000020_000030.mp4",
    "abcdefghijk_000120_000130.mkv",
]


@pytest.mark.parametrize(
    "folders",
    [
        ("train/riding a bike", "train/zumba", "train/zumba"),
        ("riding_a_bike", "zumba", "zumba"),
        ("", "", ""),
        ("train", "train", "train"),
    ],
)
@pytest.mark.parametrize("list_name", ["train__csv", "kinetics-400_train__csv"])
def test_official_csv_finds_files_where_people_put_them(tmp_path, folders, list_name):
    paths = [str(Path(*pair)) for pair in zip(folders, NAMES, strict=True)]
    root = tree(tmp_path, *paths, **{list_name: OFFICIAL})
    pairs, names, missing = split_of(root)
    assert names == ["riding a bike", "zumba"]
    assert pairs == list(zip(paths, [0, 1, 1], strict=True))
    assert missing == ["lostlostlos_000000_000010"]


def test_files_named_by_id_only_and_the_closest_of_two(tmp_path):
    paths = ["val/zumba/abcdefghijk.mp4", "train/zumba/abcdefghijk.mp4", "x/-abcdefghij.mp4"]
    pairs, _, missing = split_of(tree(tmp_path, *paths, train__csv=OFFICIAL))
    assert pairs == [(paths[2], 0), (paths[1], 1), (paths[1], 1)]
    assert len(missing) == 1


@needs_labels
@pytest.mark.parametrize(("kinetics", "rows"), [("400", 800), ("600", 1200)])
def test_true_rows_of_kinetics_parse(tmp_path, kinetics, rows):
    (tmp_path / "val.csv").write_bytes(
        (LABELS / f"kinetics-{kinetics}_val_sample.csv").read_bytes()
    )
    (tmp_path / f"kinetics{kinetics}_0.mp4").touch()
    pairs, names, missing = split_of(tmp_path, "val", f"kinetics{kinetics}")
    assert (pairs, len(missing)) == ([], rows)
    assert len(names) == int(kinetics)
    assert names == (LABELS / f"kinetics{kinetics}_classes.txt").read_text().splitlines()
    listed = read_rows(Files(tmp_path), "val")
    assert {plain(row.label) for row in listed} == {plain(name) for name in names}
    assert len({row.name for row in listed}) == rows  # repeated ids have other times


@needs_labels
def test_labels_of_every_row_of_kinetics(tmp_path):
    root = tree(tmp_path)
    (root / "val.csv").write_bytes((LABELS / "kinetics-400_val_sample.csv").read_bytes())
    listed = read_rows(Files(root), "val")
    tree(root, *(f"{row.name}.mp4" for row in listed))
    pairs, names, missing = split_of(root, "val", "kinetics400")
    assert not missing
    assert [names[label] for _, label in pairs] == [row.label for row in listed]


@needs_labels
@pytest.mark.parametrize("name", ["kinetics-400_test_sample.csv", "kinetics-600_test_sample.csv"])
def test_lists_without_labels_are_refused(tmp_path, name):
    (tmp_path / "train.csv").write_bytes((LABELS / name).read_bytes())
    with pytest.raises(ValueError, match=r"train\.csv has no column label"):
        read_rows(Files(tmp_path), "train")


@pytest.mark.parametrize(
    "line",
    [
        "a b/v 1.mp4 1",
        "a b/v 1.mp4\t1",
        "a b/v 1.mp4, 1",
        '"a b/v 1.mp4",1',
        "'a b/v 1.mp4' zumba dance",
        "a b/v 1.mp4 zumba dance",
        "a b/v 1.mp4,Zumba_Dance",
        'a b/v 1.mp4\t"zumba dance"',
        "./a b/v 1.mp4 1",
    ],
)
def test_path_label_lines(tmp_path, line):
    text = f"path,label\n# a comment\n\n{line}\n"
    root = tree(tmp_path, "a b/v 1.mp4", train__txt=text, classes__txt="abseiling\nzumba dance\n")
    assert split_of(root) == ([("a b/v 1.mp4", 1)], ["abseiling", "zumba dance"], [])


words = st.text("abcxyz -_()'", min_size=1).map(str.strip).filter(lambda s: s and s[0] not in "'#")


@given(words, words, st.sampled_from([" ", "\t", ",", ", "]), st.booleans())
def test_any_path_and_label_come_back(tmp_path_factory, name, label, delimiter, quoted):
    if label in ("label", "class"):
        return
    path = f"{name}.mp4"
    line = f'"{path}"' if quoted else path
    root = tree(tmp_path_factory.mktemp("list"), train__txt=f"{line}{delimiter}{label}\n")
    rows = read_rows(Files(tree(root, path)), "train")
    assert [(Path(row.path or "").name, row.label) for row in rows] == [(path, label.strip("\"'"))]


def test_lists_beside_their_videos_and_absolute_paths(tmp_path):
    root = tree(tmp_path / "set", "videos/a.mp4")
    elsewhere = tree(tmp_path / "lists", "b.mp4")
    (elsewhere / "mine.txt").write_text(
        f"b.mp4 0\n{root}/videos/a.mp4 1\nvideos/a.mp4 1\nc.mp4 1\n"
    )
    pairs, names, missing = split_of(root, str(elsewhere / "mine.txt"))
    assert [label for _, label in pairs] == [0, 1, 1]
    assert (names, missing) == (["0", "1"], ["c.mp4"])


def test_class_folders_and_folders_of_frames(tmp_path):
    frames = [f"train/zumba/v1/{i}.jpg" for i in range(12)]
    root = tree(tmp_path, *frames, "train/bowling/v.MP4", "train/bowling/sub/w.avi", "preview.png")
    tree(root, "validation/zumba/v.mp4", "train/zumba/notes.md", "train/.cache/x.mp4")
    pairs, names, _ = split_of(root)
    assert names == ["bowling", "zumba"]
    want = [("train/bowling/sub/w.avi", 0), ("train/bowling/v.MP4", 0), ("train/zumba/v1", 1)]
    assert pairs == want
    assert split_of(root, "val", str(tree(tmp_path, c__txt="bowling\nzumba\n") / "c.txt"))[0] == [
        ("validation/zumba/v.mp4", 1)
    ]


@pytest.mark.parametrize("folders", [["2019", "2020"], ["2", "10"], ["0", "1", "2", "10"]])
def test_folders_named_by_numbers_are_names(tmp_path, folders):
    pairs, names, _ = split_of(tree(tmp_path, *(f"train/{name}/v.mp4" for name in folders)))
    assert names == folders
    assert dict(pairs) == {f"train/{name}/v.mp4": i for i, name in enumerate(folders)}


def test_a_label_that_cannot_be_an_index_is_named(tmp_path):
    root = tree(tmp_path, "v.mp4", train__txt="v.mp4 0\nw.mp4 99999999\n")
    with pytest.raises(ValueError, match=r"train\.txt, line 2: label 99999999 is no class index"):
        split_of(root)


def test_lists_of_folders_of_frames(tmp_path):
    root = tree(tmp_path, "frames/v 1/0001.jpg", "frames/v 1/0002.jpg", train__txt="frames/v 1 3\n")
    assert split_of(root)[0] == [("frames/v 1", 3)]


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        ({"train__txt": ""}, r"train\.txt lists no video"),
        ({"train__txt": "v.mp4 0\nw.mp4 2\n"}, r"line 2: label '2' is outside the 2 classes"),
        ({"train__txt": "v.mp4 abseilin\n"}, "line 1.*did you mean 'abseiling'"),
        ({"train__txt": "v.mp4 -1\n"}, "line 1: label '-1' is neither a class index nor a name"),
        ({"train__txt": "v.mp4 0 120\n"}, "line 1: label '0 120' is neither"),
        ({"train__txt": "v.mp4 ''\n"}, "line 1: label '' is neither"),
        ({"train__txt": "v.mp4 0\nv.mp4 1\n"}, r"line 2: 'v\.mp4' has label '1' here, '0' before"),
        ({"train__txt": "v.mp4\n"}, r"line 1: expected `path label`"),
        ({"train__csv": "youtube_id,time_start,time_end\na,1,2\n"}, "no column label"),
        ({"train__csv": "label,youtube_id,time_start,time_end\nx,a,1,\n"}, "line 2.*numbers"),
        ({"train__csv": f"{HEAD}\nx,a,1,inf\n"}, r"train\.csv, line 2: time_start and"),
        ({"train__csv": f"{HEAD}\nx,a,1,2\n,b,1,2\n"}, r"train\.csv, line 3: no label; give"),
        ({"train__csv": "youtube_id,time_start,time_end,label\na,1,2\n"}, "line 2: no label"),
        ({"train__csv": "id,actions,length\n,c1 0 1,3\n"}, "line 2: no id; give it"),
        ({"train__csv": f'{HEAD}\nx,a,1,2\n"x,b,1,2\nx,c,1,2\n'}, "line 3: .*quote not closed"),
        ({"train__csv": f'{HEAD}\n"x,b,1,2\n' + "x,c,1,2\n" * 20_000}, "line 2: field larger"),
        ({"train__csv": "x" * 200_000}, r"line 1: expected `path label`"),
        ({"a_train__csv": "v.mp4 0", "b_train__csv": "v.mp4 0"}, "more than one list"),
        ({"train__txt": "v.mp4 0\n", "classes__txt": "a\na\n"}, "'a' is there twice"),
        ({"train__txt": "v.mp4 0\n", "classes__txt": ""}, "no class name"),
    ],
)
def test_bad_lists_are_refused_with_file_and_line(tmp_path, texts, message):
    root = tree(tmp_path, "v.mp4", **{"classes__txt": "abseiling\nzumba\n", **texts})
    with pytest.raises(ValueError, match=message):
        split_of(root)


def test_indices_and_names_do_not_mix(tmp_path):
    root = tree(tmp_path, "v.mp4", train__txt="v.mp4 0\nw.mp4 1\nx.mp4 1 # not sure\n")
    with pytest.raises(ValueError, match="line 3: label '1 # not sure' beside '0': indices or"):
        split_of(root)


@pytest.mark.parametrize("head", ["video_path,class_id", "path label", "file\tClass Name"])
def test_headers_are_no_videos(tmp_path, head):
    root = tree(tmp_path, "v.mp4", train__txt=f"{head}\nv.mp4 0\n")
    assert split_of(root) == ([("v.mp4", 0)], ["0"], [])


def test_class_list_of_another_length_than_the_one_beside_the_videos(tmp_path):
    root = tree(tmp_path, "v.mp4", train__txt="v.mp4 0\n", classes__txt="a\nb\n")
    with pytest.raises(ValueError, match=r"kinetics600 has 600 classes, .*classes\.txt has 2"):
        split_of(root, classes="kinetics600")


@pytest.mark.parametrize("as_file", [True, False])
def test_class_list_of_another_order_or_spelling_than_the_one_beside_the_videos(tmp_path, as_file):
    root = tree(tmp_path, "v.mp4", train__txt="v.mp4 0\n", classes__txt="a_b\nc\nd\n")

    def classes(*names):
        return str(tree(tmp_path, mine__txt="\n".join(names)) / "mine.txt") if as_file else names

    assert split_of(root, classes=classes("A b", "c", "d"))[1] == ["A b", "c", "d"]
    given = r"mine\.txt" if as_file else r"data\.classes"
    for names in (("a b", "d", "c"), ("a b", "d", "e")):
        with pytest.raises(ValueError, match=rf"class 1 is 'd' in .*{given}, but 'c' in .*classes"):
            split_of(root, classes=classes(*names))


def test_class_names_given_as_they_are(tmp_path):
    root = tree(tmp_path, "v.mp4", train__txt="v.mp4 zumba\n")
    for names in (["a", "zumba"], ("a", "zumba")):
        assert split_of(root, classes=names) == ([("v.mp4", 1)], ["a", "zumba"], [])
    with pytest.raises(ValueError, match=r"data\.classes: 'a' is there twice"):
        split_of(root, classes=["a", "A", "zumba"])


def test_splits_that_nobody_asks_for_are_not_scanned(tmp_path):
    root = tree(tmp_path, "train/a/x.png", "validation/a/y.png", "other/z.png")
    with tarfile.open(root / "validation.tar", "w") as tar:
        tar.add(root / "other/z.png", "a/z.png")

    def seen(*splits):
        return {os.path.relpath(path, root) for path in Files(root, IMAGES, splits).paths}

    assert seen("val", "") == {"validation/a/y.png", "validation/a/z.png"}
    everything = seen()
    assert len(everything) == 4
    assert seen("val", "test") == everything  # no such folder: it may be anywhere
    (root / "val.txt").write_text("other/z.png a\n")
    assert seen("val") == everything


def test_binary_list_and_missing_things(tmp_path):
    (tmp_path / "train.csv").write_bytes(bytes(range(128, 256)))
    with pytest.raises(ValueError, match=r"train\.csv is not a text file"):
        read_rows(Files(tmp_path), "train")
    assert read_rows(Files(tmp_path), "val") is None
    with pytest.raises(FileNotFoundError, match=r"path label.*--sample"):
        Files(tmp_path / "absent")
    with pytest.raises(FileNotFoundError, match="no class list 'kinetics4000'; built in"):
        read_classes(tmp_path, "kinetics4000", [])


# -- many labels ----------------------------------------------------------------------------


def many_of(root, classes=""):
    """Labels by path below the root, and the class names."""
    rows = read_rows(Files(root), "train", multilabel=True)
    names = read_classes(root, classes, single_labels(rows))
    found = to_split(rows, names, multilabel=True)
    paths = [os.path.relpath(path, root) for path in found.files]
    labels = [row.nonzero().flatten().tolist() for row in found.labels]
    assert found.labels.shape == (len(paths), len(names))
    return dict(zip(paths, labels, strict=True)), names


@pytest.mark.parametrize(
    "text",
    [
        "a.mp4 0,2\nb c.mp4 1\n",
        "a.mp4\t0, 2\nb c.mp4\t1\n",
        'path,labels\na.mp4,"0,2"\nb c.mp4,1\n',
        "a.mp4,0,2\n'b c.mp4',1\n",
        "a.mp4 0,2,2\nb c.mp4 1,\n",
    ],
)
def test_several_indices(tmp_path, text):
    root = tree(tmp_path, "a.mp4", "b c.mp4", train__txt=text)
    assert many_of(root) == ({"a.mp4": [0, 2], "b c.mp4": [1]}, ["0", "1", "2"])


def test_several_names_one_of_them_with_a_comma(tmp_path):
    text = 'a.mp4,"salt, pepper",onions\nb.mp4,onions, "too hot"\n'
    root = tree(tmp_path, "a.mp4", "b.mp4", train__csv=text)
    labels, names = many_of(root)
    assert names == ["onions", "salt, pepper", "too hot"]
    assert labels == {"a.mp4": [0, 1], "b.mp4": [0, 2]}


def test_no_label_at_all(tmp_path):
    root = tree(tmp_path, "a.mp4", "b.mp4", train__txt='a.mp4 ""\nb.mp4 x\n')
    assert many_of(root) == ({"a.mp4": [], "b.mp4": [0]}, ["x"])


def test_several_labels_of_folders_of_frames(tmp_path):
    frames = [f"frames/{name}/{i:04d}.jpg" for name in ("v", "w 2") for i in (1, 2)]
    root = tree(tmp_path, *frames, train__txt='frames/v 3,1\n"frames/w 2" 0\n')
    assert many_of(root)[0] == {"frames/v": [1, 3], "frames/w 2": [0]}


def test_class_folders_have_one_label_each(tmp_path):
    root = tree(tmp_path, "train/a, b/v.mp4", "train/c/w.mp4")
    labels, names = many_of(root)
    assert (labels, names) == ({"train/a, b/v.mp4": [0], "train/c/w.mp4": [1]}, ["a, b", "c"])


def test_several_labels_where_one_is_expected(tmp_path):
    root = tree(tmp_path, "a.mp4", train__txt="a.mp4 0,1\n", classes__txt="x\ny\n")
    with pytest.raises(ValueError, match=r"'0,1' is outside .*: data\.multilabel: true"):
        split_of(root)
    with pytest.raises(ValueError, match=r"train\.txt, line 1: label '5' is outside the 2 classes"):
        many_of(tree(tmp_path, train__txt="a.mp4 0,5\n"))
