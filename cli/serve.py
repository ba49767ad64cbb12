"""`penstock serve`: a model behind OpenAI's protocol."""

from __future__ import annotations

import os
import sys
from typing import Annotated

import typer

from penstock.cli import options
from penstock.cli.console import emit_json, say
from penstock.cli.option_groups import Loading, grouped
from penstock.cli.options import examples

EXAMPLES = examples(
    "penstock serve model.gguf --memory 2GiB",
    "penstock serve model.gguf --memory 50% --port 0 --json",
    "PENSTOCK_API_KEY=secret penstock serve model.gguf --host 0.0.0.0",
)

Host = Annotated[
    str,
    typer.Option(
        metavar="ADDRESS", help="Where to listen. One that other machines reach needs --api-key."
    ),
]
Port = Annotated[
    int, typer.Option(min=0, max=65535, metavar="N", help="0 takes a free one and prints it.")
]
ApiKey = Annotated[
    str | None,
    typer.Option(
        envvar="PENSTOCK_API_KEY",
        metavar="KEY",
        help="What clients must send. In the environment other users of the machine do not see it.",
    ),
]
MaxBody = Annotated[str, typer.Option(metavar="SIZE", help="The largest request that is read.")]
MaxQueue = Annotated[
    int, typer.Option(min=1, metavar="N", help="Requests that may wait; more are sent away.")
]


@grouped
def serve(
    model: options.Model,
    *,
    host: Host = "127.0.0.1",
    port: Port = 8080,
    api_key: ApiKey = None,
    max_body: MaxBody = "1MiB",
    max_queue: MaxQueue = 128,
    loading: Loading,
    as_json: options.Json = False,
    debug: options.Debug = False,
) -> None:
    """Answer programs that speak OpenAI's protocol, over HTTP.

    MODEL is a Penstock bundle or any GGUF file; to clients its name is the file's, without the
    ending. There are /v1/chat/completions, /v1/completions and /v1/models, answered one request
    after the other; /health says whether the server is there, /metrics what it did. One line on
    stdout says when it is ready, and where. Ctrl-C or SIGTERM ends it: the answer that is being
    made has five seconds to finish. Needs pip install 'penstock[serve]'.
    """
    from penstock.runtime.budget import parse_size
    from penstock.runtime.server.serve import ServerOptions, bind, url
    from penstock.runtime.server.serve import serve as serve_model

    wanted = ServerOptions(
        host=host,
        port=port,
        api_key=api_key or None,
        max_body_bytes=parse_size(max_body),
        max_queue=max_queue,
    )
    sock = bind(wanted)
    name = model.stem
    with sock:
        loaded = loading.load(model)

        def ready() -> None:
            if as_json:
                facts = {"url": url(sock), "model": name, "context_tokens": loaded.context_tokens}
                emit_json(facts)
            else:
                print(f"Serving {name} at {url(sock)}/v1", flush=True)

        at_rest = serve_model(loaded, name, sock, wanted, ready)
    say("Stopped.")
    if not at_rest:  # a thread computes: to unload libraries under it is a segmentation fault
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0)
