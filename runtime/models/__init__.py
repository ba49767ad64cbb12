"""Model architectures, one readable file each; the file name is the architecture name."""
