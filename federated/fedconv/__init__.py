"""FedConv: sub-models made by learned convolutions over the weights, after the authors' release."""

from __future__ import annotations

from penstock.federated.fedconv.fedconv import FedConv
from penstock.federated.fedconv.profiles import DEFAULT, PAPER, Profile, profile_by_name

__all__ = ["DEFAULT", "PAPER", "FedConv", "Profile", "profile_by_name"]
