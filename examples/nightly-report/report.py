from pathlib import Path


def make(event):
    """The name follows from the nominal time, so a repeated call writes the same file again."""
    day = event.data["nominal"][:10]
    text = f"{event.data['payload']['report']} of {day}; nights skipped before: {event.data['skipped']}\n"
    Path(f"report-{day}.txt").write_text(text)
    print("wrote the report of", day)
