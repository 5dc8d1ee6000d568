"""Weight files: nothing in them runs, nothing is left out silently, and errors say what to do."""

import os
import pickle
import re
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from nlzoo.models import create_model
from nlzoo.networks.video import VideoResNet
from nlzoo.weights.hosts import recognise_host, rename_host
from nlzoo.weights.load import WeightFile, check_fits, fit_to, read_weights
from nlzoo.weights.read import read_checkpoint
from nlzoo.weights.recognise import CONTAINERS


def load_into(model, weights, **fresh):
    model.load_state_dict(fit_to(model, weights, **fresh), strict=False)


def tiny(name: str = "i3d_r18_nl1", num_classes: int = 5, **arch: Any) -> VideoResNet:
    return create_model(name, width=4, geometry="8x8", num_classes=num_classes, **arch)


def saved(tmp_path: Path, content: Any, name: str = "weights.pt", **options: Any) -> Path:
    torch.save(content, tmp_path / name, **options)
    return tmp_path / name


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


class RunsCode:
    """What a malicious file holds: unpickling it makes a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> Any:
        return os.system, (f"mkdir {self.folder}",)


# -- reading ----------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_reads_both_formats(tmp_path: Path, suffix: str) -> None:
    state = tiny().state_dict()
    path = tmp_path / f"weights{suffix}"
    contiguous = {k: v.contiguous() for k, v in state.items()}
    torch.save(state, path) if suffix == ".pt" else safetensors.torch.save_file(contiguous, path)
    assert same(read_checkpoint(path), state)
    weights = read_weights(str(path))
    assert same(weights.state, state)
    assert (weights.path, weights.spec, weights.dialect) == (path, {}, "")
    assert weights.num_classes(tiny()) == 5


@pytest.mark.parametrize("prefix", ["model.", "model._orig_mod.", "_orig_mod.", ""])
@pytest.mark.parametrize("key", ["state_dict", "model_state", None])
def test_wrappers_are_taken_off(tmp_path: Path, prefix: str, key: str | None) -> None:
    state = tiny().state_dict()
    named: Any = {prefix + k: v for k, v in state.items()} | {"epoch": 3}
    spec = {"model": {"name": "i3d_r18_nl1", "arch": {"width": 4}}, "preprocessing": {}}
    path = saved(tmp_path, {key: named, "nlzoo": spec, "step": 9} if key else named)
    weights = read_weights(path)
    assert same(weights.state, state)
    assert weights.spec.get("model", {}).get("arch") == ({"width": 4} if key else None)


@pytest.mark.parametrize("key", CONTAINERS)
def test_containers(tmp_path: Path, key: str) -> None:
    """Averages, the later ones, where there is nothing else."""
    state, other = {"a": torch.ones(2)}, {"a": torch.zeros(2)}
    content = {"optimizer": other, "epoch": 3, key: {"module.a": state["a"]}}
    assert same(read_weights(saved(tmp_path, content)).state, state)
    assert same(read_weights(saved(tmp_path, {"model": content})).state, state)
    if key != "state_dict":
        assert same(read_weights(saved(tmp_path, {**content, "state_dict": other})).state, other)


def test_missing(tmp_path: Path) -> None:
    for path in (tmp_path / "none.pt", tmp_path):
        with pytest.raises(FileNotFoundError, match=r"no weights file .* give a checkpoint that"):
            read_checkpoint(path)


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.999])
def test_truncated(tmp_path: Path, suffix: str, share: float) -> None:
    path = tmp_path / f"weights{suffix}"
    state = {"a": torch.ones(1000), "b": torch.ones(3)}
    torch.save(state, path) if suffix == ".pt" else safetensors.torch.save_file(state, path)
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    with pytest.raises(ValueError, match="is not a weights file, or is truncated; copy or"):
        read_checkpoint(path)


@pytest.mark.parametrize("text", [b"hello\n", b"<!DOCTYPE html>\n", b'{"a": 1}', b"#!/bin/sh\n"])
@pytest.mark.parametrize("suffix", [".pt", ".ckpt", ".safetensors"])
def test_text_is_not_called_malicious(tmp_path: Path, text: bytes, suffix: str) -> None:
    path = tmp_path / f"page{suffix}"
    path.write_bytes(text)
    with pytest.raises(ValueError, match="is not a weights file, or is truncated"):
        read_checkpoint(path)


@pytest.mark.parametrize("how", ["zip", "legacy", "pickle"])
def test_code_in_a_file_is_not_run(tmp_path: Path, how: str) -> None:
    trap, path = tmp_path / "trap", tmp_path / "weights.pt"
    content = {"state_dict": {"a": torch.ones(1)}, "extra": RunsCode(trap)}
    if how == "pickle":
        path.write_bytes(pickle.dumps(content["extra"], protocol=2))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=how == "zip")
    with pytest.raises(ValueError, match="refused, as loading it could run code: get the weights"):
        read_weights(path)
    assert not trap.exists()
    pickle.loads(pickle.dumps(RunsCode(trap)))
    assert trap.exists()  # the trap is a trap


@given(st.data())
@settings(
    deadline=None, max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@pytest.mark.filterwarnings("ignore")
def test_damaged_bytes_are_one_kind_of_error(tmp_path: Path, data: st.DataObject) -> None:
    path = tmp_path / "weights.pt"
    legacy = data.draw(st.booleans())
    torch.save({"a": torch.ones(3)}, path, _use_new_zipfile_serialization=not legacy)
    damaged = bytearray(path.read_bytes())
    if data.draw(st.booleans()):
        damaged = bytearray(data.draw(st.binary(max_size=40)))
    elif legacy:
        for place in data.draw(st.lists(st.integers(0, len(damaged) - 1), max_size=4)):
            damaged[place] = data.draw(st.integers(0, 255))
    else:
        del damaged[data.draw(st.integers(0, len(damaged) - 1)) :]
    path.write_bytes(damaged)
    try:
        read_weights(path)
    except ValueError as error:
        assert str(path) in str(error)  # noqa: PT017
        assert "\n" not in str(error)  # noqa: PT017


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([torch.ones(1)], "holds a list, not a state dict or a checkpoint"),
        (torch.ones(1), "holds a Tensor, not a state dict"),
        ({}, "holds no weights; expected a state dict or a checkpoint"),
        ({"epoch": 3, "mine": {"a": torch.ones(1)}}, "or a checkpoint, found 'epoch', 'mine'$"),
        ({"state_dict": [torch.ones(1)]}, "holds no weights"),
        ({"state_dict": None, "step": 3}, "holds no weights"),
        ({0: torch.ones(1)}, "holds no weights"),
    ],
    ids=str,
)
def test_other_contents(tmp_path: Path, content: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_weights(saved(tmp_path, content))


# -- fitting ----------------------------------------------------------------------------------


def test_loads_every_weight(tmp_path: Path) -> None:
    model, other = tiny(), tiny()
    assert not same(model.state_dict(), other.state_dict())
    load_into(other, read_weights(saved(tmp_path, model.state_dict())))
    assert same(model.state_dict(), other.state_dict())


def test_another_architecture_lists_the_first_mismatches() -> None:
    own = {"a": torch.ones(2, 3), "b": torch.ones(4), "c": torch.ones(1), "same": torch.ones(5)}
    state = {"a": torch.ones(2, 4), "d": torch.ones(6), "e": torch.ones(7), "same": torch.ones(5)}
    wanted = (
        "x.pt is of another architecture: a: file (2, 4), model (2, 3); b: file missing, "
        "model (4,); c: file missing, model (1,); and 2 more"
    )
    with pytest.raises(ValueError, match=f"^{re.escape(wanted)}"):
        check_fits(state, own, "x.pt")
    with pytest.raises(ValueError, match=r"architecture: d: file \(6,\), model unknown\."):
        check_fits({**own, "d": torch.ones(6)}, own, "x.pt")
    check_fits(own, own, "x.pt")


def test_counters_may_be_missing_but_not_surplus() -> None:
    own = {"norm.weight": torch.ones(2), "norm.num_batches_tracked": torch.tensor(0)}
    check_fits({"norm.weight": torch.ones(2)}, own, "x.pt")
    with pytest.raises(ValueError, match=r"norm\.num_batches_tracked: file \(\), model unknown"):
        check_fits(own, {"norm.weight": torch.ones(2)}, "x.pt")


@pytest.mark.parametrize("dtype", [torch.int8, torch.int64, torch.bool, torch.complex64])
def test_numbers_of_another_kind_are_refused(tmp_path: Path, dtype: torch.dtype) -> None:
    model = tiny()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    state = {**before, "stem.conv.weight": before["stem.conv.weight"].to(dtype)}
    kind = str(dtype).removeprefix("torch.")
    with pytest.raises(ValueError, match=rf"stem\.conv\.weight is {kind}, not floating-point"):
        load_into(model, read_weights(saved(tmp_path, state)))
    assert same(model.state_dict(), before)


def test_nothing_is_loaded_where_something_does_not_fit(tmp_path: Path) -> None:
    model = tiny()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    state = {k: v + 1 for k, v in before.items()}
    state["res5.1.branch2.conv_b.weight"] = torch.ones(1)
    with pytest.raises(ValueError, match=r"res5\.1\.branch2\.conv_b\.weight: file \(1,\), model"):
        load_into(model, read_weights(saved(tmp_path, state)))
    assert same(model.state_dict(), before)


@pytest.mark.parametrize("head", [7, 0])
def test_another_class_count_starts_fresh(tmp_path: Path, head: int) -> None:
    source, model = tiny(num_classes=head), tiny(num_classes=5)
    before = model.get_classifier().weight.clone()
    path = saved(tmp_path, source.state_dict())
    with pytest.warns(UserWarning, match=r"weights\.pt: the classifier starts fresh"):
        load_into(model, read_weights(path), fresh_head=True, fresh_blocks=True)
    assert torch.equal(model.get_classifier().weight, before)
    body = {k: v for k, v in source.state_dict().items() if not k.startswith("head.")}
    assert same(body, {k: v for k, v in model.state_dict().items() if not k.startswith("head.")})


def test_blocks_that_the_file_does_not_know_start_fresh(tmp_path: Path) -> None:
    source, model = tiny("i3d_r18"), tiny("i3d_r18_nl5")
    block = {k: v.clone() for k, v in model.state_dict().items() if ".non_local." in k}
    with pytest.warns(UserWarning, match="has no non-local blocks: they start fresh"):
        load_into(model, read_weights(saved(tmp_path, source.state_dict())), fresh_blocks=True)
    state = model.state_dict()
    assert same(block, {k: v for k, v in state.items() if ".non_local." in k})
    assert same(source.state_dict(), {k: v for k, v in state.items() if ".non_local." not in k})


def test_blocks_at_other_places_are_an_error(tmp_path: Path) -> None:
    path = saved(tmp_path, tiny("i3d_r18_nl1").state_dict())
    with pytest.raises(ValueError, match=r"res3\.1\.non_local\.g\.bias: file missing, model \(4,"):
        load_into(tiny("i3d_r18_nl5"), read_weights(path))


# -- names of pytorchvideo --------------------------------------------------------------------

HUB_NAMES = {  # with a pool at blocks.2, as c2d and i3d have; slow has none
    "blocks.0.conv.weight": "stem.conv.weight",
    "blocks.0.norm.running_mean": "stem.norm.running_mean",
    "blocks.1.res_blocks.0.branch1_conv.weight": "res2.0.branch1_conv.weight",
    "blocks.1.res_blocks.0.branch2.conv_a.weight": "res2.0.branch2.conv_a.weight",
    "blocks.3.res_blocks.10.branch2.norm_c.bias": "res3.10.branch2.norm_c.bias",
    "blocks.4.res_blocks.1.branch2.conv_b.weight": "res4.1.branch2.conv_b.weight",
    "blocks.5.res_blocks.2.branch2.conv_c.weight": "res5.2.branch2.conv_c.weight",
    "blocks.6.proj.weight": "head.proj.weight",
    "blocks.6.proj.bias": "head.proj.bias",
}


@pytest.mark.parametrize("pool", [True, False])
def test_hub_names(pool: bool) -> None:
    def numbered(name: str) -> str:
        return re.sub(r"\d+", lambda m: str(int(m[0]) - (int(m[0]) > 2)), name, count=1)

    state = {
        (k if pool else numbered(k)): torch.ones(2, 1, 1, 1, 1) * i for i, k in enumerate(HUB_NAMES)
    }
    assert recognise_host(state) == "pytorchvideo"
    renamed = rename_host(state, "pytorchvideo")
    found = {k: int(v.flatten()[0]) for k, v in renamed.items() if k in HUB_NAMES.values()}
    assert found == {name: i for i, name in enumerate(HUB_NAMES.values())}
    assert recognise_host(tiny().state_dict()) is None


@pytest.mark.parametrize("name", ["c2d_r50", "i3d_r50", "slow_r50"])
def test_hub_file(tmp_path: Path, name: str) -> None:
    """Names as pytorchvideo's own builders give them, in a file as its hub serves it."""
    from pytorchvideo.models import hub

    with torch.device("meta"):
        theirs = getattr(hub, name)(pretrained=False).state_dict()
    theirs = {k: torch.zeros(()).expand(v.shape) for k, v in theirs.items()}
    weights = read_weights(saved(tmp_path, {"model_state": theirs}))
    assert isinstance(weights, WeightFile)
    with torch.device("meta"):
        ours = create_model(name)
    assert (weights.dialect, weights.num_classes(ours)) == ("pytorchvideo", 400)
    check_fits(weights.state, ours.state_dict(), weights.path)
