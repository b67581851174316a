import json
import logging
import urllib.parse

logger = logging.getLogger()
logger.setLevel(logging.INFO)

print('Loading function')


def lambda_handler(event, context):
    #print("Received event: " + json.dumps(event, indent=2))

    # Get the object from the event and show its content type
    bucket = event['Records'][0]['s3']['bucket']['name']
    key = urllib.parse.unquote_plus(event['Records'][0]['s3']['object']['key'], encoding='utf-8')
    try:
        with open(bucket + '.calls', 'a') as calls:
            calls.write(json.dumps({'key': key, 'event': event}) + '\n')
        logger.info("CONTENT TYPE: %s", key)
        print("Remaining:", context.get_remaining_time_in_millis() > 0)
        return 'image/jpeg'
    except Exception as e:
        print(e)
        print('Error getting object {} from bucket {}. Make sure they exist and your bucket is in the same region as this function.'.format(key, bucket))
        raise e
