"""The server of a federation: rounds over an algorithm and a fleet, with a checkpoint of each."""
