"""What retryscope knows of AWS's services, out of botocore's models:
aws_models.py [--check] FILE.

Writes FILE (gzip of a text), or with --check tells whether it is what this
botocore gives. Lines, in order:

    # ...                       where it comes from
    T PREFIX SERVICE            X-Amz-Target's prefix, and the signing name
    A ENDPOINT SERVICE          an endpoint's label that is not the signing name
    S SERVICE                   routes of this signing name follow
    METHOD TEMPLATE[?KEYS] [HEADER...] OPERATION

In a template {} is a segment and {+} all that is left; KEYS are query keys
that have to be there, with their value where only one will do; HEADERs have
to be there too, and are given only where nothing else tells operations apart.
"""
import collections
import gzip
import io
import sys

import botocore
import botocore.loaders
import botocore.model

NOTICE = f"""\
# Derived from the service models of botocore {botocore.__version__}, and changed: only what names a request is left.
# botocore: Copyright 2012-2022 Amazon.com, Inc. or its affiliates. All Rights Reserved.
# Licensed under the Apache License, Version 2.0. Made by `cargo xtask aws-models`; do not edit.
"""
# Two services under one signing name that their hosts and paths tell apart.
OWN_NAME = {"s3control": "s3control"}
# S3's routes are in the code: its operations share paths as no others do.
SKIPPED = {"s3"}


def template(uri):
    path, _, query = uri.partition("?")
    parts = []
    for part in path.strip("/").split("/"):
        if part.endswith("+}"):
            parts.append("{+}")
        elif "{" in part:
            parts.append("{}")
        else:
            parts.append(part)
    keys = [pair for pair in query.split("&") if pair]
    return "/" + "/".join(parts), [pair.removesuffix("=") for pair in keys]


def members(shape, location):
    """Names of required members of an input at this place."""
    if shape is None:
        return []
    found = []
    for name in shape.required_members:
        member = shape.members[name]
        if member.serialization.get("location") == location:
            found.append(member.serialization.get("name", name))
    return sorted(found)


def text():
    loader = botocore.loaders.Loader()
    targets, endpoints, routes = {}, {}, collections.defaultdict(list)
    for service in loader.list_available_services("service-2"):
        if service in SKIPPED:
            continue
        model = botocore.model.ServiceModel(loader.load_service_model(service, "service-2"), service)
        metadata = model.metadata
        signing = OWN_NAME.get(service, metadata.get("signingName", metadata["endpointPrefix"])).lower()
        if prefix := metadata.get("targetPrefix"):
            targets.setdefault(prefix, signing)
        label = metadata["endpointPrefix"].lower()
        if "." not in label and label != signing:
            endpoints.setdefault(label, signing)
        protocols = metadata.get("protocols", [metadata["protocol"]])
        if not any(protocol.startswith("rest-") for protocol in [metadata["protocol"], *protocols]):
            continue
        for name in model.operation_names:
            operation = model.operation_model(name)
            path, keys = template(operation.http["requestUri"])
            known = {key.partition("=")[0] for key in keys}
            keys += [key for key in members(operation.input_shape, "querystring") if key not in known]
            headers = [header.lower() for header in members(operation.input_shape, "header")]
            routes[signing].append([operation.http["method"], path, sorted(keys), headers, name])
    lines = [NOTICE.rstrip("\n")]
    lines += [f"T {prefix} {service}" for prefix, service in sorted(targets.items())]
    lines += [f"A {label} {service}" for label, service in sorted(endpoints.items())]
    for service, rows in sorted(routes.items()):
        lines.append(f"S {service}")
        alike = collections.Counter((method, path, *keys) for method, path, keys, _, _ in rows)
        seen = set()
        for method, path, keys, headers, name in sorted(rows, key=lambda row: (row[0], row[1], row[2], row[4])):
            query = "?" + "&".join(keys) if keys else ""
            told = headers if alike[(method, path, *keys)] > 1 else []
            line = " ".join([method, path + query, *told, name])
            if line not in seen:
                lines.append(line)
            seen.add(line)
    return "\n".join(lines) + "\n"


def main():
    check = sys.argv[1] == "--check"
    file, made = sys.argv[-1], text().encode()
    if check:
        with open(file, "rb") as kept:
            same = gzip.decompress(kept.read()) == made
        if not same:
            sys.exit(f"{file} is not what botocore {botocore.__version__} gives; run `cargo xtask aws-models`")
        return
    packed = io.BytesIO()
    with gzip.GzipFile("", "wb", 9, packed, mtime=0) as stream:
        stream.write(made)
    with open(file, "wb") as kept:
        kept.write(packed.getvalue())
    print(f"{file}: {len(made):,} bytes, {len(packed.getvalue()):,} packed")


main()
