"""An HTTP server for one model, in OpenAI's protocol.

From the socket inwards: `serve` opens the port and stops at a signal; `access` asks for the key;
`app` is the table of routes; `body` and `schema` turn bytes into a checked request; `exchange`
carries it to the `worker`, which runs the model in its one thread; `answers` and `sse` shape what
comes back; `metrics` counts.
"""
