"""Samples → Markdown: a table per workload, and the table of the figures to be reached.

A figure of a row is the median over the rounds. A ratio is the median of the ratios within each round, so that a machine that
is slower for one round does not enter it.
"""

from statistics import median

import scenario_report
import syscalls
from cells import duration, noise_remarks, number, table_line
from peers import PEERS
from scenario import Scenario
from workloads import BEST, LOG


def label(row):
    if row == "alone":
        return "the application alone, no server"
    if row.endswith(LOG):
        return label(row[: -len(LOG)]) + ", access log"
    return PEERS[row].label


def middle(samples, field):
    return median(getattr(sample, field) for sample in samples.values())


def ratio(samples, base, field="cpu"):
    """Over the rounds both took part in; None when there is none."""
    shared = samples.keys() & base.keys()
    return median(getattr(samples[n], field) / getattr(base[n], field) for n in shared) if shared else None


def share_ratio(samples, base, alone):
    """The ratio of what two servers add to the application alone, from the medians: a round's difference is too small to
    divide by. None where that cannot be told."""
    if not alone:
        return None
    floor = middle(alone, "cpu")
    added, base_added = middle(samples, "cpu") - floor, middle(base, "cpu") - floor
    return added / base_added if base_added > 0 else None


def difference(samples, base, field="cpu"):
    shared = samples.keys() & base.keys()
    return median(getattr(samples[n], field) - getattr(base[n], field) for n in shared) if shared else None


# -- one workload -------------------------------------------------------------------------------------------------------


def workload_table(workload, results, failures):
    if isinstance(workload, Scenario):
        return scenario_report.table(workload, results, failures)
    lines = [f"### {workload.title} (`{workload.name}`)", ""]
    lines += memory_rows(workload, results) if workload.kind == "pss" else time_rows(workload, results)
    lines += [""] + [f"- {label(row)}: {why}" for row, why in failures.items()] + remarks(workload, results)
    return "\n".join(lines).rstrip() + "\n"


def bases(workload, results):
    """The rows the others are compared with, as far as they were measured."""
    wanted = ("alone", "floor", "bjoern", "uwsgi", "gunicorn-sync")
    return [row for row in wanted if row in results and row in workload.rows]


def time_rows(workload, results):
    names = bases(workload, results)
    head = ["server", "user", "sys", "**CPU µs/req**", "spread", "req/s", "p50", "p99", "p99.9", "CPU s/s"]
    head += [f"÷ {'alone' if name == 'alone' else label(name).split(' http-')[0]}" for name in names]
    lines = [table_line(head), table_line(["---"] + ["---:"] * (len(head) - 1))]
    for row in workload.rows:
        if row in results:
            lines.append(table_line(time_cells(row, results, names)))
    return lines


def time_cells(row, results, names):
    samples = results[row]
    totals = [sample.cpu for sample in samples.values()]
    cells = [label(row), number(middle(samples, "user")), number(middle(samples, "system"))]
    cells += [f"**{number(median(totals))}**", f"{number(min(totals))}–{number(max(totals))}"]
    cells += [number(middle(samples, "rps"))]
    cells += [duration(middle(samples, field)) for field in ("p50", "p99", "p999")]
    cells += [f"{median(s.cpu * s.rps / 1e6 for s in samples.values()):.2f}"]
    return cells + [f"{ratio(samples, results[name]):.2f}" for name in names]


def memory_rows(workload, results):
    lines = [table_line(["server", "PSS, MiB", "÷ gunicorn sync"]), table_line(["---", "---:", "---:"])]
    base = results.get("gunicorn-sync", {})
    for row in workload.rows:
        if row in results:
            share = ratio(results[row], base, "pss")
            size = middle(results[row], "pss") / 2**20
            lines.append(table_line([label(row), f"{size:.1f}", "" if share is None else f"{share:.2f}"]))
    return lines


def remarks(workload, results):
    """What a reader has to know of the rows before believing them."""
    said = []
    closing = [label(row) for row in results if row in PEERS and not PEERS[row].keeps]
    if closing and not (workload.close or workload.front or workload.kind == "pss"):
        said.append(f"- A connection per request all the same, as they keep none: {', '.join(closing)}.")
    said += noise_remarks([sample.foreign for samples in results.values() for sample in samples.values()])
    for row, samples in results.items():
        errors = sum(sample.errors for sample in samples.values())
        if errors:
            said.append(f"- {label(row)}: the client saw {errors} errors.")
    return said


# -- the figures to be reached ------------------------------------------------------------------------------------------


def targets_table(workloads, results):
    head = ["work", "to reach", "measured", ""]
    lines = [table_line(head), table_line(["---"] * len(head))]
    for workload in workloads:
        rows = results.get(workload.name, {})
        if isinstance(workload, Scenario):
            lines += scenario_report.goal_lines(workload, rows)
        else:
            lines += [target_line(workload, target, rows) for target in workload.targets]
    return "\n".join(lines) + "\n"


def target_line(workload, target, rows):
    value = reached(workload, target, rows)
    return table_line([workload.title, wish(target), shown(target, value), verdict(target, value)])


def reached(workload, target, rows):
    own, base = rows.get(target.row), baseline(workload, target, rows)
    if not own or not base:
        return None
    if target.own_share:
        return share_ratio(own, base, rows.get("alone", {}))
    return difference(own, base, target.value) if target.difference else ratio(own, base, target.value)


def baseline(workload, target, rows):
    if target.baseline != BEST:
        return rows.get(target.baseline)
    peers = [rows[row] for row in workload.rows if row in rows and row not in ("floor", "rgunicorn")]
    return min(peers, key=lambda samples: middle(samples, target.value), default=None)


def wish(target):
    sign = "≥" if target.at_least else "≤"
    if target.difference:
        return f"{sign} +{target.limit:g} µs"
    limit = f"1/{1 / target.limit:.0f}" if target.limit < 0.1 else f"{target.limit:.2f}"
    what = {"cpu": "CPU", "rps": "req/s", "pss": "PSS"}[target.value]
    base = BEST if target.baseline == BEST else label(target.baseline)
    what = f"added {what}" if target.own_share else what
    return f"{what} {sign} {limit} × {base}"


def shown(target, value):
    if value is None:
        return "–"
    if target.difference:
        return f"{value:+.2f} µs"
    return f"1/{1 / value:.1f}" if target.limit < 0.1 else f"{value:.2f}"


def verdict(target, value):
    if value is None:
        return "not measured"
    met = value >= target.limit if target.at_least else value <= target.limit
    return "met" if met else "**not met**"


# -- the whole ----------------------------------------------------------------------------------------------------------


def document(facts, plan, workloads, results, failures, calls):
    parts = ["## Result\n", "\n".join(f"- {name}: {value}" for name, value in facts) + f"\n- {plan}\n"]
    if any(isinstance(workload, Scenario) or workload.targets for workload in workloads):
        parts.append(targets_table(workloads, results))
    for workload in workloads:
        rows, failed = results.get(workload.name, {}), failures.get(workload.name, {})
        if rows or failed:
            parts.append(workload_table(workload, rows, failed))
        if calls.get(workload.name):
            parts.append(syscalls.table(calls[workload.name], label))
    return "\n".join(parts)
