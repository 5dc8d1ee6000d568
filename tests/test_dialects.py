"""Whole networks of other implementations, in files as their own code writes them."""

import csv
import re
import warnings

import pytest
import torch
from shared import SHARED
from spoken import WRITERS, speak
from tiers import marked

import nlzoo
from nlzoo.blocks import NonLocalBlock
from nlzoo.weights.hosts import HOSTS, own_names, recognise_host, rename_host
from nlzoo.weights.recognise import SHIFTED, flatten, read_architecture
from nlzoo.weights.zoo import read_zoo

KEYS = sorted((SHARED / "reference" / "architectures").glob("*.csv"))
BUILDABLE = [entry for entry in read_zoo().values() if entry.dialect in HOSTS and entry.model]
# figures that are not of the network in the file
OTHER_HEAD = "tsm_r50.k400_1x1x8_mmaction2"  # 23.87 M is that of 174 classes
ROWS = {  # one row a dialect, and each that has something of its own
    "caffe2": "i3d_r50_nl5.k400_32x2_official",
    "affine": "i3d_r50_nl5.k400_32x4_official",
    "charades": "i3d_r50_nl5.charades_32x4_lfb",
    "caffe2 two pathways": "slowfast_r50.k400_8x8_pyslowfast",
    "slowfast": "slow_r50_nl5.k400_4x16_pyslowfast",
    "two pathways": "slowfast_r50_nl5.k400_8x8_pyslowfast",
    "pytorchvideo": "i3d_r50.k400_8x8_pytorchvideo",
    "pytorchvideo slow": "slow_r50.k400_8x8_pysf",
    "mmaction2": "i3d_r50_nl5.k400_32x2_mmaction2_dot",
    "mmaction2 tsm": "tsm_r50_nl5.k400_1x1x8_mmaction2_gaussian",
    "mmaction2 slow": "slow_r50_nl5.k400_4x16_mmaction2",
    "gluoncv": "i3d_r50_nl5.k400_32x2_gluoncv",
    "mit_tsm": "tsm_r50_nl5.k400_8x8_mit",
    "mmaction01": "i3d_r50_nl5.k400_32x2_mmaction01",
    "tushar": "i3d_r50_nl5.k400_32x2_tushar",
    "patykov": "i3d_r50_nl5.k400_8x8_patykov",
}
QUICK = [ROWS[name] for name in ("caffe2", "two pathways", "mmaction2", "mit_tsm")]


def trained(name, **options):
    """A narrow network of a row, with blocks that do something."""
    torch.manual_seed(0)
    model = nlzoo.create_model(name, width=16, num_classes=7, **options)
    for parameter in model.parameters():
        if parameter.ndim < 2:
            torch.nn.init.normal_(parameter, 0.1, 0.05)  # a dot product is cubic
    for buffer_name, buffer in model.named_buffers():
        if "running_var" in buffer_name and not affine(name):
            buffer.uniform_(0.5, 1.5)
        elif "running_mean" in buffer_name and not affine(name):
            buffer.normal_()
        elif affine(name) and "running_var" in buffer_name:
            buffer.fill_(1 - 1e-5)
    if name.startswith(("i3d_r50_nl5.k400_32x2_mmaction2", "slow_r50_nl5.k400_4x16_mmaction2")):
        clear_biases(model)
    if name.startswith("tsm_r50_nl5.k400_1x1x8_mmaction2"):
        clear_biases(model)
    return model.eval()


def clear_biases(model):
    """mmcv has no bias where a norm follows."""
    for block in model.modules():
        if isinstance(block, NonLocalBlock):
            torch.nn.init.zeros_(block.out.bias)


def affine(name):
    return "_lfb" in name or name.endswith("32x4_official")


def spoken(name, model):
    entry = read_zoo()[name]
    raw = speak(entry.dialect, model.state_dict(), shifted=entry.model.startswith("tsm"))
    if affine(name):
        raw["blobs"] = {k: v for k, v in raw["blobs"].items() if not re.search("_(rm|riv)$", k)}
    return raw


def file_of(name, tmp_path, change=lambda state: None):
    """The model and a file of its tensors in the names of the row's dialect."""
    model = trained(name)
    raw = spoken(name, model)
    inner = next((raw[k] for k in ("blobs", "model_state", "state_dict") if k in raw), raw)
    change(inner)
    path = tmp_path / "theirs.pth"
    torch.save(raw, path)
    return model, path


@pytest.mark.parametrize("name", marked(ROWS.values(), QUICK[1:3], QUICK))
def test_files_in_other_names_give_the_same_logits(name, tmp_path):
    model, path = file_of(name, tmp_path)
    loaded = nlzoo.create_model(name, pretrained=path, width=16).eval()
    clip = torch.randn(1, 3, 8, 64, 64)
    with torch.no_grad():
        assert torch.equal(loaded(clip), model(clip))
    assert loaded.num_classes == 7
    with pytest.warns(UserWarning, match=f"is read as {name.partition('.')[0]}"):
        nlzoo.create_model(name.partition(".")[0], pretrained=path, width=16)


FAULTS = {
    "dropped": lambda state, key: state.pop(key),
    "renamed": lambda state, key: state.update({f"{key}s": state.pop(key)}),
    "misshapen": lambda state, key: state.update({key: state[key][:-1]}),
    "extra": lambda state, key: state.update({f"{key}_more": state[key]}),
}


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize(
    "name", marked([ROWS[d] for d in ("caffe2", "mmaction2", "gluoncv", "patykov")], QUICK[:1])
)
def test_wrong_tensors_are_refused_by_name(name, fault, tmp_path):
    changed = []

    def change(state):
        tensors = ((k, v) for k, v in state.items() if isinstance(v, torch.Tensor))
        changed.extend(k for k, v in tensors if v.ndim == 5 and v.shape[-1] == 7)
        FAULTS[fault](state, changed[0])

    _, path = file_of(name, tmp_path, change)
    stem = changed[0].removeprefix("module.").removeprefix("model.")
    called = {"dropped": "stem.conv.weight: file missing", "extra": f"{stem}_more"}
    with pytest.raises(ValueError, match=re.escape(str(path))) as caught:
        nlzoo.create_model(name, pretrained=path, width=16)
    assert called.get(fault, stem) in str(caught.value)


@pytest.mark.slow
@pytest.mark.parametrize("entry", BUILDABLE, ids=lambda entry: entry.name)
def test_every_row_reads_its_own_names(entry):
    with torch.device("meta"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = nlzoo.create_model(entry.name)
    raw = speak(entry.dialect, model.state_dict(), shifted=entry.model.startswith("tsm"))
    state = flatten(raw)
    dialect = recognise_host(state)
    assert {dialect, entry.dialect} in ({entry.dialect}, {"tushar", "patykov"})
    own = rename_host(state, dialect)
    assert {k: v.shape for k, v in own.items()} == {
        k: v.shape for k, v in model.state_dict().items()
    }
    if "_nl" in entry.model:
        check_blocks(entry, model)
    seen = read_architecture(own, any(SHIFTED.fullmatch(name) for name in state))
    assert entry.model.startswith(
        seen.name.replace("c2d", "tsn" if "tsn" in entry.model else "c2d")
    )
    if entry.params_M and not entry.name.startswith(OTHER_HEAD):
        millions = sum(p.numel() for p in model.parameters()) / 1e6
        digits = len(entry.params_M.partition(".")[2])
        assert round(millions, digits) == pytest.approx(
            float(entry.params_M), abs=1.01 * 10**-digits
        )


@pytest.mark.skipif(not KEYS, reason="no key lists")
@pytest.mark.parametrize("path", marked(KEYS, KEYS[::8]), ids=lambda path: path.stem)
def test_published_key_lists_are_read_whole(path):
    lines = [line for line in path.read_text().splitlines() if not line.startswith("#")]
    shapes = {row["key"]: row["shape"] for row in csv.DictReader(lines)}
    state = {
        key: torch.empty(
            [int(n) for n in shape.split("x")] if shape[:1].isdigit() else [], device="meta"
        )
        for key, shape in shapes.items()
    }
    dialect = recognise_host(state)
    own = rename_host(state, dialect)
    seen = read_architecture(own, any(SHIFTED.fullmatch(name) for name in state))
    blocks = {"places": seen.places, "subsample": None, "form": "gaussian"} if seen.places else None
    if blocks and any("theta" in key for key in own):
        blocks["form"] = "embedded_gaussian"
    if blocks and not seen.normed:
        blocks["norm"] = None
    with torch.device("meta"):
        model = nlzoo.create_model(
            seen.name, num_classes=seen.num_classes, non_local=blocks, **seen.arch
        )
    assert {k: v.shape for k, v in own.items()} == {
        k: v.shape for k, v in model.state_dict().items()
    }


def test_all_dialects_are_written_here():
    assert {entry.dialect for entry in BUILDABLE} == set(WRITERS)


def test_a_file_of_another_dialect_is_no_row_s(tmp_path):
    _, path = file_of("i3d_r50_nl5.k400_32x2_mmaction2_dot", tmp_path)
    with pytest.raises(ValueError, match="mmaction2 names them"):
        nlzoo.create_model("i3d_r50_nl5.k400_32x2_official", pretrained=path, width=16)


# dialects_*: what each implementation's code does, whatever its files say
CODE = {  # keys pooled before phi and g; logits scaled by inner ** -0.5
    "caffe2": (True, True),
    "slowfast": (True, True),
    "mmaction2": (False, None),  # by configuration, see below
    "gluoncv": (None, True),
    "mit_tsm": (False, False),
    "mmaction01": (True, False),
    "tushar": (True, True),
    "patykov": (True, True),
}


@pytest.mark.parametrize("dialect", CODE)
def test_rows_compute_what_their_code_does(dialect):
    """The first of each; `test_every_row_reads_its_own_names` looks at the others."""
    entry = next(e for e in BUILDABLE if "_nl" in e.model and e.dialect == dialect)
    with torch.device("meta"):
        check_blocks(entry, nlzoo.create_model(entry.name))


def check_blocks(entry, model):
    first, scaled = CODE[entry.dialect]
    if entry.dialect == "mmaction2":  # use_scale: true for SlowOnly only
        scaled = entry.model.startswith("slow")
    for block in (m for m in model.modules() if isinstance(m, NonLocalBlock)):
        pooled = max(block.subsample) > 1
        assert pooled == (entry.dialect != "gluoncv")
        assert not pooled or block.subsample_first == first
        if block.form == "embedded_gaussian":
            assert block.scale == pytest.approx(block.inner**-0.5 if scaled else 1.0)


PARTS = {
    "a norm's weight": r".*norm\.weight",
    "a mean": r".*norm_b\.running_mean",
    "a variance": r".*norm_c\.running_var",
    "a block's convolution": r".*non_local\.g\.weight",
    "a block's variance": r".*non_local\.norm\.running_var",
    "the classifier's bias": r"head\.proj\.bias",
}


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize(
    "dialect",
    marked(["caffe2", "slowfast", "mmaction2", "gluoncv", "mit_tsm"], slow=["mmaction2"]),
)
def test_no_tensor_may_be_missing(dialect, part, tmp_path):
    name = ROWS[dialect] if dialect != "slowfast" else ROWS["two pathways"]

    def drop(state):
        tensors = [k for k, v in state.items() if isinstance(v, torch.Tensor)]
        for theirs, own in own_names((k.removeprefix("module.") for k in tensors), dialect).items():
            if own and re.fullmatch(PARTS[part], own):
                next(state.pop(k) for k in tensors if k.removeprefix("module.") == theirs)
                return

    _, path = file_of(name, tmp_path, drop)
    wrong = rf"{PARTS[part]}: file missing|repeats no other tensor"  # where an alias is left
    with pytest.raises(ValueError, match=wrong):
        nlzoo.create_model(name, pretrained=path, width=16)


def test_without_a_classifier_nobody_asked_for_a_new_one(tmp_path):
    def drop(state):
        for name in [k for k in state if "fc_cls" in k]:
            del state[name]

    name = ROWS["mmaction2"]
    _, path = file_of(name, tmp_path, drop)
    with pytest.raises(ValueError, match=r"head\.proj\.bias: file missing"):
        nlzoo.create_model(name, pretrained=path, width=16)
    with pytest.warns(UserWarning, match="the classifier starts fresh"):
        nlzoo.create_model(name, pretrained=path, width=16, num_classes=7)


def test_blocks_keep_their_facts_where_one_is_given(tmp_path):
    name = "i3d_r50_nl5.k400_32x2_mmaction2"
    _, path = file_of(name, tmp_path)
    model = nlzoo.create_model(name, pretrained=path, width=16, non_local={"res3": {"groups": 2}})
    blocks = [m for m in model.modules() if isinstance(m, NonLocalBlock)]
    assert [b.groups for b in blocks] == [2, 2, None, None, None]
    assert {(b.scale, b.subsample_first) for b in blocks} == {(1.0, False)}
    with pytest.warns(UserWarning, match=r"scale 0\.5: the blocks were trained with scale 1\.0"):
        nlzoo.create_model(name, pretrained=path, width=16, non_local={"scale": 0.5})


def test_a_network_of_images_is_no_video_network(tmp_path):
    import timm

    torch.save(timm.create_model("resnet50").state_dict(), tmp_path / "image.pth")
    with pytest.raises(ValueError, match="of a network of images: give pretrained='timm/NAME'"):
        nlzoo.create_model("c2d_r50", pretrained=tmp_path / "image.pth")


def test_memory_is_taken_after_the_shapes_are_compared(tmp_path):
    """A few bytes that say they are a network of a million channels."""
    spec = {"model": {"name": "i3d_r50_nl5", "arch": {"width": 1 << 20}}, "preprocessing": {}}
    torch.save({"state_dict": {"a": torch.ones(1)}, "nlzoo": spec}, tmp_path / "x.pth")
    with pytest.raises(ValueError, match="is of another architecture"):
        nlzoo.load_model(tmp_path / "x.pth")


@pytest.mark.parametrize(
    "spec", [{"model": {}}, {"model": "x", "preprocessing": {}}, {"preprocessing": 3}]
)
def test_specs_of_another_form(tmp_path, spec):
    torch.save({"state_dict": {"a": torch.ones(1)}, "nlzoo": spec}, tmp_path / "x.pth")
    with pytest.raises(ValueError, match="does not say which model it is"):
        nlzoo.load_model(tmp_path / "x.pth")
