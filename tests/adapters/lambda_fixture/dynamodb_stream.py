import json


def handler(event, context):
    records = event.get("Records")
    curRecordSequenceNumber = ""

    for record in records:
        try:
            # Process your record
            curRecordSequenceNumber = record["dynamodb"]["SequenceNumber"]
            process(record)
        except Exception as e:
            # Return failed record's sequence number
            return {"batchItemFailures":[{"itemIdentifier": curRecordSequenceNumber}]}

    return {"batchItemFailures":[]}


def process(record):
    if record["dynamodb"].get("NewImage", {}).get("name") == {"S": "poison"}:
        raise ValueError("poison")
    with open("rows.calls", "a") as calls:
        calls.write(json.dumps(record) + "\n")


def log_events(event, context):
    print('Received event:', event)
    for record in event['Records']:
        log_dynamodb_record(record)
    return 'Successfully processed {} records.'.format(len(event['Records']))


def log_dynamodb_record(record):
    print(record['eventID'])
    print(record['eventName'])
    print(f"DynamoDB Record: {json.dumps(record['dynamodb'])}")


def answers(event, context):
    with open("answer.json") as answer:
        return json.load(answer)


def raises(event, context):
    raise RuntimeError("all of them")
