"""The process that keeps a device in a federation: supervised, measured, and gone when asked."""
