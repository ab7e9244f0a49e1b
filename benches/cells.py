"""How figures are written in the tables."""

from statistics import median

NOISE = 0.05


def table_line(cells):
    return "| " + " | ".join(str(cell) for cell in cells) + " |"


def number(value):
    if value >= 1000:
        return whole(value)
    return f"{value:.0f}" if value >= 200 else f"{value:.1f}"


def whole(value):
    return f"{value:,.0f}".replace(",", " ")


def duration(microseconds):
    return f"{microseconds / 1000:.2f} ms" if microseconds >= 1000 else f"{microseconds:.0f} µs"


def milliseconds(value):
    return whole(value) + " ms" if value >= 100 else f"{value:.2f} ms"


def noise_remarks(shares):
    """`shares` of the machine that others used, one of each measurement."""
    if shares and median(shares) > NOISE:
        return [f"- Others used {median(shares):.0%} of the machine meanwhile (worst round {max(shares):.0%})."]
    return []
