"""What every worker shares: the job on the command line, the answer on standard output. Standard library only.

A worker is one peer's side of a measurement. The harness starts it in that peer's own Python, in its own process:
`python workers/NAME.py '{"task": "generate", ...}'`; the last line it prints is `RESULT {json}`. Libraries may print
whatever they like before that.
"""

import json
import os
import sys


def confine(threads):
    """Allow this process `threads` cores: "N threads" then means the same for every peer, helper threads included.

    The last cores are taken, since the first one serves most interrupts. Does nothing where the system can't (macOS).
    """
    if threads and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[-threads:])


def peak_kb():
    """Peak resident memory in KiB. Not `ru_maxrss`: that one also counts the parent's memory from before exec."""
    try:
        with open("/proc/self/status") as status:
            return next(int(line.split()[1]) for line in status if line.startswith("VmHWM"))
    except OSError:
        import resource

        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak // 1024 if sys.platform == "darwin" else peak


def main(tasks):
    """Run the job's task, a function of the job that returns a dict, and print the answer."""
    job = json.loads(sys.argv[1])
    confine(job.get("threads"))
    answer = tasks[job["task"]](job)
    answer["peak_kb"] = peak_kb()
    print("\nRESULT " + json.dumps(answer), flush=True)
