"""Compares rgunicorn with its peers in one run: CPU time per request, latency, memory. See README.md beside this file.

    python3 benches/run.py --wheel target/wheels/rgunicorn-*.whl
    python3 benches/run.py --quick --only hello,hello-close --rgunicorn ./rgunicorn --out result.md
"""

import argparse
import shlex
import shutil
import signal
import sys
from pathlib import Path

import environment
import nginx
import peers
import report
import scenarios
import syscalls
import workloads
from environment import note
from measure import count_syscalls, measure
from scenario import Pace, Scenario
from server import Failure

ROUNDS, SECONDS = 5, 4
QUICK_ROUNDS, QUICK_SECONDS = 2, 2


def arguments():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    given = parser.add_mutually_exclusive_group()
    given.add_argument("--wheel", type=Path, help="the release wheel of rgunicorn, installed into the bench venv first")
    given.add_argument("--rgunicorn", type=shlex.split, metavar="CMD", help="the command that starts rgunicorn")
    parser.add_argument("--only", type=names, metavar="NAME,…", help="only these workloads")
    parser.add_argument("--peers", type=names, metavar="NAME,…", help="only these servers")
    parser.add_argument("--rounds", type=int, help=f"measurements of each server (default {ROUNDS}; a scenario has its own)")
    parser.add_argument("--seconds", type=int, help=f"length of one measurement (default {SECONDS}; a scenario has its own)")
    parser.add_argument("--quick", action="store_true", help=f"{QUICK_ROUNDS} rounds of {QUICK_SECONDS} seconds, scenarios as small as they can be")
    parser.add_argument("--syscalls", action="store_true", help="count system calls per request too, by strace in runs of their own")
    parser.add_argument("--out", type=Path, metavar="FILE", help="write the Markdown there too")
    parser.add_argument("--no-install", action="store_true", help="use the tools and the venv as they are")
    parser.add_argument("--list", action="store_true", help="print the workloads and their servers")
    return parser.parse_args()


def extent(workload, args):
    """(rounds, seconds of one measurement)"""
    usual, quick = ((ROUNDS, QUICK_ROUNDS), (SECONDS, QUICK_SECONDS)), int(args.quick)
    rounds, seconds = (workload.rounds, workload.seconds) if isinstance(workload, Scenario) else usual
    return args.rounds or rounds[quick], args.seconds or seconds[quick]


def names(text):
    return [name.strip() for name in text.split(",") if name.strip()]


def main():
    args = arguments()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    if args.list:
        return list_workloads()
    env = environment.prepare(args.wheel, args.rgunicorn, install=not args.no_install)
    chosen = choose(known(env), args.only)
    results, failures, calls = {}, {}, {}
    for workload in chosen:
        results[workload.name], failures[workload.name] = run_workload(env, workload, args)
        if args.syscalls and not isinstance(workload, Scenario):
            calls[workload.name] = run_syscalls(env, workload, results[workload.name], args)
    text = report.document(environment.facts(env, command_line()), plan(chosen, args), chosen, results, failures, calls)
    print(text)
    if args.out:
        args.out.write_text(text)


def known(env):
    return {**workloads.build(env), **scenarios.build()}


def plan(chosen, args):
    extents = {workload.name: extent(workload, args) for workload in chosen}
    said = [f"{name} {rounds} × {seconds} s" for name, (rounds, seconds) in extents.items()]
    return f"all servers in turn in each round; {', '.join(said)}"


def list_workloads():
    for workload in known(environment.Environment(environment.PROJECT / ".bench")).values():
        print(f"{workload.name:20} {workload.title}\n{'':20} {' '.join(workload.rows)}")


def choose(known, only):
    unknown = set(only or ()) - known.keys()
    if unknown:
        sys.exit(f"bench: unknown workload {', '.join(sorted(unknown))}; there are {', '.join(known)}")
    return [known[name] for name in only] if only else list(known.values())


def command_line():
    return " ".join(["python3 benches/run.py", *map(shlex.quote, sys.argv[1:])])


def run_workload(env, workload, args):
    """({row: {round: Sample}}, {row: why it has no figures}). A row that fails once is left out of the later rounds."""
    note(f"bench: {workload.title}")
    rows, failed = runnable(env, workload, args.peers)
    results = {row: {} for row in rows}
    rounds, seconds = extent(workload, args)
    for number in range(rounds):
        for row in [row for row in rows if row not in failed]:
            try:
                sample = results[row][number] = measured(env, workload, row, Pace(number, seconds, args.quick))
                note(f"  {number + 1}/{rounds} {row}: {summary(workload, sample)}")
            except Failure as failure:
                failed[row] = str(failure)
                note(f"  {number + 1}/{rounds} {row}: {failure}")
    return {row: samples for row, samples in results.items() if samples}, failed


def run_syscalls(env, workload, rows, args):
    """{row: {system call: how many a request}} of the servers that have been measured."""
    if not syscalls.available() or workload.kind != "wrk":
        return {}
    _, seconds = extent(workload, args)
    calls = {}
    for row in [row for row in rows if row != "alone"]:
        try:
            calls[row] = count_syscalls(env, workload, row, seconds)
            note(f"  {row}: {sum(calls[row].values()):.1f} system calls a request")
        except Failure as failure:
            note(f"  {row}: {failure}")
    return calls


def measured(env, workload, row, pace):
    if isinstance(workload, Scenario):
        return workload.measure(env, row, pace)
    return measure(env, workload, row, pace.seconds)


def summary(workload, sample):
    if isinstance(workload, Scenario):
        return ", ".join(f"{column.head.strip('*')} {column.show({0: sample})}" for column in workload.columns)
    if workload.kind == "pss":
        return f"{sample.pss / 2**20:.1f} MiB"
    return f"{sample.cpu:.2f} µs/req, {sample.rps:.0f} req/s, others {sample.foreign:.0%}"


def runnable(env, workload, only):
    rows = [row for row in workload.rows if not only or peer_of(workload, row) in only]
    why = unable(env, workload)
    if why:
        return [], dict.fromkeys(rows, why)
    absent = {row: peers.missing(env, peer_of(workload, row)) for row in rows if row != "alone"}
    absent = {row: reason for row, reason in absent.items() if reason}
    unfit = {row: f"n/a, {why}" for row, why in getattr(workload, "unfit", {}).items() if not only or row in only}
    return [row for row in rows if row not in absent], {**absent, **unfit}


def peer_of(workload, row):
    return workload.rows[row].peer if isinstance(workload, Scenario) else row.split(workloads.LOG)[0]


def unable(env, workload):
    """Why no server can be measured on this workload here, or None."""
    if isinstance(workload, Scenario):
        return scenarios.missing(env, workload)
    if workload.kind in ("get", "put") and "bulk" not in env.built:
        return "the client is not compiled: no cc"
    if workload.kind not in ("get", "put") and not shutil.which("wrk"):
        return "wrk is not installed"
    if workload.front and not nginx.available():
        return "nginx is not installed"
    return workloads.prepare(env, workload)


if __name__ == "__main__":
    main()
