"""`penstock inspect`: what is in a GGUF, ONNX or TFLite file.

Not named inspect.py: started from this folder, Python would take it for the standard module.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from penstock.cli import options
from penstock.cli.console import emit_json, percent, print_facts, print_table, say, size
from penstock.cli.options import examples
from penstock.errors import FormatError, UsageError

if TYPE_CHECKING:
    from penstock.loaders.bundle import Bundle
    from penstock.loaders.gguf_file import GGUFFile
    from penstock.loaders.gguf_summary import GgufSummary

EXAMPLES = examples(
    "penstock inspect model.gguf",
    "penstock inspect model.gguf --verify",
    "penstock inspect model.onnx",
    "penstock inspect model.gguf --tensors --json | jq '.tensors[].name'",
)
KINDS = {
    "table": "read by rows from the file",
    "expert": "an expert window, where they do not fit",
    "matrix": "in memory, or a part of each streamed",
    "small": "in memory: norms, biases, routers, small matrices, tied embeddings",
    "skipped": "not used: blocks that predict further tokens",
}
LONG_TEXT, LONG_ARRAY = 80, 6  # what is shown of a value before it is shortened


def inspect(
    file: Annotated[Path, typer.Argument(metavar="FILE", hidden=True)],
    verify: Annotated[
        bool, typer.Option("--verify", help="Read every tensor and compare its checksum.")
    ] = False,
    tensors: Annotated[bool, typer.Option("--tensors", help="List every tensor.")] = False,
    as_json: options.Json = False,
    debug: options.Debug = False,
) -> None:
    """Show what is in a model's file, and check that it is whole.

    FILE is any GGUF file; of a split one any part, and all must be there. Headers are always
    checked. --verify also reads the weights of a Penstock bundle. Of an ONNX or TFLite model, FILE
    shows inputs, outputs and operators; the library that runs it is not needed.
    """
    from penstock.cli.inspect_tensors import inspect_tensors
    from penstock.loaders.file_kind import TENSOR_KINDS, file_kind

    if file_kind(file) in TENSOR_KINDS:
        inspect_tensors(file, verify=verify, tensors=tensors, as_json=as_json)
        return
    _inspect_gguf(file, verify, tensors, as_json)


def _inspect_gguf(file: Path, verify: bool, tensors: bool, as_json: bool) -> None:
    from penstock.loaders.bundle import check_bundle, is_bundle
    from penstock.loaders.gguf_file import read_gguf
    from penstock.loaders.gguf_summary import summarize

    header = read_gguf(file)
    bundle = check_bundle(header) if is_bundle(header) else None
    summary = summarize(file) if bundle is None else None
    verified = None
    if verify:
        if bundle is None:
            raise UsageError(f"{file}: an ordinary GGUF file; it carries no checksums to verify")
        verified = _verify(bundle, show_progress=not as_json)
    if as_json:
        emit_json(_document(header, bundle, summary, verified, tensors))
        return
    _print_header(header)
    if bundle is not None:
        _print_bundle(bundle)
    if summary is not None:
        _print_summary(summary)
    if tensors:
        _print_tensors(header)
    if verified is not None:
        say(f"Checked {verified} tensors: every checksum matches.")


def _verify(bundle: Bundle, show_progress: bool) -> int:
    """Compare every tensor with its checksum; the number of tensors, or a FormatError."""
    from penstock import _native
    from penstock.cli.progress import progress

    damaged: list[str] = []
    with progress("checking", bundle.file.size, show_progress) as advance:
        for info in bundle.file.tensors.values():
            found = _native.crc32c_of_file(bundle.path, info.offset, info.nbytes)
            if found != bundle.checksums[info.name]:
                damaged.append(f"'{info.name}' at offset {info.offset}")
            advance(info.nbytes)
    if damaged:
        raise FormatError(
            f"{bundle.path}: {len(damaged)} of {len(bundle.checksums)} tensors do not match their "
            f"checksum: {', '.join(damaged)}; the file is damaged, fetch or export it again"
        )
    return len(bundle.checksums)


def _shortened(value: Any) -> str:
    length = len(value) if hasattr(value, "__len__") else None
    if isinstance(value, str):
        flat = value.replace("\n", "\\n")
        return flat if len(flat) <= LONG_TEXT else f"{flat[:LONG_TEXT]}... ({length} characters)"
    if length is None:
        return str(value)
    first = ", ".join(_shortened(item) for item in list(value[:LONG_ARRAY]))
    return f"[{first}]" if length <= LONG_ARRAY else f"[{first}, ...] ({length} values)"


def _print_header(header: GGUFFile) -> None:
    print_facts(
        [
            ("file", str(header.path)),
            ("size", size(header.size)),
            ("GGUF version", str(header.version)),
            ("alignment", str(header.alignment)),
            ("tensors", str(len(header.tensors))),
            ("data at", str(header.data_offset)),
        ]
    )
    rows = [(key, _shortened(value)) for key, value in header.metadata.items()]
    print_table(["metadata", ""], rows)


def _print_bundle(bundle: Bundle) -> None:
    gated = "gate, up and down" if bundle.gated else "up and down"
    print_facts(
        [
            ("bundle of", f"{bundle.arch}, {bundle.activation}"),
            ("feed-forward", f"{bundle.layers} layers of {bundle.neurons} neurons"),
            ("a neuron", f"{gated} row in {bundle.dtype}, {bundle.stride} bytes on storage"),
            ("streamed", f"{size(bundle.ffn_bytes)} of {size(bundle.file.size)}"),
        ]
    )
    rows = []
    for n, (predictor, profile) in enumerate(zip(bundle.predictors, bundle.profiles, strict=True)):
        rows.append(
            (
                str(n),
                "-" if profile is None else percent(profile.active),
                "-" if profile is None else percent(profile.predicted),
                "-" if predictor is None else str(predictor.rank),
                "-" if predictor is None else percent(predictor.recall, 2),
                "-" if predictor is None else percent(predictor.false_negative_rate, 2),
                "-" if predictor is None else percent(predictor.false_positive_rate, 2),
            )
        )
    columns = ["layer", ">active", ">predicted", ">predictor rank", ">recall"]
    print_table([*columns, ">false negatives", ">false positives"], rows)


def _print_summary(s: GgufSummary) -> None:
    facts = [("model", ", ".join(part for part in (s.arch, s.name) if part) or "not named")]
    if len(s.files) > 1:
        facts.append(("split into", f"{len(s.files)} files, {size(s.size)} together"))
    if s.blocks is not None:
        facts.append(("blocks", f"{s.blocks}, width {'-' if s.width is None else s.width}"))
    if s.context is not None:
        facts.append(("context", f"{s.context} tokens"))
    if s.experts:
        used = "-" if s.experts_used is None else s.experts_used
        facts.append(
            (
                "experts",
                f"{s.experts} in each of {s.expert_blocks} blocks, {used} for a token, "
                f"{size(s.expert_bytes)} each",
            )
        )
    print_facts(facts)
    print_table(
        ["weights", ">tensors", ">bytes", "under a budget"],
        [(k, str(p.tensors), size(p.nbytes), KINDS[k]) for k, p in s.kinds.items() if p.tensors],
    )
    print_table(
        ["number format", ">tensors", ">bytes"],
        [(name, str(p.tensors), size(p.nbytes)) for name, p in s.types.items()],
    )


def _print_tensors(header: GGUFFile) -> None:
    print_table(
        ["tensor", "type", "shape", ">offset", ">bytes"],
        [
            (t.name, t.type_name, " x ".join(map(str, t.shape)), str(t.offset), str(t.nbytes))
            for t in header.tensors.values()
        ],
    )


def _document(
    header: GGUFFile,
    bundle: Bundle | None,
    summary: GgufSummary | None,
    verified: int | None,
    tensors: bool,
) -> dict[str, Any]:
    out: dict[str, Any] = {
        "file": header.path,
        "size": header.size,
        "version": header.version,
        "alignment": header.alignment,
        "data_offset": header.data_offset,
        "metadata": {key: _value(value) for key, value in header.metadata.items()},
        "tensor_count": len(header.tensors),
        "bundle": None,
        "model": None if summary is None else summary.to_dict(),
        "verified_tensors": verified,
    }
    if tensors:
        out["tensors"] = [
            {
                "name": t.name,
                "type": t.type_name,
                "shape": t.shape,
                "offset": t.offset,
                "nbytes": t.nbytes,
            }
            for t in header.tensors.values()
        ]
    if bundle is not None:
        out["bundle"] = {
            "arch": bundle.arch,
            "layers": bundle.layers,
            "width": bundle.width,
            "neurons": bundle.neurons,
            "type": bundle.dtype,
            "activation": bundle.activation,
            "gated": bundle.gated,
            "stride": bundle.stride,
            "ffn_bytes": bundle.ffn_bytes,
        }
    return out


def _value(value: Any) -> Any:
    """Metadata as JSON; a long array or text as its length and its start."""
    long = LONG_ARRAY if not isinstance(value, str) else 10 * LONG_TEXT
    if not hasattr(value, "__len__") or len(value) <= long:
        return value
    return {"length": len(value), "start": value[:long]}
