import json
import logging

logger = logging.getLogger()
logger.setLevel(logging.INFO)


def lambda_handler(event, context):
    logger.info("request %s: %s", context.aws_request_id, event["detail-type"])
    with open("seen.jsonl", "a") as seen:
        seen.write(json.dumps(event["detail"]) + "\n")
    return {"statusCode": 200, "body": json.dumps("Hello from Lambda!")}
