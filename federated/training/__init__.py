"""Training on the device: a warm torch module under a memory budget and a time budget."""
