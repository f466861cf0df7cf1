"""A compile worker that hangs, crashes or answers, as the launch's options say, and starts a process of its own."""

import os
import subprocess
import sys
import time

from weft.autotune.workers import serve


def handle(job):
    if job["op"] == "version":
        return {"triton": "0.0.0", "ptxas": {}, "torch": "torch" in sys.modules}
    options = job["launch"]["options"]
    if options.get("hang"):
        subprocess.Popen(["sleep", str(options["hang"])])
        time.sleep(1e6)
    if options.get("crash"):
        os.abort()
    if options.get("raise"):
        raise RuntimeError("PassManager::run failed")
    return {"shared": 0, "cpu_s": 0.01, "seconds": 0.01, "warps": os.getpid()}


if __name__ == "__main__":
    serve.serve(handle)
