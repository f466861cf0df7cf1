"""A worker that does whatever a bad configuration could make one do."""

import ctypes
import json
import os
import signal
import subprocess
import sys
import time

from weft.autotune.workers import serve
from weft.autotune.workers.serve import LENGTH

LINE: serve.Line | None = None


def raw(data: bytes) -> None:
    """Bytes on the private socket, past the protocol."""
    os.write(int(sys.argv[1]), data)


def handle(job):
    fault, ok = job.get("fault", ""), {"status": "ok", "times_us": [1000.0]}
    match fault:
        case "segv":
            ctypes.string_at(0)
        case "abort":
            os.abort()
        case "exit0":
            os._exit(0)
        case "hang":
            time.sleep(1e6)
        case "spin":
            while True:
                pass
        case "ignore-term":
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            time.sleep(1e6)
        case "stopped":
            os.kill(os.getpid(), signal.SIGSTOP)
        case "grandchild":
            subprocess.Popen(["sleep", job["sleep"]])
            time.sleep(1e6)
        case "oom":
            bytearray(64 << 30)
        case "print":
            print("garbage {} \x00" * 100, flush=True)
        case "half":
            raw(LENGTH.pack(1000) + b'{"status":')
            os._exit(1)
        case "huge":
            raw(LENGTH.pack((1 << 32) - 1))
            time.sleep(1e6)
        case "garbage":
            raw(LENGTH.pack(4) + b"nope")
            time.sleep(1e6)
        case "nan" | "neg" | "text":
            time_us = {"nan": float("nan"), "neg": -1.0, "text": "0"}[fault]
            return {"status": "ok", "times_us": [time_us]}
        case "wrong":
            return {"status": "wrong", "error": 3.0, "reason": "error 3"}
        case "nonfinite":
            return {"status": "non_finite", "reason": "3 of 10 values are NaN"}
        case "raise":
            raise RuntimeError("CUDA error: an illegal memory access was encountered")
        case "device-oom":
            raise RuntimeError("CUDA out of memory. Tried to allocate 80.00 GiB")
        case "pid":
            return {"pid": os.getpid(), "tmp": os.environ["TMPDIR"], "modules": sorted(sys.modules)}
    return json.loads(json.dumps(ok))


if __name__ == "__main__":
    serve.serve(handle, memory=4 << 30)
