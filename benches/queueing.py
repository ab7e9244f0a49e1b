"""The ideal: one queue before all servers, first come first served, no server idle while a request waits.

python queueing.py TRACE SERVERS NAME=SECONDS…    the latencies it would have given the requests of a trace (see openloop)
python queueing.py                                checks itself
"""

import csv
import heapq
import math
import random
import sys


def latencies(arrivals, services, servers):
    """`arrivals` in order, and how long each takes; the seconds from the arrival to the end of each."""
    free, took = [0.0] * servers, []
    for at, service in zip(arrivals, services):
        end = max(at, free[0]) + service
        heapq.heapreplace(free, end)
        took.append(end - at)
    return took


def percentile(values, share):
    """The smallest value that is not less than this share of them."""
    ranked = sorted(values)
    return ranked[max(1, math.ceil(len(ranked) * share)) - 1]


def read_trace(path):
    """[(seconds, class)]"""
    with open(path, newline="") as file:
        return [(float(line["at"]), line["class"]) for line in csv.DictReader(file)]


def ideal(path, servers, services, of, share):
    """The percentile of class `of` in seconds; `services` says how long a request of each class takes."""
    trace = read_trace(path)
    took = latencies([at for at, _ in trace], [services[name] for _, name in trace], servers)
    return percentile([latency for latency, (_, name) in zip(took, trace) if name == of], share)


# -- checks -------------------------------------------------------------------------------------------------------------


def check_by_hand():
    assert latencies([0, 1, 2], [2, 2, 2], 1) == [2, 3, 4]
    assert latencies([0, 1, 2], [2, 2, 2], 2) == [2, 2, 2]
    # The long one takes one server; the others pass it on the second, and queue up there.
    assert latencies([0, 1, 1, 1], [9, 1, 1, 1], 2) == [9, 1, 2, 3]
    assert percentile(range(1, 1001), 0.99) == 990 and percentile([5], 0.5) == 5


def check_against_theory():
    """Mean time in M/M/1 is 1/(μ-λ); in M/M/2 it is 1/(μ(1-ρ²))."""
    for servers, load in ((1, 0.5), (2, 0.6)):
        draw, now, arrivals = random.Random(1), 0.0, []
        for _ in range(400_000):
            now += draw.expovariate(load * servers)
            arrivals.append(now)
        took = latencies(arrivals, [draw.expovariate(1) for _ in arrivals], servers)
        mean, theory = sum(took) / len(took), 1 / (1 - load**servers)
        assert abs(mean / theory - 1) < 0.03, (servers, mean, theory)


def main(path, servers, *services):
    services = {name: float(seconds) for name, seconds in (item.split("=") for item in services)}
    for name in services:
        figures = [ideal(path, int(servers), services, name, share) * 1000 for share in (0.5, 0.99, 0.999)]
        print("{}: p50 {:.2f} ms, p99 {:.2f} ms, p99.9 {:.2f} ms".format(name, *figures))


if __name__ == "__main__":
    if len(sys.argv) > 1:
        main(*sys.argv[1:])
    else:
        check_by_hand()
        check_against_theory()
        print("queueing: all checks passed")
