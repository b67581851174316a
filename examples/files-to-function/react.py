def react(event):
    if event.type in {"headrace.filesystem.created", "headrace.filesystem.modified"} and event.data["kind"] == "file":
        with event.open("r", errors="replace") as file:
            print(event.subject, "has", sum(1 for _ in file), "lines")
    else:
        print(event.subject, "was", event.type.rpartition(".")[2])
