"""Snapshots of one replay shard on disk: written whole or not at all, and only what is new."""

from __future__ import annotations

import contextlib
import os
import re
import struct
import time
import zlib
from collections.abc import Iterable, Iterator, Sequence
from itertools import accumulate, islice
from pathlib import Path
from typing import NamedTuple

import numpy as np

from common.packing import PackingError, segment_fingerprint
from replay.manifest import Chunk, Manifest, Run, pack_manifest, unpack_manifest
from replay.state import ShardState, SnapshotError

_MANIFEST = re.compile(r"snapshot_(\d{10,})\.manifest")
_CHUNK = re.compile(r"chunk_(\d{10,})\.segments")

# Most runs of segments in a snapshot, and how many neighbours are then rolled into one: each byte
# is rewritten once in a while, and the number of files stays bounded.
_MOST_RUNS = 64
_ROLLED_RUNS = 17

# A chunk stays on the disk until its last segment is evicted, so none is larger than this, or than
# a sixteenth of all.
_CHUNK_BYTES = 32 << 20
_CHUNKS_OF_ALL = 16

# Bytes written at once: long enough that the interpreter lock is free most of the time, which
# joining needs, checksum and write do not.
_WRITE_BYTES = 1 << 20
