"""Train once, prune while training: the program behind `polarprune train`.

The loop is plain; all pruning is OnePass, the same four lines that a foreign loop writes.
"""

import time
from collections.abc import Callable
from contextlib import nullcontext

import torch
from torch import Tensor, nn

from polarprune.alignment import choose_alignment
from polarprune.attaching import attach_gates
from polarprune.collapsing import describe
from polarprune.cut_records import CutRecord
from polarprune.devices import autocast, choose_bf16, choose_device, fast_layout
from polarprune.errors import ConfigError, TrainingError
from polarprune.gates import GatedNetwork
from polarprune.graph.cost import count_macs, count_parameters
from polarprune.latency_table import read_latency_table
from polarprune.network_files import save_network
from polarprune.networks import build_network
from polarprune.onepass import OnePass
from polarprune.runs.checkpoints import Checkpoint, read_checkpoint
from polarprune.runs.distillation import Teacher, distilled
from polarprune.runs.energy import gpu_energy, joules_of_all_ranks
from polarprune.runs.evaluation import evaluate, figures_of, images_at_once
from polarprune.runs.ranks import (
    as_rank_0_has_it,
    average_buffers,
    average_gradients,
    copy_from_rank_0,
    join_ranks,
    leave_ranks,
    mean_over_ranks,
    rank_and_count,
    wait_for_all_ranks,
)
from polarprune.runs.recipe import make_optimizer, peak_rate
from polarprune.runs.run_checkpoints import as_written, restore_run, write_run
from polarprune.runs.run_folder import (
    CHECKPOINT,
    CUTS_FILE,
    METRICS_FILE,
    OPENNESS_FILE,
    PRUNED,
    RUN_FILE,
    append_line,
    keep_lines,
    write_json,
)
from polarprune.runs.run_inputs import check_outputs, count_outputs, example_of, load_data
from polarprune.runs.run_records import (
    agreement_figures,
    cut_line,
    finished_result,
    make_run_folder,
    nothing_left_of_a_false_start,
    openness_line,
    run_document,
)
from polarprune.runs.schedules import build_schedule
from polarprune.runs.tensorboard_events import write_events
from polarprune.runs.train_config import TrainConfig, TrainResult, check_config
from polarprune.tasks import build_task
from polarprune.tasks.protocol import scores_of

__all__ = ["TrainConfig", "TrainResult", "evaluate", "train"]

_OPENNESS_LINES = 200  # at most so many lines of openness a run
_CHECKPOINT_SECONDS = 300  # between checkpoints inside of an epoch
_FINITE_EVERY = 20  # steps between looks at the loss: each look waits for the device

Progress = Callable[[str, int, int, dict[str, float]], None]


def train(config: TrainConfig, progress: Progress | None = None) -> TrainResult:
    """Train, prune and save one network.

    Args:
        progress: called as (epoch text, step, steps, figures) while training goes on, and with 0
            steps for what is only to be read.

    Raises:
        ConfigError, DataError, WeightsError, RunFolderError, CheckpointError, Refused: before
            anything is written.
        TrainingError: the loss is not finite; the last checkpoint is kept. Before the first one
            nothing is left of a new run, whatever it fails by.
    """
    check_config(config)
    joined = join_ranks(choose_device(config.device))
    try:
        finished = finished_result(config)
        if finished is not None:
            return finished
        run = _Run(config, progress or (lambda *_: None))
        wait_for_all_ranks()  # the folder of rank 0 must not be there when another one looks
        new = run.writes and not config.resume
        with nothing_left_of_a_false_start(config.out) if new else nullcontext():
            run.resume()
            while run.epoch < config.epochs:
                run.train_epoch()
            return run.finish()
    finally:
        if joined:
            leave_ranks()


class _Run:
    """One run: everything the loop carries from step to step."""

    def __init__(self, config: TrainConfig, progress: Progress) -> None:
        self.config = config
        self.part = rank_and_count()
        self.writes = self.part[0] == 0  # ranks but the first leave the folder alone
        self.progress = progress if self.writes else (lambda *_: None)
        self.started = time.perf_counter()
        self.earlier_seconds = self.earlier_joules = 0.0
        self.epoch = self.step_in_epoch = 0
        self.written_at = self.started
        self.device = choose_device(config.device)
        self.losses = torch.zeros((), device=self.device)
        self.layout = torch.channels_last
        self.energy = gpu_energy(self.device)
        self.bf16 = choose_bf16(config.precision, self.device)
        self.data = load_data(config, self.device)
        self.classes, remark = count_outputs(config, self.data)
        if remark:
            self.progress(remark, 0, 0, {})
        self.task = build_task(config.task, config.label_smoothing)
        self.teacher = None
        if config.teacher is not None:
            self.teacher = Teacher(config.teacher, self.data, self.classes, self.device)
        table = config.latency_table
        self.latency_table = None if table is None else read_latency_table(table)
        torch.manual_seed(config.seed)
        weights = None if config.weights is None else str(config.weights)
        net = build_network(config.model, num_classes=self.classes, weights=weights)
        net.to(self.device).train()
        self.dense_params = count_parameters(net)
        example = example_of(self.data, self.device)
        check_outputs(net, self.task, self.classes, config.crop_size, example)
        self.given = self._look_at_weights(net)
        pruning = config.pruning
        gated = attach_gates(
            net, example, method=config.method, method_options=config.method_options,
            blocks=pruning and config.granularity in ("block", "both"),
            channels=pruning and config.granularity in ("channel", "both"),
            align=config.align or 1,
        )  # fmt: skip
        if self.latency_table is not None and config.align is None and pruning:
            share = config.target_latency
            assert share is not None
            gated.align = choose_alignment(gated, self.latency_table, share)
        self.align = gated.align  # the gates will be gone when this is reported
        copy_from_rank_0(gated)
        self.dense_macs = count_macs(net, example)
        self.batch_size = min(config.batch_size, len(self.data.train))
        if self.batch_size % self.part[1]:
            raise ConfigError(
                f"--batch-size {self.batch_size} is no multiple of the {self.part[1]} processes"
            )
        self.steps_an_epoch = len(self.data.train) // self.batch_size
        self.total_steps = self.steps_an_epoch * config.epochs
        self.schedule = build_schedule(config.schedule)
        self.peak_rate = config.lr or peak_rate(self.batch_size)
        self.optimizer = make_optimizer(gated, config, self.peak_rate)
        self.one = self._one_pass(gated)
        self.openness_every = max(1, self.total_steps // _OPENNESS_LINES)
        self.folder_ready = False

    def _look_at_weights(self, net: nn.Module) -> dict[str, float]:
        """How good the network is that training begins with, where that was somebody's."""
        if self.config.weights is None:
            return {}
        found = evaluate(net, self.data.test, self.bf16, self.task)
        self.progress("the weights given", 0, 0, {self.task.headline: found})
        return {f"given_{self.task.headline}": found}

    def _one_pass(self, gated: GatedNetwork) -> OnePass:
        # Test images on which agreement is measured; they decide nothing.
        count = images_at_once(self.data.image_size)
        held_out = next(self.data.test.batches(count, shuffle_seed=0, augment=False))[0]
        return OnePass(
            gated,
            self.optimizer,
            target=self.config.target if gated.method.bounded else None,
            target_params=self.config.target_params,
            target_latency=self.config.target_latency,
            latency_table=self.latency_table,
            total_steps=self.total_steps,
            held_out=held_out.to(self.device),
            measure=lambda net: evaluate(net, self.data.test, bf16=self.bf16, task=self.task),
        )

    def resume(self) -> None:
        """Go on from the last checkpoint, or begin."""
        found = read_checkpoint(self.config.out / CHECKPOINT) if self.config.resume else None
        if found is not None:
            with as_written(self.config.out / CHECKPOINT):
                self._restore(found)
        self._lay_out()
        self._compile()
        if not self.writes:
            return
        make_run_folder(self.config.out)
        for name, key, most in (
            (METRICS_FILE, "epoch", self.epoch),
            (CUTS_FILE, "step", self.one.steps),
            (OPENNESS_FILE, "step", self.one.steps),
        ):
            keep_lines(self.config.out / name, key, most)
        self._write_run_file(None)

    def train_epoch(self) -> None:
        """What is left of one pass over the training images; a line of metrics, a checkpoint."""
        config, one = self.config, self.one
        one.network.train()
        batches = self.data.train.batches(
            self.batch_size,
            shuffle_seed=config.seed * 1000 + self.epoch,
            augment=True,
            drop_last=True,
            first=self.step_in_epoch,
            part=self.part,
        )
        began, done_before = time.perf_counter(), self.step_in_epoch
        for images, labels in batches:
            loss, cut = self._train_step(
                images.to(self.device, memory_format=self.layout), labels.to(self.device)
            )
            self.losses += loss
            self.step_in_epoch += 1
            last = self.step_in_epoch == self.steps_an_epoch
            if self.step_in_epoch % _FINITE_EVERY == 1 or last:
                self._stop_unless_finite(self.losses)
                self._show(float(loss))
            if cut is not None:
                self._lay_out()
                self._compile()
            if cut is not None and self.writes:
                append_line(config.out / CUTS_FILE, cut_line(cut, self.task))
            if not last and self._checkpoint_is_due():
                self._stop_unless_finite(self.losses)
                self._write_checkpoint()
        seen = (self.steps_an_epoch - done_before) * self.batch_size
        self._end_epoch(seen / (time.perf_counter() - began))

    def _end_epoch(self, images_per_s: float) -> None:
        config, one = self.config, self.one
        self.epoch += 1
        average_buffers(one.network)
        line = {
            "epoch": self.epoch,
            "step": one.steps,
            "loss": round(float(mean_over_ranks(self.losses)) / self.steps_an_epoch, 5),
            **figures_of(one.network, self.data.test, bf16=self.bf16, task=self.task),
            "lr": self.optimizer.param_groups[0]["lr"],
            "macs": one.macs_now,
            "train_macs_ratio": round(self._train_macs_ratio(), 5),
            "images_per_s": round(images_per_s, 1),
            "seconds": round(self._seconds(), 2),
            "joules": self._joules(),
        }
        if self.writes:
            append_line(config.out / METRICS_FILE, line)
            write_events(config.out, line)
        self.step_in_epoch, self.losses = 0, torch.zeros((), device=self.device)
        self._write_checkpoint()

    def _checkpoint_is_due(self) -> bool:
        if self.config.checkpoint_every is not None:
            return self.one.steps % self.config.checkpoint_every == 0
        late = time.perf_counter() - self.written_at > _CHECKPOINT_SECONDS
        due = torch.tensor(float(late), device=self.device)
        return bool(as_rank_0_has_it(due)) if self.one.steps % _FINITE_EVERY == 0 else False

    def _write_checkpoint(self) -> None:
        average_buffers(self.one.network)
        counters = {
            "epoch": self.epoch,
            "step_in_epoch": self.step_in_epoch,
            "losses": float(mean_over_ranks(self.losses)),
            "seconds": self._seconds(),
            "joules": self._joules(),
        }
        if not self.writes:
            return
        write_run(self.config.out / CHECKPOINT, counters, self.one, self.optimizer)
        self.written_at = time.perf_counter()

    def _train_step(self, images: Tensor, labels: Tensor) -> tuple[Tensor, CutRecord | None]:
        one = self.one
        rate = self.peak_rate * self.schedule(one.steps / self.total_steps)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        with autocast(self.device, self.bf16):
            outputs = one.network(images)
        task = self.task.loss(outputs, labels)
        if self.teacher is not None:
            with autocast(self.device, self.bf16):
                wanted = self.teacher.logits(images)
            task = distilled(task, scores_of(outputs).float(), wanted)
        loss = task + one.loss()
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        average_gradients(one.network.parameters())
        self.optimizer.step()
        cut = one.step()
        if self.writes and one.searching and one.steps % self.openness_every == 0:
            append_line(self.config.out / OPENNESS_FILE, openness_line(one))
        return task.detach(), cut

    def finish(self) -> TrainResult:
        """Save the small network and the figures."""
        config = self.config
        net = self.one.finish().eval()
        description = describe(net)
        assert description is not None
        example = example_of(self.data, self.device)
        macs = count_macs(net, example)
        figures = figures_of(net, self.data.test, task=self.task)
        figures |= agreement_figures(config.out, self.task, self.dense_macs)
        values = {
            "dense_macs": self.dense_macs,
            "macs": macs,
            "macs_ratio": macs / self.dense_macs,
            "params": count_parameters(net),
            "dense_params": self.dense_params,
            "blocks_removed": description.blocks_removed,
            "train_macs_ratio": self._train_macs_ratio(),
            "seconds": round(self._seconds(), 2),
            "joules": self._joules(),
            "align": self.align,
            "latency_ratio": self.one.kept if config.target_latency is not None else None,
        }
        figures |= self.given
        result = TrainResult.from_dict({"run": str(config.out), **figures, **values})
        if self.writes:
            save_network(net, config.out / PRUNED)
            self._write_run_file(result)
        return result

    def _train_macs_ratio(self) -> float:
        """MACs computed over those of dense training; a teacher runs forward: a third of them."""
        teacher = 0 if self.teacher is None else self.teacher.macs / 3
        return self.one.train_macs_ratio + teacher / self.dense_macs

    def _lay_out(self) -> None:
        """Weights and images in the layout that suits the channel counts there are by now."""
        self.layout = fast_layout(self.one.network, self.device)
        self.one.network.to(memory_format=self.layout)

    def _compile(self) -> None:
        """Compile what is trained now; a cut makes another network, or other operators in it."""
        if self.config.compile:
            torch.compiler.reset()
            self.one.network.compile()

    def _seconds(self) -> float:
        return self.earlier_seconds + time.perf_counter() - self.started

    def _joules(self) -> float | None:
        return joules_of_all_ranks(self.energy, self.device, self.earlier_joules)

    def _show(self, loss: float) -> None:
        figures = {"loss": loss, f"kept {self.one.budget.quantity}": self.one.kept}
        text = f"epoch {self.epoch + 1}/{self.config.epochs}"
        self.progress(text, self.one.steps, self.total_steps, figures)

    def _stop_unless_finite(self, losses: Tensor) -> None:
        if bool(losses.isfinite()):
            return
        kept = self.config.out / CHECKPOINT
        where = f"the last checkpoint is kept in {kept}"
        if not kept.exists():
            where = "no checkpoint was written yet"
        raise TrainingError(
            f"the loss is not finite in epoch {self.epoch + 1}; {where}; try a smaller --lr than "
            f"{self.peak_rate:g}"
        )

    def _write_run_file(self, result: TrainResult | None) -> None:
        document = run_document(self.config, self.data, self.device, self.bf16, result)
        write_json(self.config.out / RUN_FILE, document)

    def _restore(self, found: Checkpoint) -> None:
        self.optimizer = restore_run(
            found,
            self.one,
            self.optimizer,
            lambda net: make_optimizer(net, self.config, self.peak_rate),
        )
        self.epoch = int(found.document["epoch"])
        self.step_in_epoch = int(found.document["step_in_epoch"])
        self.losses += float(found.document["losses"])
        self.earlier_seconds = float(found.document["seconds"])
        self.earlier_joules = float(found.document["joules"] or 0.0)
