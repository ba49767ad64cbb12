"""A federated run: rounds of an algorithm over a fleet, with a checkpoint and a record of each.

    run = FederatedRun(algorithm, fleet, plan, folder)
    run.begin()  or  run.resume()
    records = run.run()

One round: ask every device what it can do; choose who takes part and how wide; send each its
sub-model; take in what is back by the deadline and passes every check; aggregate; write the
checkpoint, then the journal; only then does the new model leave, to be evaluated by devices or with
the next round's tasks. A round that a crash cut off is done again from the checkpoint before it,
with the same seeds, so that the answers that devices kept still fit. No Flower in here.
"""

from __future__ import annotations

import math
import secrets
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TypeAlias

import numpy as np

from penstock.errors import RefusedUpdateError, StorageError
from penstock.federated.algorithm import Algorithm
from penstock.federated.arrays import Arrays, nbytes
from penstock.federated.models.registry import ModelOptions
from penstock.federated.printable import printable
from penstock.federated.protocol import TrainResult, TrainTask
from penstock.federated.report.records import JOURNAL, RoundRecord, append_record, read_records
from penstock.federated.server.acceptance import Asked, accept, check_result
from penstock.federated.server.assignment import Member, assign_ratios, select, sort_out
from penstock.federated.server.checkpoint import (
    Checkpoint,
    check_new_run,
    check_same_run,
    read_newest,
    write_checkpoint,
)
from penstock.federated.server.fleet import Answer, Fleet, Node
from penstock.federated.server.notices import Notices
from penstock.federated.server.privacy import Ledger, private_mean
from penstock.federated.server.settings import DeviceSettings, TrainingSettings
from penstock.federated.server.telling import reasons_line, waiting_line

TRAINING_SHARE = 0.9  # of the deadline; the rest is for the way there and back
POLL_S = 1.0  # between two queries while too few devices are ready
TELL_S = 30.0  # between two lines about them
FORGET_ROUNDS = 100  # without a device that was there; its place in the mix is free again


@dataclass(frozen=True)
class RunPlan:
    """What a run needs to know beside its algorithm and fleet.

    Attributes:
        model: that is trained. rounds: in all. rounds_per_chunk: 0: one chunk for ever.
        algorithm: how devices are to train; empty: the algorithm's name.
        settings: JSON of the algorithm's settings, for the devices.
        keep: checkpoints.
    """

    model: ModelOptions
    rounds: int
    rounds_per_chunk: int = 0
    seed: int = 1
    algorithm: str = ""
    settings: str = "{}"
    keep: int = 3
    training: TrainingSettings = TrainingSettings()
    devices: DeviceSettings = DeviceSettings()

    def chunk(self, round_number: int) -> int:
        """The chunk of time that a round belongs to, from 0."""
        return (round_number - 1) // self.rounds_per_chunk if self.rounds_per_chunk else 0

    def chunk_round(self, round_number: int) -> int:
        """The round's number in its chunk, from 1."""
        return (round_number - 1) % (self.rounds_per_chunk or self.rounds) + 1


@dataclass(frozen=True)
class GlobalScore:
    """The global model on the server's test data; -1: not measured."""

    accuracy: float = -1.0
    macro_f1: float = -1.0
    figures: Mapping[str, float] = field(default_factory=dict)


ScoreGlobal: TypeAlias = Callable[[Arrays, int], GlobalScore]  # arrays and the chunk


class FederatedRun:
    """One run. Not for two threads.

    Args:
        folder: of checkpoints and journal; made when it is not there.
        score: evaluates the global model after each round.
        ledger: of differential privacy; None: there is none.
        note: told in words about everything out of the ordinary.
    """

    def __init__(
        self,
        algorithm: Algorithm,
        fleet: Fleet,
        plan: RunPlan,
        folder: Path,
        *,
        score: ScoreGlobal | None = None,
        ledger: Ledger | None = None,
        note: Callable[[str], None] = print,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self.algorithm, self.fleet, self.plan, self.folder = algorithm, fleet, plan, folder
        self.score, self.ledger, self.note, self.sleep = score, ledger, note, sleep
        self.run_id = ""
        self.ratios: dict[str, float] = {}
        self.seen: dict[str, int] = {}  # device to the last round that it was ready for
        self.records: list[RoundRecord] = []
        self._notices = Notices()

    def begin(self) -> None:
        """Start a new run in an empty folder; its initial model is the first checkpoint.

        Raises:
            UsageError: the folder holds a run.
            StorageError: the folder cannot be written.
        """
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StorageError(f"{self.folder}: cannot be made: {error.strerror}") from error
        check_new_run(self.folder)
        self.run_id = secrets.token_hex(8)
        self._save(0, None)

    def resume(self) -> None:
        """Go on after the newest whole checkpoint; without any, begin.

        Raises:
            FormatError: every checkpoint is damaged.
            UsageError: they are of another algorithm, model or seed.
        """
        found = read_newest(self.folder, self.note)
        if found is None:
            self.note(f"{self.folder}: there is nothing to resume; a new run begins")
            self.begin()
            return
        check_same_run(
            self.folder,
            found,
            algorithm=self.algorithm.name,
            model=self.plan.model.to_json(),
            seed=self.plan.seed,
            private=self.ledger is not None,
        )
        self.algorithm.restore(found.state)
        self.run_id, self.ratios, self.seen = found.run, dict(found.ratios), dict(found.seen)
        known = self._read_journal()
        if self.ledger is not None:
            self.ledger.restore(found.ledger)
            self._spend_what_was_released(self.ledger, known)
        self._mend_journal(found, known)
        self.note(f"run {self.run_id} goes on after round {found.round_number}")

    def run(self) -> tuple[RoundRecord, ...]:
        """Every round that is left; the records of all rounds.

        Raises:
            RefusedUpdateError: fewer devices than `devices.least` were ready for `devices.wait_s`.
            UsageError: the privacy budget is spent.
            StorageError: a checkpoint or the journal cannot be written. In all three cases what
                was done is kept, and `resume` goes on from there.
        """
        while self.algorithm.round_number < self.plan.rounds:
            self.records.append(self._round(self.algorithm.round_number + 1))
        return tuple(self.records)

    # ---------------------------------------------------------------- one round

    def _round(self, number: int) -> RoundRecord:
        members, out = self._wait_for_members()
        started = time.monotonic()
        seed = round_seed(self.plan.seed, number)
        self._assign(members, number)
        chosen = select(list(members), self.plan.devices.fraction, self.plan.devices.least, seed)
        if self.ledger is not None:
            self.ledger.check_room(len(chosen))
        before = self.algorithm.arrays
        self.algorithm.begin_chunk(self.plan.chunk(number))
        self.algorithm.begin_round(number)
        asked = {members[d].node: self._ask(d, number, seed) for d in chosen}

        waited = time.monotonic()
        answers = self.fleet.exchange(
            {node: (a.task, a.sent.arrays) for node, a in asked.items()},
            self.plan.devices.deadline_s,
        )
        waited = time.monotonic() - waited

        taken, refused = accept(asked, answers, self.algorithm, self.plan.devices.deadline_s)
        self._notices.after_round(asked, answers, refused)
        if self.ledger is None:
            self.algorithm.end_round([update for update, _ in taken])
        else:
            sent = {a.device: a.sent for a in asked.values()}
            self.algorithm.arrays = private_mean(
                before,
                self.algorithm.spec,
                list(sent.values()),
                [(update, sent[update.device]) for update, _ in taken],
                self.ledger.settings,
                np.random.default_rng(),  # the system's entropy: noise nobody can draw again
            )
            self.ledger.spend(len(asked))
        chunk = self.plan.chunk(number)
        score = self.score(self.algorithm.arrays, chunk) if self.score else GlobalScore()
        spent = time.monotonic() - started - waited
        results = {result.device: result for _, result in taken}
        record = RoundRecord(
            run=self.run_id,
            round_number=number,
            chunk=chunk,
            algorithm=self.algorithm.name,
            devices=tuple(sorted(results)),
            refused=out | refused,
            examples=sum(result.examples for result in results.values()),
            loss=_mean(results.values(), "loss"),
            global_accuracy=score.accuracy,
            global_macro_f1=score.macro_f1,
            bytes_down={a.device: nbytes(a.sent.arrays) for a in asked.values()},
            bytes_up={update.device: nbytes(dict(update.arrays)) for update, _ in taken},
            server_seconds=spent,
            device_seconds={device: result.seconds for device, result in results.items()},
            device_peak_bytes={device: result.peak_bytes for device, result in results.items()},
            ratios={a.device: a.sent.ratio for a in asked.values()},
            epsilon=self.ledger.epsilon if self.ledger else -1.0,
            figures={**self.algorithm.figures, **score.figures},
        )
        # Before the model leaves: after a crash this round's noise is not drawn a second time,
        # which would be a second release.
        self._save(number, record)
        append_record(self.folder / JOURNAL, record)
        every = self.plan.devices.evaluate_every
        if every and number % every == 0:
            local = self._evaluate(asked, number).values()
            record = replace(
                record, accuracy=_mean(local, "accuracy"), macro_f1=_mean(local, "macro_f1")
            )
            append_record(self.folder / JOURNAL, record)  # the last of a round counts
        return record

    def _assign(self, members: Mapping[str, Member], number: int) -> None:
        """Give the devices their widths; those that were away for long are forgotten."""
        self.seen |= dict.fromkeys(members, number)
        held = {
            device: ratio
            for device, ratio in self.ratios.items()
            if number - self.seen.setdefault(device, number) <= FORGET_ROUNDS
        }
        mix = self.plan.devices.ratios
        self.ratios = held | assign_ratios(members, mix, held, self.plan.model)
        self.seen = {device: self.seen[device] for device in self.ratios}

    def _wait_for_members(self) -> tuple[dict[str, Member], dict[str, str]]:
        """Devices that are ready, at least `devices.least` of them, and who sits out and why."""
        least, wait_s = self.plan.devices.least, self.plan.devices.wait_s
        until = time.monotonic() + wait_s
        told, told_at = "", -math.inf
        while True:
            self._notices.give(self.fleet)
            answers = self.fleet.query()
            members, out = sort_out(answers, self.plan.model)
            self._notices.after_query(answers, out)
            if len(members) >= least:
                return members, out
            if time.monotonic() >= until:
                raise RefusedUpdateError(
                    f"{len(members)} devices are ready, devices.least is {least}, and "
                    f"devices.wait_s of {wait_s:g} s are over. "
                    f"{reasons_line(out) or 'No other answered'}"
                )
            line = waiting_line(members, out, least)
            if line != told and time.monotonic() - told_at >= TELL_S:
                self.note(line)
                told, told_at = line, time.monotonic()
            self.sleep(POLL_S)

    def _ask(self, device: str, number: int, seed: int) -> Asked:
        sent = self.algorithm.send(device, self.ratios[device])
        training = self.plan.training
        task = TrainTask(
            run=self.run_id,
            round_number=number,
            chunk=self.plan.chunk(number),
            algorithm=self.plan.algorithm or self.algorithm.name,
            model=self.plan.model.to_json(),
            ratio=sent.ratio,
            settings=self.plan.settings,
            epochs=training.epochs,
            batch=training.batch,
            learning_rate=training.learning_rate,
            seed=seed,
            seconds=TRAINING_SHARE * self.plan.devices.deadline_s,
            chunk_round=self.plan.chunk_round(number),
        )
        return Asked(device, task, sent)

    def _evaluate(self, trained: Mapping[Node, Asked], number: int) -> dict[str, TrainResult]:
        """The new global model on the devices' own data; whoever fails is left out."""
        seed = round_seed(self.plan.seed, number)
        asked = {node: self._ask(a.device, number, seed) for node, a in trained.items()}
        answers = self.fleet.exchange(
            {node: (a.task, a.sent.arrays) for node, a in asked.items()},
            self.plan.devices.deadline_s,
            "evaluate",
        )
        found: dict[str, TrainResult] = {}
        refused: dict[str, str] = {}
        for node, question in asked.items():
            answer: Answer | None = answers.get(node)
            if not isinstance(answer, tuple):
                continue
            try:
                check_result(answer[0], question.device, question.task)
            except RefusedUpdateError as error:
                refused[question.device] = printable(str(error))
                continue
            found[question.device] = answer[0]
        if refused:
            self.note(f"evaluation of round {number} without {reasons_line(refused)}")
        return found

    # ---------------------------------------------------------------- what is kept

    def _save(self, number: int, record: RoundRecord | None) -> None:
        write_checkpoint(
            self.folder,
            Checkpoint(
                run=self.run_id,
                round_number=number,
                algorithm=self.algorithm.name,
                model=self.plan.model.to_json(),
                seed=self.plan.seed,
                ratios=self.ratios,
                seen=self.seen,
                record=record.to_json() if record else "",
                ledger=self.ledger.to_json() if self.ledger else "",
                state=self.algorithm.state(),
            ),
            self.plan.keep,
        )

    def _read_journal(self) -> Sequence[RoundRecord]:
        """What the journal tells of this run, in order."""
        path = self.folder / JOURNAL
        known = read_records(path, self.note) if path.exists() else ()
        return [record for record in known if record.run == self.run_id]

    def _spend_what_was_released(self, ledger: Ledger, known: Sequence[RoundRecord]) -> None:
        """A round after the checkpoint is done again, with other noise; the journal tells that it
        was released once already."""
        told = max(known, key=lambda record: record.epsilon, default=None)
        if told is not None and ledger.spend_until(told.epsilon, len(told.bytes_down)):
            self.note(
                f"the journal tells of models that were released after the checkpoint: epsilon "
                f"goes on at {ledger.epsilon:.4g}"
            )

    def _mend_journal(self, found: Checkpoint, known: Sequence[RoundRecord]) -> None:
        """The journal's records up to the checkpoint; one that a crash kept out is added."""
        self.records = [r for r in known if r.round_number <= found.round_number]
        if found.record and all(r.round_number != found.round_number for r in self.records):
            record = RoundRecord.from_json(found.record, str(self.folder))
            append_record(self.folder / JOURNAL, record)
            self.records.append(record)


def round_seed(seed: int, number: int) -> int:
    """A round's seed, from the run's: 31 bits."""
    return int(np.random.SeedSequence([seed, number]).generate_state(1)[0]) & 0x7FFF_FFFF


def _mean(results: Iterable[TrainResult], name: str) -> float:
    """Mean of a figure, weighted by examples; -1: no result has it."""
    known = [result for result in results if getattr(result, name) >= 0]
    weight = sum(r.examples for r in known)
    if not weight:
        return -1.0
    return float(sum(getattr(r, name) * r.examples for r in known) / weight)
