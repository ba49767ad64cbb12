"""The operators of a TFLite file, and what else in it names tensors and subgraphs by number."""

from __future__ import annotations

from collections.abc import Mapping

from penstock.loaders.flatbuffer import Table
from penstock.loaders.tensor_graph import Operation
from penstock.loaders.tflite_operators import (
    CUSTOM,
    DEPRECATED_LIMIT,
    FIRST_OPTIONAL,
    LEAST_INPUTS,
    STRINGS,
    STRINGS_2,
    SUBGRAPHS,
    SUBGRAPHS_2,
    VECTORS,
    VECTORS_2,
    operator_name,
)

CUSTOM_DOMAIN = "custom"
MAX_CALL_DEPTH = 64
INDEX_BYTES = {1: 4, 2: 2, 3: 1}  # of a sparse tensor's indices, by their type


def operator_kinds(model: Table) -> list[str]:
    """Names of the operators that the file uses; custom ones as 'custom.Name'."""
    kinds = []
    for table in model.tables(1, "operator code"):
        old, new = table.number(0, "b"), table.number(3)
        code = new if old < 0 or old >= DEPRECATED_LIMIT else max(old, new)
        name = table.string(1)
        kinds.append(f"{CUSTOM_DOMAIN}.{name or '?'}" if code == CUSTOM else operator_name(code))
    return kinds


def read_operations(
    graph: Table, tensors: list[str], there: set[int], kinds: list[str], subgraphs: int
) -> tuple[list[Operation], set[int]]:
    """(the operators of a subgraph, the subgraphs that they run), all numbers checked.

    A tensor must be written once and before it is read: the library ends the process where a
    constant is written, and where memory is planned for a tensor that comes later.

    Args:
        tensors: names of the subgraph's tensors.
        there: those that are there from the start: constants, variables, inputs.
        kinds: names of the operators by their number in the file.
        subgraphs: how many the file has.
    """
    operations: list[Operation] = []
    calls: set[int] = set()
    there = set(there)
    for number, table in enumerate(graph.tables(3, f"{graph.what}, node")):
        code = table.number(0, "I")
        if code >= len(kinds):
            raise table.fail(f"its operator is number {code}; there are {len(kinds)}")
        kind, inputs, outputs = kinds[code], table.numbers(1), table.numbers(2)
        for field, least in ((1, -1), (2, 0), (8, -1)):  # inputs may be left out
            for index in table.numbers(field):
                if not least <= index < len(tensors):
                    raise table.fail(f"{kind} uses tensor {index}; there are {len(tensors)}")
        if not kind.startswith(CUSTOM_DOMAIN):
            needed = inputs[: FIRST_OPTIONAL.get(kind, len(inputs))]
            if -1 in needed or len(inputs) < LEAST_INPUTS.get(kind, 0):
                raise table.fail(f"{kind} lacks an input that it needs; it has {inputs}")
        late = {index for index in inputs if index >= 0} - there
        if late or there.intersection(outputs) or len(set(outputs)) < len(outputs):
            raise table.fail(f"{kind} reads {sorted(late)} too early or writes {outputs} again")
        there.update(outputs)
        table.vector(5, 1)
        table.vector(7, 1)
        called = _options(table, kind, 4, VECTORS, STRINGS, SUBGRAPHS)
        called |= _options(table, kind, 12, VECTORS_2, STRINGS_2, SUBGRAPHS_2)
        if any(not 0 <= index < subgraphs for index in called):
            raise table.fail(f"{kind} runs subgraphs {sorted(called)}; there are {subgraphs}")
        calls |= called
        made = tensors[outputs[0]] if outputs else ""
        name = f"{number}, which makes {made}" if made else str(number)
        domain, _, custom = kind.partition(".")
        operations.append(Operation(name, custom, domain) if custom else Operation(name, kind))
    return operations, calls


def _options(
    node: Table,
    kind: str,
    field: int,
    vectors: Mapping[str, tuple[tuple[int, int], ...]],
    strings: Mapping[str, tuple[int, ...]],
    subgraphs: Mapping[str, tuple[int, ...]],
) -> set[int]:
    options = node.table(field, f"{node.what}, options")
    if options is None:
        return set()
    for number, item_bytes in vectors.get(kind, ()):
        options.vector(number, item_bytes)
    for number in strings.get(kind, ()):
        options.string(number)
    return {options.number(number) for number in subgraphs.get(kind, ())}


def check_calls(model: Table, calls: Mapping[int, set[int]]) -> None:
    """No subgraph may run itself, over any others: the library would without end."""
    done: set[int] = set()

    def visit(number: int, above: tuple[int, ...]) -> None:
        if number in above or len(above) > MAX_CALL_DEPTH:
            raise model.fail(
                f"subgraph {number} runs itself, or is more than {MAX_CALL_DEPTH} deep"
            )
        if number not in done:
            for called in calls[number]:
                visit(called, (*above, number))
            done.add(number)

    for number in calls:
        visit(number, ())


def check_sparsity(table: Table, ndim: int) -> None:
    """The tables of a sparse tensor are there; their values are the library's to check."""
    order, blocks = table.numbers(0), table.numbers(1)
    dims = list(table.tables(2, f"{table.what}, dimension"))
    if len(order) != ndim + len(blocks) or len(dims) != len(order):
        raise table.fail(f"{len(order)} dimensions in order, {len(dims)} described, of {ndim}")
    if sorted(order) != list(range(len(order))) or any(not 0 <= b < ndim for b in blocks):
        raise table.fail(f"dimensions in the order {order}, blocks of {blocks}")
    for dim in dims:
        for kind, place in ((2, 3), (4, 5)):
            indices = dim.table(place, f"{dim.what}, indices")
            if indices is not None:
                indices.vector(0, INDEX_BYTES.get(dim.number(kind, "B"), 4))
