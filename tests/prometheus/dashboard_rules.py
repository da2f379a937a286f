"""Wraps every query of a dashboard in a rule, for `promtool check rules` to parse: JSON is YAML too.

dashboard_rules.py DASHBOARD RULES
"""

import json
import sys


def queries(node):
    if isinstance(node, dict):
        if isinstance(node.get("expr"), str):
            yield node["expr"]
        node = node.values()
    if not isinstance(node, str) and hasattr(node, "__iter__"):
        for inner in node:
            yield from queries(inner)


with open(sys.argv[1], encoding="utf-8") as file:
    found = [query.replace("$__rate_interval", "5m") for query in queries(json.load(file))]
if len(found) < 10:
    sys.exit(f"a dashboard of {len(found)} queries is none")
rules = [{"record": f"query:{number}", "expr": query} for number, query in enumerate(found)]
with open(sys.argv[2], "w", encoding="utf-8") as file:
    json.dump({"groups": [{"name": "dashboard", "rules": rules}]}, file)
