"""Objects in every way that boto3 puts them: s3_uploads.py put|multipart [still].

`put` sends a body that cannot be rewound past its digest, so that the checksum follows in a trailer (aws-chunked), by
each algorithm; and reads each back, which boto3 verifies. `multipart` sends 3 parts at once and reads them back in
ranges. With `still` no time passes, so that two runs send the same, and nothing is read. Prints one JSON object.
"""
import datetime
import hashlib
import io
import json
import random
import sys

import boto3
from boto3.s3.transfer import TransferConfig
from botocore.config import Config


what = sys.argv[1]
still = len(sys.argv) > 2
if still:
    import uuid

    import botocore.auth

    numbers = iter(range(1000))
    uuid.uuid4 = lambda: uuid.UUID(int=next(numbers))
    botocore.auth.get_current_datetime = lambda *_, **__: datetime.datetime(2030, 1, 2, 3, 4, 5)
s3 = boto3.client(
    "s3",
    region_name="eu-west-1",
    aws_access_key_id="AKIDEXAMPLE",
    aws_secret_access_key="secret",
    config=Config(retries={"total_max_attempts": 1}, s3={"addressing_style": "path"}),
)
chance = random.Random(3)
found = {}


class Stream(io.RawIOBase):
    """Read in uneven pieces, as a pipe is."""

    def __init__(self, content):
        self.content, self.at = content, 0

    def readable(self):
        return True

    def seekable(self):
        return True

    def tell(self):
        return self.at

    def seek(self, offset, whence=0):
        self.at = offset + (0, self.at, len(self.content))[whence]
        return self.at

    def read(self, size=-1):
        end = len(self.content) if size is None or size < 0 else self.at + size
        piece = self.content[self.at : end]
        self.at += len(piece)
        return piece

    def __len__(self):
        return len(self.content)


def digest(content):
    return hashlib.sha256(content).hexdigest()


if what == "put":
    for algorithm in ("CRC32", "SHA1", "SHA256"):
        for size in (0, 1, 65_536, 1_500_001):
            content = chance.randbytes(size)
            s3.put_object(Bucket="bucket", Key=f"{algorithm}-{size}", Body=Stream(content), ChecksumAlgorithm=algorithm)
            if not still:
                answer = s3.get_object(Bucket="bucket", Key=f"{algorithm}-{size}", ChecksumMode="ENABLED")
                assert answer["Body"].read() == content, (algorithm, size)
                found[f"{algorithm}-{size}"] = [digest(content), answer.get(f"Checksum{algorithm}")]
else:
    content = chance.randbytes(3 * 8 * 1024 * 1024 + 12345)
    config = TransferConfig(multipart_threshold=1024, multipart_chunksize=8 * 1024 * 1024, max_concurrency=4)
    s3.upload_fileobj(io.BytesIO(content), "bucket", "large", Config=config)
    back = io.BytesIO()
    s3.download_fileobj("bucket", "large", back, Config=config)
    found = {"same": back.getvalue() == content, "length": len(content)}
    s3.delete_object(Bucket="bucket", Key="large")
print(json.dumps(found))
