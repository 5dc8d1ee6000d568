"""Image sets: layouts, odd files, splits, augmentation, and the policy for unreadable files."""

import io
import pickle
import tarfile
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from nlzoo.data.augment import RandomView, padded, resized
from nlzoo.data.clips import generator
from nlzoo.data.images import Images
from nlzoo.data.pictures import CentreView, Member, find_images, read_image
from nlzoo.preprocessing import Preprocessing, Unreadable

PRE = Preprocessing(frames=0, stride=0, crop=32, test_size=36, test_crop=32)


def picture(seed=0, size=(40, 30)):
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def save(path, image=None, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    (image or picture(len(str(path)))).save(path, **options)
    return path


def tree(root, counts):
    """counts: {"train/ants": 3}."""
    for folder, count in counts.items():
        (root / folder).mkdir(parents=True, exist_ok=True)
        for i in range(count):
            save(root / folder / f"{i}.png", picture(i))
    return root


def module(path, **options):
    data = Images(str(path), **{"batch_size": 2, "workers": 0} | options)
    data.preprocessing = PRE
    return data


def names(data, split):
    return [str(file).removeprefix(data._path)[1:] for file in data.files(split)]


# -- layouts ------------------------------------------------------------------------------------


def test_class_folders(tmp_path):
    data = module(tree(tmp_path, {"train/bees": 3, "train/ants": 2, "val/ants": 1, "val/bees": 1}))
    assert data.classes == ["ants", "bees"]
    assert data.found == data.expected == {"train": 5, "val": 2, "test": 2}
    batch = next(iter(data.val_dataloader()))
    assert batch[0].shape == (2, 3, 32, 32)
    assert batch[0].dtype == torch.uint8
    assert batch[1].tolist() == [0, 1]
    assert next(iter(data.test_dataloader()))[0].shape == (2, 1, 3, 32, 32)
    assert next(iter(data.train_dataloader()))[0].shape == (2, 3, 32, 32)


def test_one_folder_is_split_by_name(tmp_path):
    data = module(tree(tmp_path, {"ants": 10, "bees": 20}), val_share=0.3)
    assert data.found == {"train": 21, "val": 9, "test": 9}
    assert not {*data.files("train")} & {*data.files("val")}
    assert sum("ants" in file for file in data.files("val")) == 3
    again = module(tmp_path, val_share=0.3, train="", val="", test="val")  # as in a test
    assert again.files("test") == data.files("val")
    tree(tmp_path, {"bees": 25})  # new images: of the old ones, few change sides
    more = module(tmp_path, val_share=0.3)
    assert len({*more.files("val")} & {*data.files("val")}) >= 7


def pack(path, folder):
    with tarfile.open(path, "w") as tar:
        for file in sorted(folder.rglob("*")):
            if file.is_file():
                tar.add(file, file.relative_to(folder))
    return path


@pytest.fixture
def folders(tmp_path):
    counts = {"train/ants": 3, "train/bees": 2, "val/ants": 1, "val/bees": 2}
    return tree(tmp_path / "plain", counts)


def test_tar_files_are_folders(folders, tmp_path):
    """One tar file a split, a class, both, or of all: the same images in the same order."""
    plain = module(folders)
    layouts = {name: tmp_path / name for name in ("split", "class", "nested")}
    for root in layouts.values():
        root.mkdir()
    for split in ("train", "val"):
        pack(layouts["split"] / f"{split}.tar", folders / split)
        (layouts["class"] / split).mkdir()
        for one in ("ants", "bees"):
            pack(layouts["class"] / split / f"{one}.tar", folders / split / one)
        pack(layouts["nested"] / f"{split}.tar", layouts["class"] / split)
    layouts["all"] = pack(tmp_path / "all.tar", folders)
    for path in layouts.values():
        data = module(path)
        assert data.classes == plain.classes
        assert [str(f).split("/")[-3:] for f in data.files("train")] == [
            f.split("/")[-3:] for f in plain.files("train")
        ]
        for a, b in zip(data.val_dataloader(), plain.val_dataloader(), strict=True):
            assert torch.equal(a[0], b[0])
            assert torch.equal(a[1], b[1])


def test_tar_files_are_read_by_workers(folders, tmp_path):
    pack(tmp_path / "train.tar", folders / "train")
    pack(tmp_path / "val.tar", folders / "val")
    (alone,) = [b[0] for b in module(tmp_path, batch_size=3).val_dataloader()]
    (shared,) = [b[0] for b in module(tmp_path, batch_size=3, workers=2).val_dataloader()]
    assert torch.equal(alone, shared)


def test_lists_of_images(folders):
    (folders / "train.txt").write_text(
        "train/ants/0.png ants\nmissing.jpg bees\ntrain/bees/1.png bees\n"
    )
    (folders / "val.txt").write_text("val/ants/0.png ants\nval/bees/0.png bees\n")
    data = module(folders)
    assert (data.expected["train"], data.found["train"]) == (3, 2)
    assert names(data, "train") == ["train/ants/0.png", "train/bees/1.png"]


def test_cifar_as_its_authors_pack_it(tmp_path, monkeypatch):
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    pixels = np.random.default_rng(0).integers(0, 256, (6, 3, 32, 32), dtype=np.uint8)
    for i, name in enumerate([*(f"data_batch_{k}" for k in range(1, 6)), "test_batch"]):
        batch = {"data": pixels[i : i + 1].reshape(1, -1), "labels": [i]}
        (folder / name).write_bytes(pickle.dumps(batch))
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": list("abcdefghij")}))
    with monkeypatch.context() as patch:
        patch.setattr("torchvision.datasets.cifar.check_integrity", lambda *_: True)
        data = module(tmp_path, batch_size=1)
        with pytest.raises(ValueError, match=r"has its own class names, others than data.class"):
            module(tmp_path, classes=["x"])
        assert module(tmp_path, classes=list("abcdefghij")).classes == data.classes
    assert data.classes == list("abcdefghij")
    assert data.found == {"train": 5, "val": 1, "test": 1}
    data.preprocessing = Preprocessing(frames=0, crop=32, test_size=32, test_crop=32)
    image, label, _, _ = next(iter(data.val_dataloader()))
    assert torch.equal(image[0], torch.from_numpy(pixels[5]))
    assert (label.item(), str(data.files("val")[0])) == (5, "cifar-10-batches-py/test 0")
    with pytest.raises(ValueError, match="cifar-10-batches-py is not whole: its files have other"):
        module(tmp_path)


@pytest.mark.parametrize(
    ("counts", "options", "message"),
    [
        ({"train/a": 2, "train/b": 0, "val/a": 1}, {}, r"class folder .*train/b has no image"),
        (
            {"train/a": 1, "train/b": 1, "val/a": 1, "val/c": 1},
            {},
            "train and val have different classes; only in train: b; only in val: c",
        ),
        ({"train/a": 1, "val/a": 1}, {"classes": ["a", "b", "a"]}, "'a' is there twice"),
        ({"train/a": 1, "val/a": 1}, {"classes": ["b"]}, "label 'a' is outside the 1 classes"),
        ({"a": 10, "b": 0}, {}, r"class folder .*/b has no image"),
        ({"a": 10, "b": 1}, {}, r"class folder .*/b has one image for two parts: add one"),
        ({"train/a": 2, "val/a": 1}, {"test_crop": -1}, "test_crop = -1: expected 0 or more"),
        ({"a": 1}, {"val_share": 1.5}, "val_share = 1.5: expected a share"),
        ({"a": 1}, {"scale": [0, 2]}, "scale = .*expected two shares"),
        ({}, {}, "nothing to read in .*expected train/CLASS"),
    ],
)
def test_what_is_wrong_is_named(tmp_path, counts, options, message):
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        module(tree(tmp_path, counts), **options)


def test_damaged_tar_files_are_named(tmp_path):
    (tmp_path / "train.tar").write_bytes(b"nothing of the kind" * 99)
    with pytest.raises(ValueError, match=r"train.tar is no tar file, or a damaged"):
        module(tmp_path)


# -- files --------------------------------------------------------------------------------------


def grey16(path):
    values = np.linspace(0, 0xFFFF, 1200).reshape(30, 40).astype(np.uint16)
    return save(path, Image.fromarray(values))


@pytest.mark.parametrize("mode", ["L", "LA", "RGBA", "CMYK", "P", "1"])
def test_modes_become_rgb(tmp_path, mode):
    suffix = "tif" if mode == "CMYK" else "png"
    image = read_image(save(tmp_path / f"x.{suffix}", picture().convert(mode)))
    assert (image.mode, image.size) == ("RGB", (40, 30))
    if mode in ("LA", "RGBA"):  # opaque
        assert np.array_equal(image, picture().convert(mode).convert("RGB"))


def test_transparency_is_on_white(tmp_path):
    clear = picture().convert("RGBA")
    clear.putalpha(0)
    assert (np.asarray(read_image(save(tmp_path / "x.png", clear))) == 255).all()


def test_16_bits_are_scaled(tmp_path):
    pixels = np.asarray(read_image(grey16(tmp_path / "x.png")))
    assert (pixels.min(), pixels.max()) == (0, 255)
    assert abs(pixels.mean() - 127.5) < 1


def test_a_crop_larger_than_the_image_is_refused():
    with pytest.raises(ValueError, match="test_crop = 40 does not fit a short side of 36"):
        CentreView(replace(PRE, test_crop=40))


def test_exif_turns_images(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees
    turned = read_image(save(tmp_path / "x.png", picture(), exif=exif))
    assert turned.size == (30, 40)
    assert np.array_equal(turned, picture().transpose(Image.Transpose.ROTATE_270))


def test_one_pixel_is_an_image(tmp_path):
    path = save(tmp_path / "x.png", picture(size=(1, 1)))
    assert CentreView(PRE)(path)[0].shape == (3, 32, 32)
    for transform in (resized(PRE, (0.1, 1), 0.5, 0.4, ""), padded(PRE, 0.5)):
        assert RandomView(transform)(path, generator(0))[0].shape == (3, 32, 32)


def truncated(path):
    save(path, picture(size=(200, 200)))
    path.write_bytes(path.read_bytes()[:-20000])


def text(path):
    path.write_text("no image")


def line(path):
    save(path, picture(size=(2000, 1)))


def floats(path):
    Image.fromarray(np.full((8, 8), 0.7, dtype=np.float32)).save(path)


def postscript(path):
    picture().save(path, "eps")


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (text, "not an image"),
        (truncated, "truncated"),
        (line, "2000 x 1 pixels are a line"),
        (floats, "floating point pixels, of unknown range"),
        (lambda path: path.symlink_to("nowhere"), "No such file or directory$"),
        (postscript, "not an image"),  # never opened: Pillow would have Ghostscript run it
    ],
)
def test_unreadable_files_are_named(tmp_path, make, reason):
    make(tmp_path / ("x.tif" if make is floats else "x.png"))
    with pytest.raises(Unreadable, match=f"x.*: .*{reason}"):
        read_image(next(tmp_path.iterdir()))


def test_unreadable_files_have_the_videos_policy(tmp_path):
    root = tree(tmp_path / "set", {"train/a": 6, "train/b": 6, "val/a": 2, "val/b": 1})
    text(root / "train/a/0.png")
    text(root / "val/a/0.png")
    listed = tmp_path / "bad.txt"
    data = module(root, bad_share=0.2, bad_files=str(listed))
    for loader in (data.train_dataloader(), data.val_dataloader()):
        batches = [data.on_before_batch_transfer(batch, 0) for batch in loader]
    assert -1 in torch.cat([b[1] for b in batches])
    assert set(data.unreadable) == {str(root / "train/a/0.png"), str(root / "val/a/0.png")}
    assert "unreadable: not an image" in listed.read_text()
    strict = module(root, bad_share=0.0)
    batches = list(strict.train_dataloader())
    with pytest.raises(RuntimeError, match=r"1 of 12 .* than data.bad_share = 0 of them: mend or"):
        [strict.on_before_batch_transfer(batch, 0) for batch in batches]


def test_classes_without_an_image_are_named(tmp_path):
    root = tree(tmp_path / "set", {"train/a": 2, "train/b": 2, "val/a": 1, "val/b": 1})
    (root / "classes.txt").write_text("b\nc\na\n")
    with pytest.warns(UserWarning, match=r"classes.txt: no image of c$"):
        assert module(root).classes == ["b", "c", "a"]


# -- views --------------------------------------------------------------------------------------


def test_the_centre_is_timms(tmp_path):
    from timm.data import create_transform

    path = save(tmp_path / "x.png", picture(size=(301, 200)))
    for interpolation in ("bilinear", "bicubic"):
        pre = Preprocessing(
            frames=0, crop=224, test_size=256, test_crop=224, interpolation=interpolation
        )
        theirs = create_transform(
            224, interpolation=interpolation, crop_pct=0.875, normalize=False
        )(Image.open(path))
        assert torch.equal(CentreView(pre)(path)[0], theirs)


@pytest.mark.parametrize("words", ["", "rand-m9-mstd0.5", "augmix-m5-w4-d2", "original"])
def test_augmentation_is_a_function_of_seed_epoch_and_index(tmp_path, words):
    path = save(tmp_path / "x.png", picture(size=(90, 70)))
    view = RandomView(resized(PRE, (0.3, 1), 0.5, 0.4, words))
    torch.manual_seed(0)
    state = torch.get_rng_state()
    first = view(path, generator(0, 1, 2))[0]
    assert torch.equal(state, torch.get_rng_state())
    torch.manual_seed(1)
    assert torch.equal(first, view(path, generator(0, 1, 2))[0])
    assert not torch.equal(first, view(path, generator(0, 1, 3))[0])


def test_unknown_augmentation_is_named():
    with pytest.raises(ValueError, match="auto_augment 'rund-m9': expected timm's words"):
        resized(PRE, (0.3, 1), 0.5, 0.4, "rund-m9")


def test_images_are_found_anywhere_but_in_hidden_files(tmp_path):
    save(tmp_path / "a" / "b" / "x.JPG")
    save(tmp_path / ".hidden.png")
    (tmp_path / "notes.txt").touch()
    buffer = io.BytesIO()
    picture().save(buffer, "png")
    with tarfile.open(tmp_path / "t.tar", "w") as tar:
        info = tarfile.TarInfo("deep/y.png")
        info.size = len(buffer.getvalue())
        tar.addfile(info, io.BytesIO(buffer.getvalue()))
    found = list(find_images(tmp_path))
    assert [str(f).removeprefix(str(tmp_path)) for f in found] == ["/a/b/x.JPG", "/t/deep/y.png"]
    assert isinstance(found[1], Member)
    assert np.array_equal(read_image(found[1]), ImageOps.exif_transpose(picture()))
