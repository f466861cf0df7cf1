"""A bench worker with a made-up H200: results are right, and times follow from the configuration."""

import math
import os
import time

from weft.autotune.workers import serve

GPU = {"gpu": "NVIDIA H200", "sms": 132, "shared": 232448, "memory": 1 << 37, "arch": "sm_90", "torch": "2.13.0"}


def us(config):
    """10 microseconds with two warps, 2 more for each doubling or halving."""
    return 10.0 + 2 * abs(math.log2(config["num_warps"]) - 1)


def handle(job):
    if job["op"] == "device":
        return GPU
    if job["op"] == "check":
        return {"status": "ok", "error": 0.0, "reason": ""}
    time.sleep(float(os.environ.get("SLOWLY", 0)))
    return {"status": "ok", "times_us": [us(job["config"])] * job["samples"], "clock_mhz": 1980.0}


if __name__ == "__main__":
    serve.serve(handle)
