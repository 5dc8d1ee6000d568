"""Two forms of one network, compared: what is wrong is found, and named."""

from dataclasses import replace
from math import inf

import onnx
import pytest
import torch
from onnx import numpy_helper
from test_export import checkpoint, clips
from tiers import marked

from nlzoo.export import __main__ as program
from nlzoo.export.parity import Parity, ToleranceError, common, compare, draw_inputs
from nlzoo.export.runtime import Runner
from nlzoo.export.spec import Spec
from nlzoo.preprocessing import Preprocessing
from nlzoo.program import run


def sabotage(path, part):
    """A file with one thing wrong."""
    file = onnx.load(path)
    weights = {w.name: w for w in file.graph.initializer}
    (softmax,) = (n for n in file.graph.node if n.op_type == "Softmax")
    if part == "scale":  # of the logits
        node = next(n for n in file.graph.node if softmax.input[0] in n.output)
        name = next(i for i in node.input if i in weights)
        array = numpy_helper.to_array(weights[name]) * 4
    else:
        name = next(n for n in file.graph.node if n.op_type == "Conv").input[1]
        array = numpy_helper.to_array(weights[name]).copy()
        if part == "weight":
            array[0, 0, 0, 0] += 0.5
        else:
            array = array[:, ::-1].copy()
    weights[name].CopyFrom(numpy_helper.from_array(array, name))
    onnx.save(file, path.with_name("bad.onnx"))
    return path.with_name("bad.onnx")


@pytest.mark.parametrize("part", marked(["weight", "channels", "scale"], ["scale"]))
def test_sabotage_is_found(exported, part, capsys):
    source, _, path = exported
    program.main(["parity", source, str(path)])
    assert "top-1 agreement 100.0%" in capsys.readouterr().out
    with pytest.raises(SystemExit) as exit_:
        program.main(["parity", source, str(sabotage(path, part))])
    assert exit_.value.code == 1
    error = capsys.readouterr().err
    assert "out of tolerance 1e-05: relative L2" in error
    assert "worst: sample" in error
    assert error.count("\n") == 1


def test_figures_are_those_of_the_outputs():
    reference = {1: torch.tensor([[3.0, 1, -4]]), 2: torch.tensor([[1.0, 0, -1], [0, 2, -2]])}
    other = {1: torch.tensor([[3.0, 1, -4]]), 2: torch.tensor([[0.0, 1, -1], [0, 2, -2]])}
    found = compare(
        lambda x: reference[len(x)], lambda x: other[len(x)], [torch.zeros(1, 4), torch.zeros(2, 4)]
    )
    assert found.relative_l2 == pytest.approx((2 / 10) ** 0.5)
    assert (found.max_abs, found.largest) == (1, 4)
    assert found.top1_agreement == pytest.approx(2 / 3)
    assert found.worst == "sample 0 of an input (2, 4)"


def test_the_worst_is_relative():
    """Of the larger numbers the error is larger, but not where it is compared with them."""
    outputs = {1: torch.tensor([[100.0, 0]]), 2: torch.tensor([[1.0, 0], [1, 0]])}
    errors = {1: torch.tensor([[0.0, 2]]), 2: torch.tensor([[0.0, 0], [0, 1]])}
    inputs = [torch.zeros(1, 4), torch.zeros(2, 4), torch.zeros(2, 4)]
    found = compare(lambda x: outputs[len(x)], lambda x: outputs[len(x)] + errors[len(x)], inputs)
    assert found.worst == "sample 1 of an input (2, 4)"


def test_what_is_not_a_number_is_out_of_tolerance():
    ones = torch.ones(2, 3).cumsum(1)
    found = compare(lambda x: ones, lambda x: ones / 0, [torch.zeros(2, 4)])
    with pytest.raises(ToleranceError):
        found.check(1e9)
    for bad in (torch.nan, torch.inf):
        one = compare(lambda x: ones[:1], lambda x, bad=bad: ones[:1] + bad, [torch.zeros(1, 4)])
        assert one.relative_l2 == inf
    zero = compare(torch.zeros_like, torch.zeros_like, [torch.zeros(2, 4)])
    assert zero.relative_l2 == 0


def test_an_infinite_reference_is_out_of_tolerance_too():
    outputs = {1: torch.ones(1, 2), 2: torch.full((2, 2), torch.inf)}
    found = compare(
        lambda x: outputs[len(x)], lambda x: torch.ones(len(x), 2), [torch.zeros(1), torch.zeros(2)]
    )
    with pytest.raises(ToleranceError):
        found.check(1e-5)


def test_outputs_of_other_shapes_are_not_compared():
    with pytest.raises(ValueError, match=r"outputs \(2, 5\) and \(2, 1\): other networks"):
        compare(lambda x: torch.ones(2, 5), lambda x: torch.ones(2, 1), [torch.zeros(2)])


def test_logits_and_log_probabilities_are_the_same_scores():
    x = torch.randn(3, 5)
    assert compare(lambda x: x, lambda x: x.log_softmax(1), [x], True).relative_l2 < 1e-6
    assert compare(lambda x: x, lambda x: x.log_softmax(1), [x]).relative_l2 > 0.1


def test_what_is_said_of_a_parity():
    one = Parity(0.25, 0.5, 2 / 3, 12.3456, "sample 1 of an input (2, 4)")
    said = (
        "relative L2 5.00e-01, max abs 2.50e-01 of 12.3, top-1 agreement 66.7%; "
        "worst: sample 1 of an input (2, 4)"
    )
    assert str(one) == said
    one.check(0.5)
    for parity, tolerance, more in (
        (one, 0.4999, ""),
        (replace(one, relative_l2=inf), 1, "; no numbers come out: beyond float16's range?"),
        (replace(one, relative_l2=inf, largest=inf), 1, "; the reference itself gives no numbers"),
    ):
        with pytest.raises(ToleranceError) as error:
            parity.check(tolerance)
        assert str(error.value) == f"parity is out of tolerance {tolerance:g}: {parity}{more}"


def spec(shape, dynamic=(), seen=None):
    return Spec("net", "", "", "", "0", "fp32", False, shape, dynamic, seen)


def shapes(*drawn):
    return [tuple(x.shape) for x in drawn]


ALL = ("batch", "frames", "height", "width")


def test_inputs_are_at_other_sizes_odd_ones_included():
    inputs = draw_inputs(spec((2, 3, 8, 64, 62), ALL), abs)
    assert shapes(*inputs) == [
        (2, 3, 8, 64, 62), (8, 3, 8, 64, 62), (3, 3, 11, 67, 67), (1, 3, 3, 31, 31),
    ]  # fmt: skip
    assert inputs[0].dtype == torch.float32
    assert inputs[0].min() < -1  # noise, not pixels
    again = draw_inputs(spec((2, 3, 8, 64, 62), ALL), abs)
    assert all(map(torch.equal, inputs, again))
    pixels = draw_inputs(spec((1, 3, 16, 16), ("batch",), Preprocessing()), abs)
    assert shapes(*pixels) == [(1, 3, 16, 16), (8, 3, 16, 16), (3, 3, 16, 16), (1, 3, 16, 16)]
    assert pixels[1].dtype == torch.uint8
    assert (pixels[1].min(), pixels[1].max()) == (0, 255)
    assert shapes(*draw_inputs(spec((6, 3, 5), ("batch",)), abs))[3] == (1, 3, 5)
    assert shapes(*draw_inputs(spec((2, 3, 1)), abs)) == [(2, 3, 1)] * 4
    assert shapes(*draw_inputs(spec((2, 3, 1), ("length",)), abs))[3] == (2, 3, 1)


def test_inputs_are_within_a_profile():
    within = ((2, 3, 20), (4, 3, 24))
    found = draw_inputs(spec((2, 3, 22), ("batch", "length")), abs, [within])
    assert shapes(*found) == [(2, 3, 22), (4, 3, 22), (3, 3, 24), (2, 3, 20)]


def picky(most, least=0):
    """A network that refuses inputs longer than `most` and shorter than `least`."""

    def net(x):
        if not least <= x.shape[2] <= most:
            raise AssertionError("too " + ("long" if x.shape[2] > most else "short"))
        return x

    return net


def test_sizes_that_a_network_refuses():
    free = spec((2, 3, 22), ("batch", "length"))
    assert len(draw_inputs(free, picky(99, 12))) == 3  # smaller ones are left out
    with pytest.raises(ValueError, match=r"^net itself refuses an input \(3, 3, 25\): it is not "):
        draw_inputs(free, picky(24))
    with pytest.raises(ValueError, match=r"free in batch, length: too long$"):
        draw_inputs(free, picky(24))
    first = r"^net itself refuses an input \(2, 3, 22\), torch.float32; a network has one input, "
    with pytest.raises(ValueError, match=first + "whose --shape is given: too long$"):
        draw_inputs(free, picky(20))

    def silent(x):
        if len(x) != 2:
            raise AssertionError

    with pytest.raises(ValueError, match=r"not free in batch, length: AssertionError$"):
        draw_inputs(free, silent)
    with pytest.raises(ValueError, match=r"--shape is given: AssertionError$"):
        draw_inputs(spec((3, 3, 22)), silent)


def test_common_inputs():
    a = spec((2, 3, 8, 64, 64), ("batch", "height"))
    b = spec((1, 3, 8, 96, 64), ("batch", "frames"))
    both = common(a, b)
    assert (both.shape, both.dynamic) == ((2, 3, 8, 96, 64), ("batch",))
    assert both == replace(a, shape=both.shape, dynamic=both.dynamic)
    inputs = r"inputs \(batch, 3, 8, height, 64\) and "
    for other, more in (
        (spec((2, 3, 8, 64)), r"\(2, 3, 8, 64\) differ: nothing fits both$"),
        (replace(b, preprocessing=Preprocessing()), "differ: nothing fits both$"),
        (spec((2, 3, 9, 64, 64)), "nothing fits both; --shape is that of a network$"),
    ):
        with pytest.raises(ValueError, match=inputs + ".*" + more):
            common(a, other)


def test_two_sources_that_differ_are_told_apart(exported, tmp_path, capsys):
    torch.manual_seed(1)
    other, _ = checkpoint(tmp_path / "o.ckpt", non_local={"form": "dot_product"})
    with pytest.raises(SystemExit) as exit_:
        program.main(["parity", exported[0], other])
    assert exit_.value.code == 1
    with pytest.raises(SystemExit) as exit_:
        run(program.main, ["parity", exported[0], "i3d_r50_nl55"])
    assert exit_.value.code == 2
    assert "did you mean 'i3d_r50_nl5'" in capsys.readouterr().err


def test_batches_of_clips_run(exported):
    with Runner(exported[2]) as runner:
        for batch in (1, 8):
            assert compare(exported[1], runner, [clips(batch)]).relative_l2 <= 1e-5
