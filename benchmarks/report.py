"""The suite's JSON as Markdown tables, as a plot, and as the README's section.

    pytest benchmarks --benchmark-only --benchmark-json FILE
    python -m benchmarks.report FILE... [--plot OUT.svg] [--readme README.md]

A row is one comparison: how many times faster ours is than each rival (the median of the rounds'
ratios and its quartiles), then our own time. Of several files a comparison's last counts. A subject
of many rows is one line in the README: the least, median and greatest ratio.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Iterable
from pathlib import Path
from typing import Any

# Other results say where they come from by these.
from benchmarks.origin import RESULTS, write
from benchmarks.origin import described as origin
from benchmarks.side_by_side import OURS

__all__ = ["RESULTS", "main", "origin", "write"]

BEGIN, END = "<!-- benchmarks: begin -->", "<!-- benchmarks: end -->"
# The README's order; what is not named comes after.
SUBJECTS = (
    "DDPMPipeline",
    "Whole chain",
    "Bits per dimension",
    "U-Net call",
    "Scheduler step",
    "Checkpoint load",
    "Time to first image",
    "Ops",
    "Layers",
)
# A subject with more rows is summarised.
MANY = 12
TICKS = (0.25, 0.5, 1, 2, 3, 5, 10)
UNITS = ((1e3, "s", 1e-3), (1.0, "ms", 1.0), (0.0, "µs", 1e3))
Row = dict[str, Any]


def read(files: Iterable[Path]) -> tuple[list[Row], list[dict[str, Any]]]:
    """The rows of all files in the order of SUBJECTS, and what each file says of its machine.

    Raises ValueError for a file that is not the suite's.
    """
    rows: dict[tuple[str, str], Row] = {}
    places = []
    for file in files:
        found = json.loads(file.read_text())
        if "origin" not in found:
            raise ValueError(f"{file}: expected the JSON of `pytest benchmarks`, got another")
        places.append(found["origin"] | {"machine": found["machine_info"]})
        for one in found["benchmarks"]:
            row = one["extra_info"]
            rows[row["subject"], row["case"]] = row
    return sorted(rows.values(), key=lambda row: _place(row["subject"])), places


def tables(rows: list[Row]) -> str:
    """One table a subject, all rows."""
    return "\n\n".join(_table(name, of) for name, of in _by_subject(rows).items())


def section(rows: list[Row], places: list[dict[str, Any]]) -> str:
    """What stands in the README: the tables, long ones in a line, and where they come from."""
    subjects = _by_subject(rows)
    parts = [_table(name, of) for name, of in subjects.items() if len(of) <= MANY]
    parts += [_summary(name, of) for name, of in subjects.items() if len(of) > MANY]
    return "\n\n".join([*parts, *dict.fromkeys(_source(place) for place in places)])


def into(readme: str, text: str) -> str:
    """The README with ``text`` between the markers.

    Raises ValueError without them.
    """
    before, begin, rest = readme.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"expected {BEGIN} and {END} in the README")
    return f"{before}{BEGIN}\n{text}\n{END}{after}"


def plot(rows: list[Row], file: Path) -> None:
    """Bars of every row's ratios with their quartiles, on a logarithmic axis."""
    import matplotlib

    matplotlib.use("Agg")
    matplotlib.rcParams["svg.hashsalt"] = "fastddpm"
    from matplotlib import pyplot

    bars = [
        (f"{row['subject']}, {row['case']}: {rival}", ratio)
        for row in reversed(rows)
        for rival, ratio in row["times_faster_than"].items()
    ]
    figure, axes = pyplot.subplots(figsize=(9, 1 + 0.22 * len(bars)), layout="constrained")
    medians = [ratio["median"] for _, ratio in bars]
    spread = [[r["median"] - r["low"] for _, r in bars], [r["high"] - r["median"] for _, r in bars]]
    axes.barh([name for name, _ in bars], medians, xerr=spread, color="#4878a8", ecolor="#333333")
    axes.axvline(1, color="black", linewidth=0.8)
    axes.set_xscale("log")
    axes.set_xticks(TICKS, [f"{tick:g}" for tick in TICKS])
    axes.minorticks_off()
    axes.set_xlabel("times faster: median and quartiles of the rounds")
    axes.margins(y=0.01)
    axes.tick_params(labelsize=7)
    figure.savefig(file, metadata={"Date": None} if file.suffix == ".svg" else None)
    pyplot.close(figure)


def _place(subject: str) -> int:
    return SUBJECTS.index(subject) if subject in SUBJECTS else len(SUBJECTS)


def _by_subject(rows: list[Row]) -> dict[str, list[Row]]:
    found: dict[str, list[Row]] = {}
    for row in rows:
        found.setdefault(row["subject"], []).append(row)
    return found


def _table(subject: str, rows: list[Row]) -> str:
    rivals = list(dict.fromkeys(name for row in rows for name in row["times_faster_than"]))
    heads = [subject, *(f"× {name}" for name in rivals), OURS, "batch", "threads"]
    lines = [_line(heads), _line(["---", *["---:"] * (len(heads) - 1)])]
    for row in rows:
        ratios = [_ratio(row["times_faster_than"].get(name)) for name in rivals]
        own = _time(row["milliseconds"][OURS]["median"])
        lines.append(_line([row["case"], *ratios, own, str(row["batch"]), str(row["threads"])]))
    return "\n".join(lines)


def _summary(subject: str, rows: list[Row]) -> str:
    rivals = dict.fromkeys(name for row in rows for name in row["times_faster_than"])
    parts = []
    for rival in rivals:
        found = {
            row["case"]: row["times_faster_than"][rival]["median"]
            for row in rows
            if rival in row["times_faster_than"]
        }
        least, most = min(found, key=found.__getitem__), max(found, key=found.__getitem__)
        middle = statistics.median(found.values())
        parts.append(
            f"{middle:.1f} times faster than {rival} in the median of {len(found)}, from "
            f"{found[least]:.1f} ({least}) to {found[most]:.1f} ({most})"
        )
    return f"{subject}: {'; '.join(parts)}."


def _source(place: dict[str, Any]) -> str:
    machine, versions = place["machine"], place["versions"]
    packages = ", ".join(f"{name} {found}" for name, found in versions.items() if found)
    return (
        f"{machine['processor']}, {machine['cores']} cores, {machine['isa']}; {packages}; commit "
        f"{place['commit'][:10]}{' with changes' if place['uncommitted_changes'] else ''}; load "
        f"average before: {machine['load_average_before']:.1f}."
    )


def _ratio(found: dict[str, Any] | None) -> str:
    if found is None:
        return ""
    return f"**{found['median']:.2f}** ({found['low']:.2f} to {found['high']:.2f})"


def _time(milliseconds: float) -> str:
    unit, factor = next((name, by) for least, name, by in UNITS if milliseconds >= least)
    return f"{milliseconds * factor:.3g} {unit}"


def _line(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


def main(arguments: list[str] | None = None) -> int:
    """Prints the tables; writes what it is asked for."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.report", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("files", nargs="+", type=Path, help="JSON of `pytest benchmarks`")
    parser.add_argument("--plot", type=Path, help="SVG or PNG to write")
    parser.add_argument("--readme", type=Path, help="file whose marked section is written anew")
    given = parser.parse_args(arguments)
    try:
        rows, places = read(given.files)
        print(tables(rows))
        if given.plot is not None:
            plot(rows, given.plot)
        if given.readme is not None:
            readme = into(given.readme.read_text(), section(rows, places))
            given.readme.write_text(readme)
    except (ValueError, OSError) as error:
        parser.exit(1, f"{error}\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
