"""llama.cpp's own server in this process, until it is terminated: MODEL.gguf PORT SLOTS [CHAT TEMPLATE]."""

from __future__ import annotations

import os
import signal
import sys

import xllamacpp

model, port, slots, *template = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), *sys.argv[4:]
params = xllamacpp.CommonParams()
params.model.path = model
params.hostnames = ["127.0.0.1"]
params.port = port
params.n_parallel = slots
params.n_ctx = 1024 * slots
params.cpuparams.n_threads = 1
if template:
    (params.chat_template,) = template
params.endpoint_slots = params.endpoint_props = True
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
server = xllamacpp.Server(params)
print("listening", flush=True)
signal.sigwait([signal.SIGTERM])
os._exit(0)
