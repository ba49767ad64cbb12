"""Many virtual devices on one machine, on Flower's Ray engine."""
