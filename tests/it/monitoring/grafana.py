"""Reads a dashboard as Grafana's own types do, and writes what they understood of it.

What comes back is what Grafana knows; a misspelt key or a value of the wrong kind is lost or an error.
"""

import json
import sys

from grafana_foundation_sdk.cog import plugins
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models.dashboard import Dashboard

plugins.register_default_plugins()
with open(sys.argv[1], encoding="utf-8") as file:
    dashboard = Dashboard.from_json(json.load(file))
print(JSONEncoder().encode(dashboard))
