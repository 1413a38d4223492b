"""Single layers in torch: what is run is the layer, every copy of it, and larger takes longer."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import pytest
import torch
from layer_kinds import KINDS, PLAIN

from polarprune.errors import BackendUnavailable, ConfigError, Refused
from polarprune.graph.geometry import Geometry
from polarprune_deploy.layers import layer_replay
from polarprune_deploy.layers.layer_replay import LayerCopies, kernels_by_heuristic, time_replayed
from polarprune_deploy.layers.layer_requests import LayerRequest
from polarprune_deploy.layers.layer_timers import OnnxRuntimeTimer, TorchTimer, choose_timer


@pytest.mark.parametrize(("geometry", "inputs", "outputs", "layer"), KINDS.values(), ids=KINDS)
def test_a_copy_computes_the_layer_it_stands_for(geometry, inputs, outputs, layer) -> None:
    """A copy's weights are put into torch's own layer; both see the same tensor."""
    torch.manual_seed(0)
    with torch.inference_mode():
        copies = LayerCopies(
            LayerRequest(geometry, inputs, outputs),
            batch=2, copies=3, dtype=torch.float32, device="cpu",
        )  # fmt: skip
        results = []
        for copy in range(len(copies)):
            layer.weight.copy_(copies.weights[copy])
            layer.bias.copy_(copies.biases[copy])
            results.append(copies.run(copy))
            expected = layer(copies.inputs[copy]).relu()
            torch.testing.assert_close(results[-1], expected)
    assert len(results) == 3
    assert len({result.sum().item() for result in results}) == 3  # no copy twice
    if geometry.kind != "linear":
        assert len(copies.inputs[0]) == 2


def test_what_has_four_axes_is_channels_last() -> None:
    request = LayerRequest(PLAIN, 8, 16)
    copies = LayerCopies(request, batch=2, copies=4, dtype=torch.float32, device="cpu")
    for tensor in (*copies.inputs, *copies.weights):
        assert tensor.is_contiguous(memory_format=torch.channels_last)
        assert not tensor.is_contiguous()


def test_every_copy_is_aligned_as_a_tensor_of_its_own_is() -> None:
    request = LayerRequest(PLAIN, 5, 7)
    copies = LayerCopies(request, batch=1, copies=3, dtype=torch.bfloat16, device="cpu")
    tensors = (*copies.inputs, *copies.weights, *copies.biases)
    assert {tensor.data_ptr() % 64 for tensor in tensors} == {0}
    assert len({tensor.data_ptr() for tensor in tensors}) == 9


def test_copies_fill_the_cache_twice_but_there_are_never_more_than_64() -> None:
    # Batch 2 in four bytes: 2 x 36 pixels of 8 channels, and 9 x 8 x 16 weights.
    bytes_of_one = 4 * (2 * 36 * 8 + 9 * 8 * 16)
    request = LayerRequest(PLAIN, 8, 16)
    assert layer_replay._copies_for(request, 2, 4, 10 * bytes_of_one) == 20
    assert layer_replay._copies_for(request, 2, 4, 10 * bytes_of_one + 1) == 21
    assert layer_replay._copies_for(request, 2, 4, 1) == 2
    assert layer_replay._copies_for(request, 2, 4, 1 << 30) == 64


def test_a_layer_of_a_hundred_times_the_work_takes_longer() -> None:
    small, large = LayerRequest(PLAIN, 16, 16), LayerRequest(PLAIN, 256, 256)
    seen = []
    tries = [
        time_replayed(
            [large, small, large], device="cpu", precision="fp32", batch=2, seed=seed,
            progress=lambda done, of: seen.append((done, of)),
        )
        for seed in range(4)
    ]  # fmt: skip
    first, middle, last = map(min, zip(*tries, strict=True))  # something else may run meanwhile
    assert 0 < 2 * middle < min(first, last)
    assert seen == 4 * [(1, 3), (2, 3), (3, 3)]


@pytest.fixture
def trying() -> Iterator[None]:
    before = torch.backends.cudnn.benchmark
    torch.backends.cudnn.benchmark = True
    yield
    torch.backends.cudnn.benchmark = before


@pytest.mark.usefixtures("trying")
def test_cudnn_tries_nothing_meanwhile() -> None:
    with kernels_by_heuristic():
        assert not torch.backends.cudnn.benchmark
    assert torch.backends.cudnn.benchmark


def test_what_torch_does_not_run_is_refused_in_one_line() -> None:
    negative = Geometry("conv", (9, 9), (1, 1), (0, 0), (1, 1), (4, 4))  # larger than its image
    with pytest.raises(Refused, match="9x9 convolution, at 4x4 with 3 and 2 channels") as caught:
        time_replayed(
            [LayerRequest(negative, 3, 2)], device="cpu", precision="fp32", batch=1, seed=0
        )
    assert "\n" not in str(caught.value)


def test_who_times_what() -> None:
    assert choose_timer("auto", "cpu", threads=2) == OnnxRuntimeTimer(2)
    assert choose_timer("torch", "cpu", "bf16", 2) == TorchTimer("cpu", "bf16", 2)
    assert choose_timer("torch", "cpu", threads=2).head["precision"] == "fp32"
    with pytest.raises(ConfigError, match="precision must be one of"):
        choose_timer("torch", "cpu", "fp8")


class FakeGpu:
    """CUDA's graphs and events on a clock of its own: a run takes some time, a replay its runs'."""

    def __init__(self, run_ms: float) -> None:
        self.run_ms, self.now_ms = run_ms, 0.0
        self.capturing: list[int] | None = None
        self.log: list[str] = []

    def install(self, monkeypatch: pytest.MonkeyPatch) -> None:
        fake = self

        class Stream:
            def wait_stream(self, other: object) -> None:
                fake.log.append("wait")

        class Graph:
            def replay(self) -> None:
                fake.log.append("replay")
                fake.now_ms += fake.run_ms * len(self.copies)

        @contextmanager
        def capture(graph: Graph) -> Iterator[None]:
            fake.log.append("capture")
            fake.capturing = graph.copies = []
            yield
            fake.capturing = None

        class Watch:
            def __init__(self, stream: object, runs: int) -> None:
                self.marks = [[0.0, 0.0] for _ in range(runs)]

            def start(self, run: int) -> None:
                self.marks[run][0] = fake.now_ms

            def stop(self, run: int) -> None:
                self.marks[run][1] = fake.now_ms

            def elapsed_ns(self) -> list[int]:
                return [round(1e6 * (stop - start)) for start, stop in self.marks]

        monkeypatch.setattr(torch.cuda, "current_stream", Stream)
        monkeypatch.setattr(torch.cuda, "Stream", Stream)
        monkeypatch.setattr(torch.cuda, "stream", lambda stream: nullcontext())
        monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
        monkeypatch.setattr(torch.cuda, "graph", capture)
        monkeypatch.setattr(layer_replay, "StreamStopwatch", Watch)

    def run(self, copy: int) -> None:
        if self.capturing is not None:
            self.capturing.append(copy)
            return
        self.log.append(f"run {copy}")
        self.now_ms += self.run_ms

    def __len__(self) -> int:
        return 64


@pytest.mark.parametrize(
    ("run_ms", "runs", "cycles"),
    [(0.005, 64, 20), (0.5, 10, 5), (1.0, 5, 5), (30.0, 2, 5), (0.025, 64, 12)],
)
def test_a_captured_cycle_is_bounded_and_shared_among_its_runs(
    run_ms: float, runs: int, cycles: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    gpu = FakeGpu(run_ms)
    gpu.install(monkeypatch)
    assert layer_replay._cuda_ms(gpu, 0.0) == pytest.approx(run_ms)
    # The kernel is loaded before the capture, and the capture waits for the other stream.
    before = gpu.log[: gpu.log.index("capture")]
    assert before == ["wait", "run 0", "run 0", "run 1", "wait"]
    assert gpu.log[gpu.log.index("capture") + 1 :] == ["replay"] * (2 + cycles)
    assert gpu.now_ms == pytest.approx(run_ms * (3 + runs * (2 + cycles)))


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is here")
@pytest.mark.parametrize("backend", ["auto", "torch"])
def test_without_a_gpu_none_is_timed(backend: str) -> None:
    with pytest.raises(BackendUnavailable, match="no GPU is here"):
        choose_timer(backend, "cuda")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
class TestOnAGpu:
    def test_a_larger_layer_takes_longer_and_twice_the_same_takes_the_same(self) -> None:
        geometry = Geometry("conv", (3, 3), (1, 1), (1, 1), (1, 1), (28, 28))
        small, large = LayerRequest(geometry, 16, 16), LayerRequest(geometry, 512, 512)
        first, second, again = time_replayed(
            [small, large, large], device="cuda", precision="fp16", batch=64, seed=0
        )
        assert 0 < 2 * first < second
        assert again == pytest.approx(second, rel=0.1)

    @pytest.mark.parametrize("kind", KINDS)
    def test_every_kind_of_layer_is_captured(self, kind: str) -> None:
        geometry, inputs, outputs, _ = KINDS[kind]
        (ms,) = time_replayed(
            [LayerRequest(geometry, inputs, outputs)],
            device="cuda", precision="fp16", batch=2, seed=0,
        )  # fmt: skip
        assert 0 < ms < 10

    def test_the_table_says_which_gpu(self) -> None:
        head = choose_timer("auto", "cuda").head
        assert head["gpu"] == torch.cuda.get_device_name()
        assert (head["precision"], head["mode"], head["threads"]) == ("fp16", "graph", None)
