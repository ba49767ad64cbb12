"""Learns on the device: Flower apps, FedConv, FedMobile and the daemon."""
