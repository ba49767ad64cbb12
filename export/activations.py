"""Which activations leave neurons exactly at zero, and what to say of the others."""

from __future__ import annotations

from penstock.errors import UnsupportedModelError, UsageError

# config.json's or GGUF's name -> the bundle's
SPARSE = {
    "relu": "relu",
    "relu2": "relu2",
    "relu_squared": "relu2",
    "squared_relu": "relu2",
    "fatrelu": "fatrelu",
    "shiftrelu": "fatrelu",
    "drelu": "drelu",
}


def sparse_activation(name: str, where: str, threshold: float | None = None) -> tuple[str, float]:
    """The bundle's name of an activation, and its threshold.

    Args:
        name: as the checkpoint writes it.
        where: file and key, for the message.
        threshold: FATReLU's.

    Raises:
        UnsupportedModelError: the activation is never exactly zero.
    """
    found = SPARSE.get(name.lower())
    if found is None:
        raise UnsupportedModelError(
            f"{where} is '{name}', which is never exactly zero: every neuron takes part in every "
            "token, so there is nothing for the neuron window to skip. Supported: relu, relu2, "
            "fatrelu, drelu. Instead, export a checkpoint of it that was trained for sparsity, "
            "such as ProSparse, ReluLLaMA or TurboSparse, or run it as an ordinary GGUF file with "
            "llama.cpp."
        )
    if found != "fatrelu":
        return found, 0.0
    if threshold is None or not 0.0 <= threshold < 1e6:
        raise UnsupportedModelError(
            f"{where} is '{name}' with threshold {threshold}; expected a number of 0 or more "
            "(`hidden_act_param` in config.json, or the option `--activation fatrelu:0.01`)"
        )
    return found, float(threshold)


def parse_activation(option: str) -> tuple[str, float]:
    """The option `--activation`: `relu`, `relu2`, `drelu` or `fatrelu:THRESHOLD`."""
    name, _, number = option.partition(":")
    try:
        threshold = float(number) if number else None
    except ValueError:
        raise UsageError(f"activation {option!r}: {number!r} is not a number") from None
    if name.lower() not in SPARSE:
        raise UsageError(
            f"activation {option!r} is not known; expected relu, relu2, drelu or fatrelu:0.01"
        )
    return sparse_activation(name, "the option activation", threshold)
