"""The typer commands: parse, call one function, print."""
