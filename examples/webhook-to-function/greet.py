def greet(event):
    body = event.data["body"]
    print("Hello,", body.get("name", "stranger") if isinstance(body, dict) else "stranger")
