"""The device: its store of samples and models, and what it does with a message of the server."""
