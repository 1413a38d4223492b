"""What tracing must not change: in-place operators, dropouts, modes, the user's own network."""

import pytest
import torch
import torch.nn.functional as F
from small_networks import block_sites, check_exact, image, reasons, small
from torch import Tensor, nn

import polarprune
from polarprune.errors import Refused
from polarprune.graph import normalise as normalise_module
from polarprune.graph.comparing import forward_float64, relative_error
from polarprune.graph.normalise import normalise


def _branch(first):
    """A residual block whose branch starts with `first` on the very tensor of the shortcut."""

    def compute(s, x: Tensor) -> Tensor:
        x = s.stem(x)
        return s.head(x + s.two(F.relu(s.one(first(s, x)))))

    return compute


IN_PLACE_STARTS = {
    "module": lambda s, x: s.relu(x),
    "flag": lambda s, x: F.relu(x, inplace=True),
    "flag by position": lambda s, x: F.relu(x, True),
    "third argument": lambda s, x: F.leaky_relu(x, 0.1, True),
    "function with underscore": lambda s, x: torch.relu_(x),
    "functional with underscore": lambda s, x: F.leaky_relu_(x, 0.1),
    "method": lambda s, x: x.relu_(),
    "dropout in place": lambda s, x: F.dropout(s.relu(x), 0.3, s.training, inplace=True),
}


@pytest.mark.parametrize("start", IN_PLACE_STARTS.values(), ids=IN_PLACE_STARTS)
def test_a_branch_may_start_in_place_on_the_shortcut(start) -> None:
    gated = check_exact(small(_branch(start)))
    assert len(block_sites(gated)) == 1


def test_an_in_place_module_may_be_called_many_times() -> None:
    def compute(s, x: Tensor) -> Tensor:
        x = s.stem(x)
        x = x + s.two(s.relu(s.one(x)))
        return s.head(x + s.three(s.relu(x)))

    gated = check_exact(small(compute, three=nn.Conv2d(8, 8, 1)))
    assert len(block_sites(gated)) == 2


def _unused(change):
    def compute(s, x: Tensor) -> Tensor:
        x = s.stem(x)
        y = s.one(x)
        change(s, y, x)
        return s.head(y + x)

    return compute


@pytest.mark.parametrize(
    "change",
    [lambda s, y, x: s.relu(y), lambda s, y, x: F.relu_(y), lambda s, y, x: y.add_(x)],
    ids=["module", "function", "method"],
)
def test_a_change_in_place_counts_even_if_nobody_reads_its_result(change) -> None:
    check_exact(small(_unused(change)))


def test_augmented_assignment_is_an_addition() -> None:
    def compute(s, x: Tensor) -> Tensor:
        x = F.relu(s.stem(x))
        y = s.one(x)
        y += x
        return s.head(F.relu(y))

    assert block_sites(check_exact(small(compute))) == ["iadd"]


def test_a_network_may_change_its_input_in_place() -> None:
    def compute(s, x: Tensor) -> Tensor:
        x -= 0.5
        return s.head(F.relu(s.one(s.relu(s.stem(x)))))

    check_exact(small(compute))


def test_a_change_behind_a_view_is_refused() -> None:
    def compute(s, x: Tensor) -> Tensor:
        x = s.stem(x)
        flat = x.view(x.size(0), -1)
        y = F.relu_(x)
        return s.head(y) + s.flat(flat)

    with pytest.raises(Refused, match="shares its memory, is read later") as caught:
        polarprune.attach_gates(small(compute, flat=nn.Linear(512, 4)), image())
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("shape", [(1, 3, 8, 8), (4, 3, 8, 8)], ids=["one image", "four"])
def test_control_flow_on_training_is_refused_even_on_a_blank_example(shape) -> None:
    def compute(s, x: Tensor) -> Tensor:
        x = s.stem(x)
        return s.head(s.one(x) if s.training else s.two(x))

    net = small(compute)
    for layer in (net.stem, net.one, net.two):
        nn.init.zeros_(layer.bias)  # then a blank image gives zeros in either branch
    with pytest.raises(Refused, match="in training mode"):
        polarprune.attach_gates(net, torch.zeros(shape, dtype=torch.float64))


def test_control_flow_on_values_is_refused_in_one_line() -> None:
    def compute(s, x: Tensor) -> Tensor:
        return s.head(s.stem(x)) if x.sum() > 0 else x

    with pytest.raises(Refused, match="cannot be traced") as caught:
        polarprune.attach_gates(small(compute), image())
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("drop", [F.dropout, F.dropout2d])
def test_functional_dropout_follows_the_mode(drop) -> None:
    net = small(lambda s, x: s.head(drop(s.stem(x), 0.5, s.training)))
    plain = normalise(net, image())
    x = image()
    with torch.no_grad():
        assert torch.equal(plain.eval()(x), plain(x))
        assert not torch.equal(plain.train()(x), plain(x))


def test_dropout_that_never_stops_is_refused() -> None:
    with pytest.raises(Refused, match="drops values in evaluation mode too"):
        normalise(small(lambda s, x: s.head(F.dropout(s.stem(x), 0.5))), image())


def test_a_forward_hook_is_refused_by_name() -> None:
    net = small(lambda s, x: s.head(s.stem(x)))
    net.stem.register_forward_hook(lambda *_: None)
    with pytest.raises(Refused, match="layer stem has a forward hook"):
        polarprune.attach_gates(net, image())


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_gates_take_the_dtype_and_mode_of_the_network(training: bool, dtype: torch.dtype) -> None:
    net = small(lambda s, x: s.head(s.norm(s.stem(x)))).to(dtype).train(training)
    gated = polarprune.attach_gates(net, image(1, 3, 8, 8).to(dtype))
    assert {p.dtype for p in gated.parameters()} == {dtype}
    assert {m.training for m in gated.modules()} == {training}
    assert net.training == training
    assert {m.training for m in polarprune.collapse(gated).modules()} == {training}


def test_the_comparison_of_traced_and_untraced_can_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    net = small(_branch(IN_PLACE_STARTS["module"]))
    monkeypatch.setattr(normalise_module, "functionalise", lambda graph_module: False)
    plain = normalise(net, image())  # the in-place operator is still there, and still agrees
    assert plain.relu.inplace
    monkeypatch.setattr(normalise_module.fx.Tracer, "trace", _trace_without_bias)
    with pytest.raises(Refused, match="tracing changes what Small computes"):
        normalise(net, image())


_true_trace = torch.fx.Tracer.trace


def _trace_without_bias(self, root, *args):
    graph = _true_trace(self, root, *args)
    torch._C._set_grad_enabled(False)  # torch.no_grad() is noticed in a trace
    root.stem.bias.zero_()
    torch._C._set_grad_enabled(True)
    return graph


def test_relative_error_sees_shapes_structure_and_what_is_not_finite() -> None:
    one, inf = torch.ones(2), torch.tensor([1.0, float("inf")])
    assert relative_error(one, one.clone()) == 0
    assert relative_error({"a": one}, {"a": 2 * one}) == 1
    for other in (torch.ones(3), [one], inf):
        assert relative_error(one, other) == float("inf")
    assert relative_error(inf, -inf) == float("inf")
    assert relative_error(inf, inf) == 0


def test_one_image_is_doubled_for_batch_statistics() -> None:
    net = small(lambda s, x: s.head(F.adaptive_avg_pool2d(s.norm(s.stem(x)), 1)))
    assert len(forward_float64(net, image(1, 3, 8, 8), training=True)) == 2
    assert reasons(polarprune.attach_gates(net, image(1, 3, 8, 8))) == ""
