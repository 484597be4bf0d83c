"""Run by test_older.py, where tinker 0.25.0 is the one that is found.  Prints what it saw as JSON."""

import io
import json
import sys
import tarfile
import urllib.request

import tinker
from sdk import sampling, text, tokens_of, train

base_url, key, model = sys.argv[1:]
service = tinker.ServiceClient(base_url=base_url, api_key=key)
client = service.create_lora_training_client(base_model=model, rank=8, seed=7)
before = [b for b, _ in train(client, 2)]
path = client.save_state("half").result().path
expected = [b for b, _ in train(client, 2, first=2)]
copy = service.create_training_client_from_state_with_optimizer(path)
resumed = [b for b, _ in train(copy, 2, first=2)]
sampler = client.save_weights_and_get_sampling_client()
sequence = sampler.sample(text(tokens_of(1, 5)), 1, sampling(max_tokens=6, stop=[])).result().sequences[0]

rest = service.create_rest_client()
answer = rest.get_checkpoint_archive_url_from_tinker_path(path).result()
with urllib.request.urlopen(answer.url, timeout=60) as response:
    archive = tarfile.open(fileobj=io.BytesIO(response.read()), mode="r:")
print(
    json.dumps(
        {
            "version": tinker.__version__,
            "before": before,
            "expected": expected,
            "resumed": resumed,
            "sampled": len(sequence.tokens),
            "archive": sorted(archive.getnames()),
            "rank": json.load(archive.extractfile("adapter_config.json"))["r"],
        },
        default=lambda b: b.hex(),
    )
)
