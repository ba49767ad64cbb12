"""FedConv's round: train, compress, (devices train), tune, dilate, weigh.

    begin_round   the global model is trained on the public samples (or at the end of the round)
    send          filters of this ratio are trained so that the compressed model does well on them
    end_round     each model that came back is tuned on them, dilated by the device's own
                  filters to the full width, and all are summed by trained weights

After the authors' release (`lemingshen/FedConv`, MobiSys 2024; the maths were read there, the code
is ours). Devices see neither filters nor weights: they train the arrays that they were sent.
Everything is keyed by the device's stable identity and seeded by round and identity, so that the
order of arrival and devices that are missing change nothing for the others.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray

from penstock.errors import RefusedUpdateError
from penstock.federated.aggregation import Update, aggregate, check_updates
from penstock.federated.algorithm import Algorithm, Sent
from penstock.federated.arrays import Arrays, copy_arrays
from penstock.federated.fedconv.changes import dilate_onto, without_correction
from penstock.federated.fedconv.compression import compress
from penstock.federated.fedconv.device_memory import DeviceMemory
from penstock.federated.fedconv.dilation import dilate
from penstock.federated.fedconv.filters import FILTERED, new_filters
from penstock.federated.fedconv.norm_statistics import settled_score, with_statistics
from penstock.federated.fedconv.profiles import DEFAULT, Profile
from penstock.federated.fedconv.quality_gate import Candidate, Passed, pass_gate
from penstock.federated.fedconv.weighting import combine, new_weights, shares
from penstock.federated.models.registry import ModelOptions, model_spec
from penstock.federated.public_training import PublicSet, PublicTrainer, to_arrays, to_tensors
from penstock.federated.slicing import extract, static_channels

Transform = Callable[..., dict[str, Any]]


class FedConv(Algorithm):
    """The server's side of FedConv.

    Args:
        options: of the model.
        arrays: the initial global model.
        public: the server's labelled samples.
        seed: of filters and of the order of batches.
        clock: seconds, for the profile's `round_seconds`.

    Raises:
        BackendMissingError: torch is not installed.
        RefusedUpdateError: arrays or samples do not fit the model.
    """

    name = "fedconv"

    def __init__(
        self,
        options: ModelOptions,
        arrays: Mapping[str, NDArray[Any]],
        public: PublicSet,
        profile: Profile = DEFAULT,
        seed: int = 0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__(model_spec(options), arrays)
        self.profile, self.seed = profile, seed
        self.trainer = PublicTrainer(options, public, profile.batch, clock)
        self.memory = DeviceMemory(self.spec, profile)
        self._clock = clock
        self._left = self._deadline = float("inf")
        self._ended = False
        self._compressed: dict[float, Arrays] = {}
        self._asked: dict[str, float] = {}

    def begin_round(self, number: int) -> None:
        """Train the global model on the public samples."""
        super().begin_round(number)
        self._compressed, self._asked, self._ended = {}, {}, False
        self._left = self.profile.round_seconds or float("inf")
        self.figures = dict.fromkeys(("restarts", "slices_taken", "paddings_taken", "stopped"), 0.0)
        if self.profile.server_trains == "begin" or number == 1:
            with self._working():
                self._train_global("server at the beginning")

    def send(self, device: str, ratio: float) -> Sent:
        """The compressed model of this ratio; at ratio 1 the global model. After the round's end it
        is made of the new global model by the filters as they are, for evaluation."""
        channels = static_channels(self.spec, ratio)
        if ratio not in self._compressed:
            with self._working():
                self._compressed[ratio] = self._compress(ratio)
        self._asked[device] = ratio
        return Sent(copy_arrays(self._compressed[ratio]), ratio, channels)

    def end_round(self, updates: Sequence[Update]) -> None:
        """Take in what came back.

        Raises:
            RefusedUpdateError: an update does not fit, or its device was not asked in this round.
        """
        ordered = check_updates(updates, self.spec)
        for update in ordered:
            ratio = self._asked.get(update.device)
            if ratio is None or not _same(update, static_channels(self.spec, ratio)):
                raise RefusedUpdateError(
                    f"device {update.device} was not asked for this sub-model in round "
                    f"{self.round_number}"
                )
        with self._working():
            if ordered:
                tuned = [self._returned(update) for update in ordered]
                dilated = [self._dilate(update) for update in tuned]
                self.arrays = self._weigh(tuned, dilated)
                if self.profile.server_trains == "end":
                    self._train_global("server at the end")
                self.memory.seen([update.device for update in ordered], self.round_number)
            self.figures["stopped"] = float(self._out_of_time())
        self._compressed, self._ended, self._left = {}, True, float("inf")
        self.figures["public_passes"] = float(self.trainer.passes)
        self.trainer.passes = 0

    def state(self) -> Arrays:
        """The global model, filters of each ratio, filters and weights of each device."""
        return super().state() | self.memory.state()

    def restore(self, state: Mapping[str, NDArray[Any]]) -> None:
        """Go on from a checkpoint's state.

        Raises:
            FormatError: it is of another model or algorithm.
        """
        memory = DeviceMemory(self.spec, self.profile)
        memory.restore(state)
        super().restore(state)
        self.memory = memory

    # ------------------------------------------------------------ the steps

    def _train_global(self, when: str) -> None:
        self.arrays = self._tune(self.arrays, 1.0, self.profile.server_epochs, when)

    def _compress(self, ratio: float) -> Arrays:
        if ratio == 1.0:
            return copy_arrays(self.arrays)
        rng = self._rng("compression", ratio)
        kept = self.memory.compression.get(ratio)
        if self._ended:
            return self._as_it_is(ratio, kept or {})
        kept = kept or self._fresh(ratio, rng)
        passed = self._through_gate(
            self.arrays, kept, compress, ratio, ratio, self.profile.filter_epochs, rng
        )
        self.figures["slices_taken"] += passed.fell_back
        self.figures[f"hold_out_accuracy_{ratio:g}"] = passed.chosen.score.accuracy
        if passed.chosen.filters:
            self.memory.compression[ratio] = passed.chosen.filters
        return passed.chosen.model

    def _as_it_is(self, ratio: float, filters: Arrays) -> Arrays:
        """Compressed by these filters, or the plain slice where that is better."""
        source = to_tensors(self.arrays)
        made = [
            self._candidate(
                used, to_arrays(compress(source, to_tensors(used), self.spec, ratio, self.profile)),
                ratio,
            )
            for used in ([filters, {}] if filters else [{}])
        ]  # fmt: skip
        worse = self.profile.gate and made[-1].score.beats(made[0].score)
        return made[-1 if worse else 0].model

    def _returned(self, update: Update) -> Update:
        """Tuned on the public samples, and without the compression's correction."""
        ratio = self._asked[update.device]
        epochs = self.profile.upload_epochs
        arrays = self._tune(dict(update.arrays), ratio, epochs, f"upload {update.device}")
        if self.profile.dilates == "change" and ratio != 1.0:
            sent = self._compressed[ratio]
            arrays = without_correction(arrays, sent, self.arrays, self.spec, ratio)
        return Update(update.device, arrays, update.channels, update.weight)

    def _dilate(self, update: Update) -> Arrays:
        device, ratio = update.device, self._asked[update.device]
        if ratio == 1.0:
            return dict(update.arrays)
        transform: Transform = dilate
        if self.profile.dilates == "change":
            cut = extract(self.arrays, self.spec, update.channels)
            transform = dilate_onto(to_tensors(self.arrays), to_tensors(cut))
        if not self.profile.dilation_epochs and self.profile.start == "slice":
            source = to_tensors(update.arrays)
            return to_arrays(transform(source, {}, self.spec, ratio, self.profile))
        rng = self._rng(f"dilation {device}", ratio)
        kept = self.memory.dilation.get((device, ratio)) or self._fresh(ratio, rng)
        passed = self._through_gate(
            update.arrays, kept, transform, ratio, 1.0, self.profile.dilation_epochs, rng
        )
        self.figures["paddings_taken"] += passed.fell_back
        if passed.chosen.filters:
            self.memory.dilation[device, ratio] = passed.chosen.filters
        return passed.chosen.model

    def _weigh(self, updates: Sequence[Update], dilated: Sequence[Arrays]) -> Arrays:
        """Sum the dilated models by trained weights, unless the plain mean does better."""
        devices = [update.device for update in updates]
        rng = self._rng("weights", 0.0)
        for name in devices:
            if name not in self.memory.weights:
                drawn = self._rng(f"weights {name}", 0.0)
                self.memory.weights[name] = new_weights(self.spec, self.profile, drawn)
        models = _stack(dilated)
        base: dict[str, Any] = {}
        if self.profile.dilates == "change":  # weights then say how much of whose change to take
            whole = to_tensors(self.arrays)
            base = {t.name: whole[t.name] for t in self.spec if t.kind in FILTERED}
            models |= {name: models[name] - value for name, value in base.items()}
        parts_of = shares(self.spec, updates, self.profile)
        parts = _stack([parts_of[device] for device in devices])
        weights = _stack([self.memory.weights[device] for device in devices])
        for weight in weights.values():
            weight.requires_grad_()

        def assemble() -> dict[str, Any]:
            made = combine(self.spec, models, parts, weights)
            return made | {name: made[name] + value for name, value in base.items()} | buffers

        start = combine(self.spec, models, parts, {})
        buffers = {
            tensor.name: start[tensor.name]
            for tensor in self.spec
            if tensor.kind in ("running_mean", "running_var", "counter")
        }
        self.trainer.fit(
            list(weights.values()),
            assemble,
            ratio=1.0,
            epochs=0 if self._out_of_time() else self.profile.weight_epochs,
            rate=self.profile.rate(self.profile.weight_rate, self.round_number),
            rng=rng,
            deadline=self._deadline,
            by_batch=True,
            keep="best",
        )
        # As released, the statistics are those that training on the public samples has moved.
        result = to_arrays(assemble())
        result = with_statistics(result, 1.0, self.profile, self.trainer)
        score = settled_score(result, 1.0, self.profile, self.trainer)
        self.figures["weighted_accuracy"] = score.accuracy
        if self.profile.gate:
            plain = aggregate(self.arrays, self.spec, updates)
            plain = with_statistics(plain, 1.0, self.profile, self.trainer)
            plain_score = settled_score(plain, 1.0, self.profile, self.trainer)
            self.figures["plain_accuracy"] = plain_score.accuracy
            if plain_score.beats(score):
                self.figures["plain_mean_taken"] = 1.0
                return plain
        arrays = to_arrays(weights)
        for row, device in enumerate(devices):
            own = {name: np.array(stack[row]) for name, stack in arrays.items()}
            self.memory.weights[device] = own
        return result

    # ------------------------------------------------------------ what they share

    def _through_gate(
        self,
        arrays: Mapping[str, NDArray[Any]],
        kept: Arrays,
        transform: Transform,
        ratio: float,
        made_ratio: float,
        epochs: int,
        rng: np.random.Generator,
    ) -> Passed:
        """Train filters of `transform`, which makes a model of `made_ratio`, behind the gate."""
        profile, source = self.profile, to_tensors(arrays)

        def train(filters: Arrays) -> Candidate:
            leaves = to_tensors(filters)
            for leaf in leaves.values():
                leaf.requires_grad_()
            self.trainer.fit(
                list(leaves.values()),
                lambda: transform(source, leaves, self.spec, ratio, profile),
                ratio=made_ratio,
                epochs=epochs,
                rate=profile.rate(profile.filter_rate, self.round_number),
                rng=rng,
                deadline=self._deadline,
                by_batch=True,
                keep="best",
            )
            made = transform(source, leaves, self.spec, ratio, profile)
            return self._candidate(to_arrays(leaves), to_arrays(made), made_ratio)

        made = transform(source, {}, self.spec, ratio, profile)
        plain = self._candidate({}, to_arrays(made), made_ratio)
        passed = pass_gate(
            plain, kept, profile, lambda: self._fresh(ratio, rng), train, self._out_of_time
        )
        self.figures["restarts"] += passed.restarts
        return passed

    def _candidate(self, filters: Arrays, values: Arrays, ratio: float) -> Candidate:
        model = with_statistics(values, ratio, self.profile, self.trainer)
        return Candidate(filters, model, settled_score(model, ratio, self.profile, self.trainer))

    def _tune(self, arrays: Arrays, ratio: float, epochs: int, what: str) -> Arrays:
        if not epochs or self._out_of_time():
            return arrays
        own = what.startswith("server")
        tuned, fit = self.trainer.tune(
            arrays,
            ratio=ratio,
            epochs=epochs,
            rate=self.profile.server_rate if own else self.profile.upload_rate,
            rng=self._rng(what, ratio),
            deadline=self._deadline,
        )
        if own:
            self.figures["server_accuracy"] = fit.kept.accuracy
        return tuned

    def _fresh(self, ratio: float, rng: np.random.Generator) -> Arrays:
        return new_filters(self.spec, ratio, self.profile, rng)

    @contextmanager
    def _working(self) -> Iterator[None]:
        """Only this counts for `round_seconds`, not the time that devices take."""
        self._deadline = self._clock() + self._left
        try:
            yield
        finally:
            self._left = max(0.0, self._deadline - self._clock())

    def _out_of_time(self) -> bool:
        return self._clock() >= self._deadline

    def _rng(self, what: str, ratio: float) -> np.random.Generator:
        """Random numbers for one step of one round, whatever ran before it."""
        text = f"{self.seed} {self.round_number} {what} {ratio!r}"
        return np.random.default_rng(list(hashlib.sha256(text.encode()).digest()))


def _stack(models: Sequence[Mapping[str, NDArray[Any]]]) -> dict[str, Any]:
    """Tensors [models, *shape] by name."""
    return to_tensors({name: np.stack([model[name] for model in models]) for name in models[0]})


def _same(update: Update, channels: Mapping[str, NDArray[np.intp]]) -> bool:
    return all(np.array_equal(update.channels[group], held) for group, held in channels.items())
