"""A network of nlzoo written in the names of another implementation, as its own code saves it."""

import re

import torch

LETTERS = {"a": "1", "b": "2", "c": "3"}
NORM = {"weight": "s", "bias": "b", "running_mean": "rm", "running_var": "riv"}


def speak(dialect, state, shifted=False):
    """A network's state dict under a dialect's names, in the containers of its files."""
    stages = sorted({int(k[3]) for k in state if k.startswith("res")})
    spoken = {}
    for name, tensor in state.items():
        for theirs in WRITERS[dialect](name, stages, shifted, state):
            spoken[theirs] = tensor.clone()
    return WRAPPERS.get(dialect, dict)(spoken)


def _parts(name):
    name = name.removeprefix("fast.")
    stage, _, rest = name.partition(".")
    index, _, rest = rest.partition(".")
    return int(stage[3]), index, rest


def _caffe2(name, stages, shifted, state):
    if name.endswith("num_batches_tracked"):
        return []
    module, _, leaf = name.rpartition(".")
    wb = {"weight": "w", "bias": "b"}
    t = "t_" if name.startswith("fast.") else ""
    if module.endswith("stem.conv"):
        return [f"{t}conv1_w"]
    if module.endswith("stem.norm"):
        return [f"{t}res_conv1_bn_{NORM[leaf]}"]
    if name.startswith("head"):
        return [f"pred_{wb[leaf]}"]
    if match := re.match(r"lateral\.(\d)\.(\w+)", module):
        stage = int(match[1]) + 1
        last = max((int(k.split(".")[1]) for k in state if k.startswith(f"res{stage}.")), default=0)
        base = "t_pool1_subsample" if stage == 1 else f"t_res{stage}_{last}_branch2c_bn_subsample"
        return [f"{base}_w" if match[2] == "conv" else f"{base}_bn_{NORM[leaf]}"]
    stage, index, rest = _parts(name)
    module = rest.rpartition(".")[0]
    if module.startswith("non_local."):
        part = module.removeprefix("non_local.")
        base = f"{t}nonlocal_conv{stage}_{index}"
        return [f"{base}_bn_{NORM[leaf]}" if part == "norm" else f"{base}_{part}_{wb[leaf]}"]
    base = f"{t}res{stage}_{index}_"
    if module.startswith("branch1"):
        base += "branch1"
    else:
        base += "branch2" + module[-1]
    return [f"{base}_w" if "conv" in module else f"{base}_bn_{NORM[leaf]}"]


def _slowfast(name, stages, shifted, state):
    path = "pathway1" if name.startswith("fast.") else "pathway0"
    module, _, leaf = name.rpartition(".")
    if "stem" in module:
        return [f"s1.{path}_stem.{'conv' if module.endswith('conv') else 'bn'}.{leaf}"]
    if name.startswith("head"):
        return [f"head.projection.{leaf}"]
    if match := re.match(r"lateral\.(\d)\.(\w+)", module):
        kind = "conv_f2s" if match[2] == "conv" else "bn"
        return [f"s{int(match[1]) + 1}_fuse.{kind}.{leaf}"]
    stage, index, rest = _parts(name)
    module = rest.rpartition(".")[0]
    if module.startswith("non_local."):
        part = module.removeprefix("non_local.")
        part = "bn" if part == "norm" else f"conv_{part}"
        return [f"s{stage}.{path}_nonlocal{index}.{part}.{leaf}"]
    base = f"s{stage}.{path}_res{index}."
    if module.startswith("branch1"):
        return [f"{base}branch1{'' if 'conv' in module else '_bn'}.{leaf}"]
    return [f"{base}branch2.{module[-1]}{'' if 'conv' in module else '_bn'}.{leaf}"]


def _pytorchvideo(name, stages, shifted, state):
    two = "fast.stem.conv.weight" in state
    path = (f"multipathway_blocks.{int(name.startswith('fast.'))}.") if two else ""
    name = name.removeprefix("fast.")
    kernels = state["res4.0.branch2.conv_a.weight"], state["res4.1.branch2.conv_a.weight"]
    slow = all(k.shape[2] == 3 for k in kernels) and not two
    pooled = not slow and not two
    if name.startswith("stem."):
        return [f"blocks.0.{path}{name.removeprefix('stem.')}"]
    if match := re.match(r"lateral\.(\d)\.(\w+)\.(\w+)", name):
        kind = "conv_fast_to_slow" if match[2] == "conv" else "norm"
        return [f"blocks.{match[1]}.multipathway_fusion.{kind}.{match[3]}"]
    if name.startswith("head"):
        return [f"blocks.{5 if slow else 6}.{name.removeprefix('head.')}"]
    stage, _, rest = name.partition(".")
    number = int(stage[3]) - 1
    number += 1 if pooled and number > 1 else 0
    return [f"blocks.{number}.{path}res_blocks.{rest}"]


def _torch(name, stages, shifted, state, *, layer, places, norm, short, head, conv="", first=1):
    """ResNets with conv1, bn1, layer1, ...: `norm` has K for the number of its convolution."""
    module, _, leaf = name.rpartition(".")
    prefix = layer.rpartition("layer")[0] if "layer" in layer else ""
    if module == "stem.conv":
        return [f"{prefix}conv1{conv}.{leaf}"]
    if module == "stem.norm":
        return [f"{prefix}{norm.replace('K', '1')}.{leaf}"]
    if name.startswith("head"):
        return [f"{one}.{leaf}" for one in head]
    stage, index, rest = _parts(name)
    wrapped = shifted and any(k.startswith(f"res{stage}.{index}.non_local.") for k in state)
    base = f"{layer}{stage - 2 + first}.{index}."
    module = rest.rpartition(".")[0]
    if module.startswith("non_local."):
        return [base + name for name in places(module.removeprefix("non_local."), leaf)]
    base += "block." if wrapped else ""
    if module.startswith("branch1"):
        return [f"{base}{short['conv' in module]}.{leaf}"]
    number = LETTERS[module[-1]]
    if "norm" in module:
        return [f"{base}{norm.replace('K', number)}.{leaf}"]
    net = ".net" if shifted and number == "1" else ""
    return [f"{base}conv{number}{conv}{net}.{leaf}"]


DOWN = {True: "downsample.0", False: "downsample.1"}


def _mmcv(part, leaf):
    if part == "out":  # its bias is not there: a norm follows
        return [f"non_local_block.conv_out.conv.{leaf}"] if leaf == "weight" else []
    if part == "norm":
        return [f"non_local_block.conv_out.bn.{leaf}"]
    pooled = ".0" if part in ("g", "phi") else ""
    return [f"non_local_block.{part}{pooled}.conv.{leaf}"]


def _gluon(part, leaf):
    if part == "out":
        return [f"nonlocal_block.W.{leaf}", f"nonlocal_block.W_bn.0.{leaf}"]
    if part == "norm":
        return [f"nonlocal_block.bn.{leaf}", f"nonlocal_block.W_bn.1.{leaf}"]
    return [f"nonlocal_block.{part}.{leaf}"]


def _alexhex7(part, leaf):
    names = {"out": "W.0", "norm": "W.1", "g": "g.0", "phi": "phi.0"}
    return [f"nl.{names.get(part, part)}.{leaf}"]


def _sequential(part, leaf):
    names = {"out": "W.0", "norm": "W.1", "g": "g.1", "phi": "phi.1"}
    return [f"nonlocal_block.{names.get(part, part)}.{leaf}"]


def _mmaction01_block(part, leaf):
    alias = [f"nonlocal_block.bn.{leaf}"] if part == "norm" else []
    return [*_sequential(part, leaf), *alias]


def _port(part, leaf):
    return [f"nl.{'bn' if part == 'norm' else part}.{leaf}"]


def _resnet(**facts):
    return lambda *arguments: _torch(*arguments, **facts)


def _gluoncv(name, stages, shifted, state):
    if name.startswith("stem."):
        leaf = name.rpartition(".")[2]
        return [f"first_stage.{int('norm' in name)}.{leaf}"]
    facts = {"layer": "res_layers.", "places": _gluon, "norm": "bnK", "short": DOWN, "first": 0}
    return _torch(name, stages, shifted, state, head=["fc", "head.1"], **facts)


PLAIN = {"norm": "bnK", "short": DOWN}
WRITERS = {
    "caffe2": _caffe2,
    "slowfast": _slowfast,
    "pytorchvideo": _pytorchvideo,
    "mmaction2": _resnet(
        layer="backbone.layer",
        places=_mmcv,
        norm="convK.bn",
        short={True: "downsample.conv", False: "downsample.bn"},
        head=["cls_head.fc_cls"],
        conv=".conv",
    ),
    "gluoncv": _gluoncv,
    "mit_tsm": _resnet(layer="base_model.layer", places=_alexhex7, head=["new_fc"], **PLAIN),
    "mmaction01": _resnet(
        layer="backbone.layer", places=_mmaction01_block, head=["cls_head.fc_cls"], **PLAIN
    ),
    "tushar": _resnet(layer="layer", places=_port, head=["fc"], **PLAIN),
    "patykov": _resnet(layer="layer", places=_sequential, head=["fc"], **PLAIN),
}


def _blobs(spoken):
    momentum = {f"{k}_momentum": torch.zeros_like(v) for k, v in spoken.items() if "_r" not in k}
    return {"blobs": {**spoken, **momentum, "lr": torch.tensor(0.1), "model_iter": 400000}}


def _training(key, prefix=""):
    """A checkpoint of a training run."""

    def wrap(spoken):
        named = {prefix + k: v for k, v in spoken.items()}
        state = {"state": {0: {"momentum_buffer": torch.zeros(2)}}, "param_groups": [{"lr": 0.1}]}
        return {key: named, "epoch": 3, "optimizer": state}

    return wrap


WRAPPERS = {
    "caffe2": _blobs,
    "slowfast": _training("model_state"),
    "pytorchvideo": _training("model_state", "model."),
    "mmaction2": _training("state_dict"),
    "mit_tsm": _training("state_dict", "module."),
}
