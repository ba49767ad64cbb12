"""What the processor does to int8 sums."""

from __future__ import annotations

from pathlib import Path

from penstock.export.onnx.recipe import OnnxRecipe

CPUINFO = Path("/proc/cpuinfo")


def saturation_note(recipe: OnnxRecipe) -> tuple[str, ...]:
    """A warning where int8 products may overflow; empty where they cannot, or it is not known."""
    if recipe.kind not in ("static-int8", "dynamic-int8") or recipe.reduce_range:
        return ()
    if recipe.uint8_weights:
        return ()
    flags = processor_flags()
    if "avx2" not in flags or any("vnni" in flag for flag in flags):
        return ()
    return (
        "this processor has AVX2 and no VNNI: sums of two products saturate at 16 bits, which "
        "costs accuracy where weights are large; compare with the words reduce-range (weights in 7 "
        "bits) and, of static-int8, uint8-weights",
    )


def processor_flags(path: Path = CPUINFO) -> frozenset[str]:
    """Of the first processor; empty where the system does not tell."""
    try:
        lines = path.read_text(errors="replace").splitlines()
    except OSError:
        return frozenset()
    flags = next((line for line in lines if line.startswith("flags")), "")
    return frozenset(flags.partition(":")[2].split())
