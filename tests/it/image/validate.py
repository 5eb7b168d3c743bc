"""Validates a CycloneDX 1.6 file against its schema; prints what is wrong and exits with 1 where something is."""

import sys
from pathlib import Path

from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator

fault = JsonStrictValidator(SchemaVersion.V1_6).validate_str(Path(sys.argv[1]).read_text())
if fault is not None:
    print(fault)
    sys.exit(1)
