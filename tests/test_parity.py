"""Two forms of one network, compared: what is wrong is found, and named."""

import onnx
import pytest
import torch
from onnx import numpy_helper
from test_export import checkpoint, clips

from nlzoo.export import __main__ as program
from nlzoo.export.parity import ToleranceError, common, compare, draw_inputs
from nlzoo.export.runtime import Runner
from nlzoo.export.source import load_network
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


@pytest.mark.parametrize("part", ["weight", "channels", "scale"])
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


def test_what_is_not_a_number_is_out_of_tolerance():
    ones = torch.ones(2, 3).cumsum(1)
    found = compare(lambda x: ones, lambda x: ones / 0, [torch.zeros(2, 4)])
    with pytest.raises(ToleranceError):
        found.check(1e9)
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


def test_inputs_are_at_other_sizes_odd_ones_included(exported):
    model, spec = load_network(exported[1], (2, 3, 8, 64, 64))
    shapes = {tuple(x.shape) for x in draw_inputs(spec, model)}
    assert shapes == {(2, 3, 8, 64, 64), (3, 3, 11, 67, 69), (8, 3, 8, 64, 64), (1, 3, 3, 31, 31)}


def test_common_inputs(exported):
    source, model, path = exported
    with Runner(path) as runner:
        both = common(load_network(source)[1], runner.spec)
        assert both.wanted() == "(batch, 3, 8, 64, 64)"
        other = load_network(model, (2, 3, 8, 96, 96))[1]
        assert common(other, runner.spec).shape == (2, 3, 8, 64, 64)
        block = load_network(torch.nn.ReLU(), (2, 3, 8))[1]
        with pytest.raises(ValueError, match="nothing fits both"):
            common(block, runner.spec)


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
