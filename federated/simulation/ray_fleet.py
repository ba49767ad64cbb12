"""The fleet of a simulation: Flower's Ray engine, driven message by message.

    with RayFleet(shards, plan, actors=2) as fleet:
        FederatedRun(algorithm, fleet, run_plan, folder).run()

Flower's `RayBackend` starts Ray and a pool of ClientApp actors, and runs one message on the next
free one. Its `run_simulation` puts an in-memory SuperLink before that, which looks through all
messages for each node: 1,000 nodes cost 25 times as much as 200, not 5 times. So the messages are
handed to the backend directly, as many at once as there are actors, and the cost of a round is
linear in its devices. The ClientApp, the messages and the training are those of a real device.
"""

from __future__ import annotations

import logging
import os
import shutil
import tempfile
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from typing import TYPE_CHECKING, Any

from penstock.errors import BackendMissingError, PenstockError, RefusedUpdateError, UsageError
from penstock.federated.arrays import Arrays
from penstock.federated.flower_content import from_content, no_calls_home, to_content
from penstock.federated.protocol import Capabilities, TrainResult
from penstock.federated.server.fleet import Answer, Kind, Node, Request
from penstock.federated.simulation.samples import Shards
from penstock.federated.simulation.virtual_device import (
    PARTITION_ID,
    VirtualApp,
    VirtualDevice,
    VirtualPlan,
    keep_teacher,
)
from penstock.loaders.closing import Closing

if TYPE_CHECKING:
    from flwr.app import Message

OBJECT_STORE_BYTES = 128 << 20  # Ray's shared memory: messages of all actors at once
TRIES = 3  # to start Ray, which gives up after 30 s on a busy machine
RUN_ID = 1  # of Flower's messages, which do not leave this machine


class RayFleet(Closing):
    """See `server/fleet.py`. Start with `with`, or `close()` it.

    Args:
        shards: samples of all devices; a device's number is its node.
        plan: for the actors.
        actors: processes; each needs a core and about 350 MB with torch.

    Attributes:
        teacher: gives the previous chunk's model of a ratio; None: no algorithm has one.

    Raises:
        BackendMissingError: Ray or Flower is not installed.
        UsageError: actors is less than 1.
    """

    def __init__(self, shards: Shards, plan: VirtualPlan, actors: int) -> None:
        if actors < 1:
            raise UsageError(f"actors is {actors}, expected 1 or more")
        self.shards, self.plan, self.actors = shards, plan, actors
        self.teacher: Callable[[float], Arrays | None] | None = None
        self._lock = threading.Lock()
        self._contexts: dict[Node, Any] = {}
        self._scratch = tempfile.mkdtemp(prefix="penstock-ray-")  # short: it holds sockets
        try:
            self._backend: Any = _start(VirtualApp(plan), actors, self._scratch)
        except BaseException:
            shutil.rmtree(self._scratch, ignore_errors=True)
            raise

    def query(self) -> Sequence[tuple[Node, Capabilities]]:
        """Every virtual device; asked here, since actors know no more."""
        return [
            (index, VirtualDevice(self.plan, self.shards, index).capabilities())
            for index in range(self.shards.devices)
        ]

    def exchange(
        self, requests: Mapping[Node, Request], deadline_s: float, kind: Kind = "train"
    ) -> Mapping[Node, Answer]:
        """Every device's answer.

        The deadline is not the simulation's: devices of a federation train side by side, here they
        take turns. Each has `task.seconds` for its own training.
        """
        del deadline_s
        if kind == "train" and self.teacher is not None:
            for task, _ in requests.values():
                keep_teacher(self.plan.folder, task, self.teacher)
        answers: dict[Node, Answer] = {}
        pool = ThreadPoolExecutor(self.actors, "simulation")
        try:
            asked = {
                pool.submit(self._ask, node, request, kind): node
                for node, request in requests.items()
            }
            for done in as_completed(asked):
                answers[asked[done]] = done.result()
        except BaseException:  # an interrupt: what runs is ended, so that the threads end
            pool.shutdown(wait=False, cancel_futures=True)
            self._kill_actors()
            raise
        finally:
            pool.shutdown(wait=True, cancel_futures=True)
        return answers

    def close(self) -> None:
        """End the actors and Ray, and remove its files."""
        backend, self._backend = self._backend, None
        if backend is not None:
            backend.terminate()
            shutil.rmtree(self._scratch, ignore_errors=True)

    # ---------------------------------------------------------------- one device

    def _ask(self, node: Node, request: Request, kind: Kind) -> Answer:
        source = f"virtual device {node}"
        try:
            reply = self._run(self._message(node, request, kind), node)
            if reply.has_error():
                raise RefusedUpdateError(f"{source}: its ClientApp failed: {reply.error.reason}")
            record, arrays = from_content(reply.content, source)
            return TrainResult.from_record(record, source), arrays
        except PenstockError as error:
            return error

    def _run(self, message: Message, node: Node) -> Message:
        """The reply. A device whose actor died is asked once more, on a new one."""
        from ray.exceptions import RayActorError, RayError

        for again in (True, False):
            try:
                reply, self._contexts[node] = self._backend.process_message(
                    message, self._context(node)
                )
                made: Message = reply
                return made
            except RayActorError as error:
                self._replace_actor(getattr(error, "actor_id", None))
                if not again:
                    raise RefusedUpdateError(
                        f"virtual device {node}: its actor died twice; most often memory was "
                        "short: take fewer actors or a smaller model"
                    ) from error
            except RayError as error:
                cause = str(error).strip().splitlines()
                raise RefusedUpdateError(
                    f"virtual device {node}: {cause[-1] if cause else type(error).__name__}"
                ) from error
        raise AssertionError("not reached")

    def _message(self, node: Node, request: Request, kind: Kind) -> Message:
        from flwr.app import Message

        task, arrays = request
        return Message(
            to_content(task, arrays),
            dst_node_id=node + 1,  # 0 is not a node
            message_type=kind,
            group_id=str(task.round_number),
        )

    def _context(self, node: Node) -> Any:
        from flwr.app import Context, RecordDict

        if node not in self._contexts:
            self._contexts[node] = Context(
                run_id=RUN_ID,
                node_id=node + 1,
                node_config={PARTITION_ID: node, "num-partitions": self.shards.devices},
                state=RecordDict(),
                run_config={},
            )
        return self._contexts[node]

    # ---------------------------------------------------------------- Flower's pool of actors

    def _replace_actor(self, dead: str | None) -> None:
        """Flower puts a dead actor back among the idle ones; take it out, and start another."""
        pool = self._backend.pool
        with self._lock:
            pool.pool[:] = [actor for actor in pool.pool if actor._actor_id.hex() != dead]
            if len(pool.pool) + len(pool._future_to_actor) < self.actors:
                pool.pool.append(pool.create_actor_fn())

    def _kill_actors(self) -> None:
        import ray

        # Flower would report each as an error, to a person who has just pressed Ctrl-C
        logging.getLogger("flwr").setLevel(logging.CRITICAL)
        pool = self._backend.pool
        for actor in [*pool.pool, *pool._future_to_actor.values()]:
            ray.kill(actor)


def _start(app: VirtualApp, actors: int, scratch: str) -> Any:
    """Ray, and Flower's pool of actors on it."""
    no_calls_home()
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # else a warning
    path = os.environ.get("PYTHONPATH")
    try:
        import ray
        from flwr.server.superlink.fleet.vce.backend.raybackend import RayBackend
        from flwr.supercore.task_identity import TaskIdentity
    except ImportError as error:
        raise BackendMissingError(
            f"a simulation needs Flower with Ray ({error}): pip install 'penstock[simulation]'"
        ) from error
    # Flower 1.41 makes no message outside of a task.
    TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = RUN_ID, 1, 1
    config = {
        "init_args": {
            "num_cpus": actors,
            "num_gpus": 0,
            "object_store_memory": OBJECT_STORE_BYTES,
            "include_dashboard": False,
            "logging_level": "ERROR",
            "log_to_driver": False,
            "_temp_dir": scratch,
        },
        "client_resources": {"num_cpus": 1, "num_gpus": 0.0},
        "actor": {"tensorflow": 0},
    }
    try:
        for left in reversed(range(TRIES)):
            try:
                backend = RayBackend(config)  # type: ignore[arg-type]
                break
            except Exception as error:  # Ray raises a bare Exception after 30 s
                ray.shutdown()
                if not left:
                    reason = " ".join(str(error).split())[:300]
                    raise PenstockError(
                        f"Ray did not start in {TRIES} tries: {reason} The machine is too busy, "
                        "or short of memory or of shared memory (/dev/shm)"
                    ) from error
        backend.build(lambda: app)  # type: ignore[arg-type,return-value]  # only called
    finally:  # Flower changes it for Ray's processes
        if path is None:
            os.environ.pop("PYTHONPATH", None)
        else:
            os.environ["PYTHONPATH"] = path
    return backend
