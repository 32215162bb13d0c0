"""Code for OpenAI's Batch API reads batchd's results: only where the text comes from is another place.

python examples/openai_reader.py ~/batches/outbox/jan
"""

import json
import sys
from pathlib import Path

from openai.types import Batch
from openai.types.chat import ChatCompletion

outbox, name = Path(sys.argv[1]).expanduser().parent, Path(sys.argv[1]).name

batch = Batch.model_validate_json(
    (outbox / name / "status.json").read_text()
)  # client.batches.retrieve(batch_id)
if batch.status != "completed" or batch.output_file_id is None:
    sys.exit(f"the batch is {batch.status}: {batch.errors or batch.request_counts}")
text = (outbox / batch.output_file_id).read_text()  # client.files.content(batch.output_file_id).text

for line in text.splitlines():
    result = json.loads(line)
    if result["error"] is None and result["response"]["status_code"] == 200:
        completion = ChatCompletion.model_validate(result["response"]["body"])
        print(result["custom_id"], completion.choices[0].message.content, sep="\t")
