"""Tables and sections as Markdown."""

from pdfast.evaluation.report.html import Section, Table


def lines(table: Table) -> str:
    """Return a table as Markdown."""
    header, rows = table
    escaped = [[cell.replace("|", "\\|").replace("<", "&lt;") for cell in row] for row in rows]
    all_rows = [header, ["--:"] * len(header), *escaped]
    return "\n".join(f"| {' | '.join(row)} |" for row in all_rows)


def section_lines(section: Section) -> list[str]:
    """Return the paragraphs of a section as Markdown."""
    parts = [f"## {section.heading}"]
    if section.table:
        parts.append(lines(section.table))
    if section.picture:
        parts.append(f"![{section.picture.alt}]({section.picture.file})")
    return [*parts, section.note] if section.note else parts
