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
import workloads
from environment import note
from measure import measure
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
    parser.add_argument("--rounds", type=int, help=f"measurements of each server (default {ROUNDS})")
    parser.add_argument("--seconds", type=int, help=f"length of one measurement (default {SECONDS})")
    parser.add_argument("--quick", action="store_true", help=f"{QUICK_ROUNDS} rounds of {QUICK_SECONDS} seconds")
    parser.add_argument("--out", type=Path, metavar="FILE", help="write the Markdown there too")
    parser.add_argument("--no-install", action="store_true", help="use the tools and the venv as they are")
    parser.add_argument("--list", action="store_true", help="print the workloads and their servers")
    args = parser.parse_args()
    args.rounds = args.rounds or (QUICK_ROUNDS if args.quick else ROUNDS)
    args.seconds = args.seconds or (QUICK_SECONDS if args.quick else SECONDS)
    return args


def names(text):
    return [name.strip() for name in text.split(",") if name.strip()]


def main():
    args = arguments()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    if args.list:
        return list_workloads()
    env = environment.prepare(args.wheel, args.rgunicorn, install=not args.no_install)
    chosen = choose(workloads.build(env), args.only)
    results, failures = {}, {}
    for workload in chosen:
        results[workload.name], failures[workload.name] = run_workload(env, workload, args)
    plan = f"{args.rounds} rounds, {args.seconds} s each, all servers in turn in each round"
    text = report.document(environment.facts(env, command_line()), plan, chosen, results, failures)
    print(text)
    if args.out:
        args.out.write_text(text)


def list_workloads():
    for workload in workloads.build(environment.Environment(environment.PROJECT / ".bench")).values():
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
    for number in range(args.rounds):
        for row in [row for row in rows if row not in failed]:
            try:
                sample = results[row][number] = measure(env, workload, row, args.seconds)
                note(f"  {number + 1}/{args.rounds} {row}: {summary(workload, sample)}")
            except Failure as failure:
                failed[row] = str(failure)
                note(f"  {number + 1}/{args.rounds} {row}: {failure}")
    return {row: samples for row, samples in results.items() if samples}, failed


def summary(workload, sample):
    if workload.kind == "pss":
        return f"{sample.pss / 2**20:.1f} MiB"
    return f"{sample.cpu:.2f} µs/req, {sample.rps:.0f} req/s, others {sample.foreign:.0%}"


def runnable(env, workload, only):
    rows = [row for row in workload.rows if not only or row.split(workloads.LOG)[0] in only]
    why = tool_missing(env, workload) or workloads.prepare(env, workload)
    if why:
        return [], dict.fromkeys(rows, why)
    absent = {row: peers.missing(env, row.split(workloads.LOG)[0]) for row in rows if row != "alone"}
    absent = {row: reason for row, reason in absent.items() if reason}
    return [row for row in rows if row not in absent], absent


def tool_missing(env, workload):
    """Why no server can be measured on this workload here, or None."""
    if workload.kind in ("get", "put"):
        return None if "bulk" in env.built else "the client is not compiled: no cc"
    if not shutil.which("wrk"):
        return "wrk is not installed"
    return "nginx is not installed" if workload.front and not nginx.available() else None


if __name__ == "__main__":
    main()
