"""The recipes that TFLite models are quantized by, under the names that commands take."""

from __future__ import annotations

from dataclasses import dataclass, replace

from penstock.errors import UsageError


@dataclass(frozen=True)
class Recipe:
    """One way to quantize.

    Attributes:
        name: as commands take it.
        what: for people.
        weights: `int8` or `int4`.
        library: AI Edge Quantizer does it; False: `penstock.export.litert.weight_quantizer`.
        calibrated: it needs calibration data. Recipes of our own are better with it.
        method: of static recipes, how ranges of activations come from it: `minmax`, `percentile`,
            `entropy`, or `average`, which is AI Edge Quantizer's own.
    """

    name: str
    what: str
    weights: str
    library: bool
    calibrated: bool = False
    method: str = "minmax"

    @property
    def activation_bits(self) -> int:
        """Of recipes that quantize activations."""
        return 16 if self.name == "static-int16" else 8

    def __str__(self) -> str:
        return f"{self.name} {self.method}" if self.calibrated else self.name


RECIPES = {
    recipe.name: recipe
    for recipe in (
        Recipe("weight-int8", "int8 weights, a scale a channel, float arithmetic", "int8", False),
        Recipe("weight-int4", "int4 weights, a scale a channel, float arithmetic", "int4", False),
        Recipe("dynamic-int8", "int8 weights, activations quantized while it runs", "int8", True),
        Recipe(
            "dynamic-int4",
            "int4 weights, in blocks of 32 where rows divide, activations as dynamic-int8",
            "int4",
            True,
        ),
        Recipe("static-int8", "int8 weights and activations, calibrated", "int8", True, True),
        Recipe("static-int16", "int8 weights, int16 activations, calibrated", "int8", True, True),
    )
}
METHODS = ("minmax", "percentile", "entropy", "average")
ALIASES = {"int8": "weight-int8", "int4": "weight-int4"}


def litert_recipe(text: str) -> Recipe:
    """`"weight-int4"`, or `"static-int8 percentile"`; commas do as well as blanks.

    Raises:
        UsageError: an unknown recipe, or a word that it does not take.
    """
    name, *words = text.lower().replace(",", " ").split() or [""]
    found = RECIPES.get(ALIASES.get(name, name))
    if found is None:
        raise UsageError(f"recipe '{text}' is not known for TFLite; expected {', '.join(RECIPES)}")
    unknown = [word for word in words if word not in METHODS or not found.calibrated]
    if unknown or len(words) > 1:
        taken = f"one of {', '.join(METHODS)}" if found.calibrated else "no words"
        raise UsageError(f"recipe '{text}': {found.name} takes {taken}")
    return replace(found, method=words[0]) if words else found
