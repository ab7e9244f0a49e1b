"""Scenarios → Markdown: a table each, and their lines in the table of the figures to be reached."""

from cells import noise_remarks, table_line

LAG_MS = 1.0


def table(scenario, results, failures):
    lines = [f"### {scenario.title} (`{scenario.name}`)", ""]
    lines += figures(scenario, results) if results else []
    lines += [""] + [f"- {scenario.label(row)}: {why}" for row, why in failures.items()]
    return "\n".join(lines + remarks(scenario, results)).rstrip() + "\n"


def figures(scenario, results):
    lines = [table_line(["server", *[column.head for column in scenario.columns]])]
    lines.append(table_line(["---"] + ["---:"] * len(scenario.columns)))
    for row in scenario.rows:
        if row in results:
            cells = [column.show(results[row]) for column in scenario.columns]
            lines.append(table_line([scenario.label(row), *cells]))
    return lines


def remarks(scenario, results):
    samples = [sample for rounds in results.values() for sample in rounds.values()]
    said = noise_remarks([sample.foreign for sample in samples if sample.foreign is not None])
    lags = [sample.lag for sample in samples if getattr(sample, "lag", None) is not None]
    if lags and max(lags) > LAG_MS:
        text = f"- The generator itself was late, by {max(lags):.1f} ms in the p99 of the worst round; latencies contain that."
        said.append(text)
    return said


def goal_lines(scenario, results):
    return [table_line([scenario.title, goal.wish, *judged(goal, results)]) for goal in scenario.goals]


def judged(goal, results):
    value = goal.value(results)
    if value is None:
        return "–", "not measured"
    return goal.show(value), "met" if goal.met(value) else "**not met**"
