"""Other implementations' blocks: golden outputs, and files in their names."""

import json
from copy import deepcopy

import pytest
import torch
from shared import SHARED
from timm.layers import BatNonLocalAttn

from nlzoo import NonLocalBlock
from nlzoo.program import run as run_program
from nlzoo.weights import __main__ as program
from nlzoo.weights.blocks import DIALECTS, facts_of, load_block
from nlzoo.weights.golden import LIMIT, read_golden, relative_error
from nlzoo.weights.verify import build, run, verify

GOLDENS = SHARED / "goldens"
NAMES = sorted(path.name for path in GOLDENS.glob("*.json"))
needs_goldens = pytest.mark.skipif(not NAMES, reason=f"no golden files in {GOLDENS}")
LARGE = "_224", "fair_official", "fair_pytorchvideo", "gluoncv", "mmaction2_i3d"


def by_size(name):
    large = any(part in name for part in LARGE) and "nonlocal" not in name
    return pytest.param(name, marks=pytest.mark.slow if large else ())


@needs_goldens
@pytest.mark.parametrize("name", map(by_size, NAMES))
def test_golden_outputs_are_reproduced(name):
    assert verify(read_golden(GOLDENS / name)) <= LIMIT


# -- the mistakes that golden files list, made on purpose --------------------------------------


def each(change):
    """Change every block."""

    def mistake(network, blocks):
        for block in blocks:
            change(block)

    return mistake


def drop(*which):
    """Blocks that add nothing; all of them by default."""

    def mistake(network, blocks):
        for i in which or range(len(blocks)):
            blocks[i].forward = lambda x: x

    return mistake


def swap(block):
    """theta and phi; in timm's block their weights."""
    block.theta, block.phi = block.phi, block.theta


def without_relu(block):
    block._pairwise = lambda a, b, g, keys: (a + b.mT) @ g / b.shape[1]


def set_scale(value):
    return each(lambda block: setattr(block, "scale", value(block)))


def toggle_scale(block):
    block.scale = block.inner**-0.5 if block.scale == 1 else 1.0


def pool1(*padding):
    def mistake(network, blocks):
        stem(network).pool.padding = padding

    return mistake


def as_sparse(network, blocks):
    """The stem of the other builder: no stride in time."""
    stem(network).conv.stride = (1, 2, 2)
    stem(network).pool.kernel_size, stem(network).pool.stride = (1, 3, 3), (1, 2, 2)


def without_dilation(network, blocks):
    for module in network.res5.modules():
        if getattr(module, "dilation", None) == (1, 2, 2):
            module.dilation, module.padding = (1, 1, 1), (0, 1, 1)


def stem(network):
    return next(module.stem for module in network.modules() if hasattr(module, "stem"))


NO_POOL = each(lambda block: setattr(block, "subsample", (1,) * block.dims))
OTHER_ORDER = each(lambda block: setattr(block, "subsample_first", not block.subsample_first))
EFFECTS = {
    "drop_block": drop(),
    "drop_all_blocks": drop(),
    "drop_nonlocal": drop(),
    **{f"drop_block_{i}": drop(i) for i in range(5)},
    "swap_theta_phi": each(swap),
    "swap_t_p": each(swap),
    "no_relu": each(without_relu),
    "no_subsample": NO_POOL,
    "no_subsampling": NO_POOL,
    "pool_before_conv": OTHER_ORDER,
    "pool_after_phi_g": OTHER_ORDER,
    "add_scale": each(toggle_scale),
    "toggle_scale": each(toggle_scale),
    "remove_scale": set_scale(lambda block: 1.0),
    "no_scale": set_scale(lambda block: 1.0),
    "no_logit_scale": set_scale(lambda block: 1.0),
    "scale_by_inner_width": set_scale(lambda block: block.inner**-0.5),
    "no_temporal_groups": each(lambda block: setattr(block, "groups", None)),
    "pool1_pad_0": pool1(0, 0, 0),
    "pool1_pad_1": pool1(0, 1, 1),
    "stem_stride_1_pool1_k1": as_sparse,
    "res5_no_dilation": without_dilation,
}


def of_blocks(name):
    """Those of whole networks take longer: a pass for each effect."""
    large = "block" not in name and "mmcv" not in name and "pytorchvideo" not in name
    return pytest.param(name, marks=pytest.mark.slow if large else ())


def effects(path):
    golden = read_golden(path)
    return {**golden.get("effects", {}), **golden.get("sensitivity_relative_l2", {})}


@needs_goldens
@pytest.mark.parametrize("name", map(of_blocks, (n for n in NAMES if effects(GOLDENS / n))))
def test_mistakes_have_the_effects_that_a_golden_lists(name):
    golden = read_golden(GOLDENS / name)
    network = build(golden)
    right = run(network, golden)
    for effect, size in effects(GOLDENS / name).items():
        wrong = deepcopy(network)
        kinds = (NonLocalBlock, BatNonLocalAttn)
        EFFECTS[effect](wrong, [m for m in wrong.modules() if isinstance(m, kinds)])
        output = run(wrong, golden)
        assert relative_error(golden, output) > LIMIT, effect
        found = float((output - right).norm() / right.norm())
        assert found == pytest.approx(size, rel=0.05), effect


@needs_goldens
@pytest.mark.parametrize(
    ("name", "tensor"),
    [
        ("slowfast_slow_nln_4x16_r50_dotproduct.json", "s3.pathway0_res1.branch2.a.weight"),
        pytest.param("tushar_i3d_r50_32x2.json", "layer2.1.conv1.weight", marks=pytest.mark.every),
        pytest.param(
            "mmaction2_slowonly_r50_nl_embedded_gaussian_4x16.json",
            "backbone.conv1.conv.weight",
            marks=pytest.mark.every,
        ),
    ],
)
@pytest.mark.parametrize("damage", ["dropped", "renamed", "misshapen", "extra"])
def test_a_tensor_of_a_host_that_does_not_fit_is_named(name, tensor, damage):
    golden = read_golden(GOLDENS / name)
    entries = [e for e in golden["state_dict"] if e[0] != tensor or damage in ("extra",)]
    (entry,) = [e for e in golden["state_dict"] if e[0] == tensor]
    named = "res3.1.branch2.conv_a.weight|stem.conv.weight"
    if damage == "misshapen":
        entries.append([tensor, [entry[1][0] + 1, *entry[1][1:]], entry[2]])
    elif damage in ("renamed", "extra"):
        named = "nonsense.weight"
        entries.append([named, entry[1], entry[2]])
    with pytest.raises(ValueError, match=named):
        verify(golden | {"state_dict": entries})


# -- files in every dialect's names -----------------------------------------------------------

WRITTEN = {  # what this zoo calls theta.weight and so on
    "caffe2": "nonlocal_conv3_1_{}_{}",
    "slowfast": "conv_theta conv_phi conv_g conv_out bn",
    "pytorchvideo": "conv_theta conv_phi conv_g conv_out norm",
    "mmcv": "theta.conv phi.0.conv g.0.conv conv_out.conv conv_out.bn concat_project.conv.weight",
    "mmaction01": "theta phi.1 g.1 W.0 W.1",
    "mit_tsm": "theta phi.0 g.0 W.0 W.1",
    "alexhex7": "theta phi.0 g.0 W.0 W.1 concat_project.0.weight",
    "tea1528": "theta phi g W_z.0 W_z.1 W_f.0.weight",
    "gluoncv": "theta phi g W bn",
    "timm": "t p g z norm",
    "tushar": "theta phi g out bn",
    "patykov": "theta phi.1 g.1 W.0 W.1",
}


def written(block, dialect):
    """A block's tensors in another implementation's names, with its aliases."""
    state = dict(block.state_dict())
    if dialect == "caffe2":
        short = {"weight": "w", "bias": "b", "running_mean": "rm", "running_var": "riv"}
        del state["norm.num_batches_tracked"]
        split = ((*name.split("."), tensor) for name, tensor in state.items())
        return {
            f"nonlocal_conv3_1_{'bn' if own == 'norm' else own}_"
            f"{'s' if own == 'norm' and kind == 'weight' else short[kind]}": tensor
            for own, kind, tensor in split
        }
    theirs = dict(zip(("theta", "phi", "g", "out", "norm"), WRITTEN[dialect].split(), strict=False))
    named = {}
    for name, tensor in state.items():
        own, _, kind = name.partition(".")
        if own == "w_f":
            named[WRITTEN[dialect].split()[5]] = tensor.view(1, -1, 1, 1)
        elif not (dialect == "mmcv" and name == "out.bias"):
            named[f"{theirs[own]}.{kind}"] = tensor
    if dialect == "mmaction01":
        named |= {f"bn.{k}": v for k, v in block.norm.state_dict().items()}
    if dialect == "gluoncv":
        named |= {f"W_bn.0.{k}": v for k, v in block.out.state_dict().items()}
        named |= {f"W_bn.1.{k}": v for k, v in block.norm.state_dict().items()}
    return named


def block_of(dialect, form="embedded_gaussian", dims=3):
    torch.manual_seed(0)
    facts = facts_of(dialect, form, {"scale": 8**-0.5} if dialect == "timm" else {})
    block = NonLocalBlock(8, dims=2 if dialect == "timm" else dims, zero_init=False, **facts)
    with torch.no_grad():
        for tensor in block.state_dict().values():
            if tensor.is_floating_point():
                tensor.add_(torch.rand_like(tensor))
        if dialect == "mmcv":
            block.out.bias.zero_()
    return block.eval()


@pytest.mark.parametrize("dialect", DIALECTS)
def test_a_file_in_a_dialects_names_loads_to_equal_bits(dialect):
    block = block_of(dialect)
    loaded = load_block(written(block, dialect), dialect, block.dims)
    x = torch.randn(2, 8, *(3, 5, 6)[3 - block.dims :])
    with torch.no_grad():
        assert torch.equal(loaded(x), block(x))


@pytest.mark.parametrize("dims", [1, 2, 3])
@pytest.mark.parametrize("dialect", ["mmcv", "alexhex7", "tea1528"])
def test_concatenation_of_any_dimension(dialect, dims):
    block = block_of(dialect, "concatenation", dims)
    loaded = load_block(written(block, dialect), dialect, dims)
    x = torch.randn(2, 8, *(3, 5, 6)[3 - dims :])
    with torch.no_grad():
        assert torch.equal(loaded(x), block(x))


def test_a_bias_before_the_relu_is_kept():
    """tea1528: ReLU(w_f . [theta, phi] + c)."""
    block = block_of("tea1528", "concatenation", 1)
    loaded = load_block(
        {**written(block, "tea1528"), "W_f.0.bias": torch.tensor([0.7])}, "tea1528", 1
    )
    x = torch.randn(2, 8, 5)
    theta, phi, g = (conv(x) for conv in (block.theta, block.phi, block.g))
    a, b = (w @ t for w, t in zip(block.w_f.chunk(2), (theta, phi), strict=True))
    f = (a.unsqueeze(2) + b.unsqueeze(1) + 0.7).relu() / 5
    wanted = x + block.norm(block.out((f @ g.mT).mT))
    torch.testing.assert_close(loaded(x), wanted)


def test_affine_caffe2_blocks_scale_and_shift():
    state = written(block_of("caffe2"), "caffe2")
    affine = {k: v for k, v in state.items() if not k.endswith(("_rm", "_riv"))}
    loaded = load_block(affine, "caffe2")
    y = torch.randn(1, 8, 2, 3, 3)
    wanted = y * affine["nonlocal_conv3_1_bn_s"].view(-1, 1, 1, 1)
    wanted = wanted + affine["nonlocal_conv3_1_bn_b"].view(-1, 1, 1, 1)
    torch.testing.assert_close(loaded.norm(y), wanted)
    bare = {k: v for k, v in affine.items() if "_bn_" not in k}
    assert load_block(bare, "caffe2").norm is None


@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize("damage", ["dropped", "renamed", "misshapen", "extra", "int8"])
def test_a_tensor_that_does_not_fit_is_named(dialect, damage):
    state = written(block_of(dialect), dialect)
    name = next(k for k in state if "phi" in k or k.startswith("p."))
    if damage == "misshapen":
        state[name] = state[name][:-1]
    elif damage == "int8":
        state[name] = state[name].to(torch.int8)
    elif damage == "extra":
        name = "momentum_of_something"
        state[name] = torch.zeros(3)
    else:
        tensor = state.pop(name)
        if damage == "renamed":
            state["nonsense"] = tensor
    named = {"extra": name, "renamed": "nonsense"}.get(damage, r"phi\.(weight|bias)")
    with pytest.raises(ValueError, match=named):
        load_block(state, dialect, 2 if dialect == "timm" else 3)


@pytest.mark.parametrize("dialect", ["mmaction01", "gluoncv"])
def test_aliases_must_repeat_a_tensor(dialect):
    state = written(block_of(dialect), dialect)
    name = next(k for k in state if k.startswith(("bn.weight", "W_bn.1.weight")))
    state[name] = state[name] + 1
    with pytest.raises(ValueError, match=r"weight repeats no other tensor"):
        load_block(state, dialect)


# -- the program ------------------------------------------------------------------------------


@needs_goldens
def test_verify_says_how_far_and_fails_where_too_far(tmp_path, capsys):
    name = "timm_block_nonlocal_attn.json"
    golden = read_golden(GOLDENS / name)
    program.main(["verify", str(GOLDENS / name)])
    assert f"{name}: relative L2 " in capsys.readouterr().out
    (tmp_path / "wrong.json").write_text(json.dumps(golden | {"kernel_gain": 1.0}))
    with pytest.raises(SystemExit) as exit_:
        program.main(["verify", str(tmp_path / "wrong.json")])
    assert exit_.value.code == 1
    assert capsys.readouterr().out.endswith(": WRONG\n")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "no golden file"),
        ("x", "is not JSON"),
        ("[]", "is no golden file: dialect"),
        ('{"dialect": "mmcv"}', "config, input, kernel_gain, state_dict, output missing"),
    ],
)
def test_files_that_are_no_goldens(tmp_path, capsys, text, message):
    path = tmp_path / "g.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(SystemExit) as exit_:
        run_program(program.main, ["verify", str(path)])
    assert exit_.value.code == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
