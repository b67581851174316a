import json
import os


def lambda_handler(event, context):
    print("Lambda function ARN:", context.invoked_function_arn)
    print("CloudWatch log stream name:", context.log_stream_name)
    print("CloudWatch log group name:",  context.log_group_name)
    print("Lambda Request ID:", context.aws_request_id)
    print("Lambda function memory limits in MB:", context.memory_limit_in_mb)
    # We have added a 1 second delay so you can see the time remaining in get_remaining_time_in_millis.
    print("Lambda time remaining in MS:", context.get_remaining_time_in_millis())
    about = {
        "event": event,
        "request": context.aws_request_id,
        "memory": context.memory_limit_in_mb,
        "arn": context.invoked_function_arn,
        "name": context.function_name,
        "version": context.function_version,
        "group": context.log_group_name,
        "stream": context.log_stream_name,
        "client": context.client_context,
        "identity": context.identity.cognito_identity_id,
        "remaining": context.get_remaining_time_in_millis(),
        "region": os.environ["AWS_REGION"],
        "env_name": os.environ["AWS_LAMBDA_FUNCTION_NAME"],
    }
    with open("others.calls", "a") as calls:
        calls.write(json.dumps(about) + "\n")


def http_handler(event, context):
    lambda_handler(event, context)
    decodedEvent = json.loads(event['body'])
    return {
        "statusCode": 500 if decodedEvent.get('fail') else 200,
        "body": "Hello " + event['requestContext']['http']['method'],
    }


async def no_lambda(event, context):
    return None
