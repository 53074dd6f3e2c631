"""Events as other people's systems write them, read with nothing but a schema.

Each sample is made up, in the shape that the system documents: the names, the nesting, the types and the way
of writing times are theirs, shortened to what tells. What does not run is in `OUT_OF_REACH`, with the reason.
"""

from __future__ import annotations

import itertools
import json
import math
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from featurestore.columns import TextColumn
from featurestore.files import read_events
from featurestore.schema import compile_schema

SCHEMA = """\
version: 1
name: s
events:
  e:
    time: {time}
    fields:
{fields}
views: {{v: {{event: e, key: who, windows: [1h], features: [count]}}}}
"""


@dataclass(frozen=True)
class Shape:
    file: str  # its name says the format
    content: Any  # objects of JSON lines, or the text of a CSV, or an Arrow table
    time: str  # of the schema
    fields: str  # a line each
    ms: list[int]
    who: list[str | None]
    number: list[float | None] | None = None  # of a field `n`


MAY = 1714557600000  # 2024-05-01T10:00:00Z

SHAPES = {
    "AWS CloudTrail": Shape(
        "a.jsonl",
        [
            {
                "eventVersion": "1.08",
                "userIdentity": {
                    "type": "IAMUser",
                    "userName": "alice",
                    "sessionContext": {"attributes": {}},
                },
                "eventTime": "2024-05-01T10:00:00Z",
                "eventName": "ConsoleLogin",
                "sourceIPAddress": "10.0.0.1",
                "responseElements": {"ConsoleLogin": "Failure"},
                "readOnly": False,
            },
            {
                "userIdentity": {"type": "Root"},
                "eventTime": "2024-05-01T10:00:01Z",
                "sourceIPAddress": "10.0.0.2",
                "readOnly": True,
            },
        ],
        "{field: at, from: eventTime}",
        "{who: {kind: key, from: userIdentity.userName}, ip: {kind: key, from: sourceIPAddress},"
        " n: {kind: bool, from: readOnly}, result: {kind: string, from: responseElements.ConsoleLogin}}",
        [MAY, MAY + 1000],
        ["alice", None],
        [0, 1],
    ),
    "Zeek conn.log (JSON)": Shape(
        "conn.jsonl",
        [
            {
                "ts": 1714557600.123456,
                "uid": "C1",
                "id.orig_h": "10.0.0.1",
                "id.resp_p": 443,
                "orig_bytes": 517,
            },
            {"ts": 1714557601.5, "uid": "C2", "id.orig_h": "10.0.0.2", "id.resp_p": 53},
        ],
        "{field: ts, unit: s}",
        "{who: {kind: key, from: id.orig_h}, port: {kind: key, from: id.resp_p},"
        " n: {kind: number, from: orig_bytes}}",
        [MAY + 123, MAY + 1500],
        ["10.0.0.1", "10.0.0.2"],
        [517, None],
    ),
    "Okta system log": Shape(
        "okta.jsonl",
        [
            {
                "uuid": "u1",
                "published": "2024-05-01T10:00:00.250Z",
                "eventType": "user.session.start",
                "actor": {"id": "00u1", "alternateId": "a@example.com"},
                "client": {"ipAddress": "10.0.0.1", "userAgent": {"os": "Linux"}},
                "outcome": {"result": "FAILURE"},
                "target": [{"id": "x"}],
            }
        ],
        "{field: at, from: published}",
        "{who: {kind: key, from: actor.alternateId}, ip: {kind: key, from: client.ipAddress},"
        " outcome: {kind: string, from: outcome.result}}",
        [MAY + 250],
        ["a@example.com"],
    ),
    "BigQuery export (JSON)": Shape(
        "bq.json",
        [{"created": "2024-05-01 10:00:00 UTC", "user_id": "42", "amount": "19.99", "tags": ["a"]}],
        '{field: created, format: "%Y-%m-%d %H:%M:%S UTC"}',
        "{who: {kind: key, from: user_id}, n: {kind: number, from: amount}}",
        [MAY],
        ["42"],
        [19.99],
    ),
    "nginx access log (JSON)": Shape(
        "access.jsonl",
        [
            {
                "time_local": "01/May/2024:12:00:00 +0200",
                "remote_addr": "10.0.0.1",
                "request": "GET / HTTP/1.1",
                "status": "404",
                "http_user_agent": "",
            }
        ],
        '{field: at, from: time_local, format: "%d/%b/%Y:%H:%M:%S %z"}',
        "{who: {kind: key, from: remote_addr}, n: {kind: number, from: status},"
        " agent: {kind: string, from: http_user_agent}}",
        [MAY],
        ["10.0.0.1"],
        [404],
    ),
    "Elastic Common Schema": Shape(
        "ecs.jsonl",
        [
            {
                "@timestamp": "2024-05-01T10:00:00.000Z",
                "source": {"ip": "10.0.0.1", "geo": {"country_iso_code": "FR"}},
                "event": {"duration": 1500},
            },
            {
                "@timestamp": "2024-05-01T10:00:02.000Z",
                "source.ip": "10.0.0.2",
                "event": {},
            },  # as some ship it
        ],
        '{field: at, from: "@timestamp"}',
        "{who: {kind: key, from: source.ip}, n: {kind: number, from: event.duration},"
        " country: {kind: string, from: source.geo.country_iso_code}}",
        [MAY, MAY + 2000],
        ["10.0.0.1", "10.0.0.2"],
        [1500, None],
    ),
    "Segment track": Shape(
        "segment.jsonl",
        [
            {
                "type": "track",
                "event": "Order Completed",
                "userId": None,
                "anonymousId": "anon-1",
                "context": {"ip": "10.0.0.1"},
                "properties": {"revenue": 25.5},
                "timestamp": "2024-05-01T10:00:00.000Z",
            }
        ],
        "timestamp",
        "{who: {kind: key, from: anonymousId}, user: {kind: key, from: userId},"
        " n: {kind: number, from: properties.revenue}}",
        [MAY],
        ["anon-1"],
        [25.5],
    ),
    "Stripe events": Shape(
        "stripe.jsonl",
        [
            {
                "id": "evt_1",
                "object": "event",
                "created": 1714557600,
                "type": "charge.failed",
                "data": {
                    "object": {
                        "amount": 2000,
                        "customer": "cus_1",
                        "payment_method_details": {"card": {"fingerprint": "fp1"}},
                    }
                },
            }
        ],
        "{field: created, unit: s}",
        "{who: {kind: key, from: data.object.customer}, n: {kind: number, from: data.object.amount},"
        " card: {kind: key, from: data.object.payment_method_details.card.fingerprint}}",
        [MAY],
        ["cus_1"],
        [2000],
    ),
    "GitHub events": Shape(
        "github.jsonl",
        [
            {
                "id": "1",
                "type": "PushEvent",
                "actor": {"id": 583231, "login": "octocat"},
                "repo": {"id": 1296269},
                "payload": {"size": 3, "commits": [{"sha": "x"}]},
                "created_at": "2024-05-01T10:00:00Z",
            }
        ],
        "{field: at, from: created_at}",
        "{who: {kind: key, from: actor.id}, repo: {kind: key, from: repo.id},"
        " n: {kind: number, from: payload.size}}",
        [MAY],
        ["583231"],
        [3],
    ),
    "Cloudflare HTTP logs (ns)": Shape(
        "cf.jsonl",
        [{"EdgeStartTimestamp": 1714557600123000000, "ClientIP": "10.0.0.1", "EdgeResponseStatus": 403}],
        "{field: at, from: EdgeStartTimestamp, unit: ns}",
        "{who: {kind: key, from: ClientIP}, n: {kind: number, from: EdgeResponseStatus}}",
        [MAY + 123],
        ["10.0.0.1"],
        [403],
    ),
    "Auth0 tenant log": Shape(
        "auth0.jsonl",
        [
            {
                "log_id": "9",
                "data": {
                    "date": "2024-05-01T10:00:00.001Z",
                    "type": "fp",
                    "ip": "10.0.0.1",
                    "user_id": "auth0|1",
                },
            }
        ],
        "{field: at, from: data.date}",
        "{who: {kind: key, from: data.user_id}, ip: {kind: key, from: data.ip},"
        " type: {kind: string, from: data.type}}",
        [MAY + 1],
        ["auth0|1"],
    ),
    "Keycloak events": Shape(
        "keycloak.jsonl",
        [
            {
                "time": 1714557600000,
                "type": "LOGIN_ERROR",
                "realmId": "r",
                "userId": "u-1",
                "ipAddress": "10.0.0.1",
                "details": {"username": "alice"},
            }
        ],
        "{field: time, unit: ms}",
        "{who: {kind: key, from: details.username}, ip: {kind: key, from: ipAddress}}",
        [MAY],
        ["alice"],
    ),
    "Snowplow (JSON of the loader)": Shape(
        "snowplow.jsonl",
        [{"collector_tstamp": "2024-05-01 10:00:00.500", "user_ipaddress": "10.0.0.1", "tr_total": None}],
        "{field: at, from: collector_tstamp}",
        "{who: {kind: key, from: user_ipaddress}, n: {kind: number, from: tr_total}}",
        [MAY + 500],
        ["10.0.0.1"],
        [None],
    ),
    "Matomo visits (JSON)": Shape(
        "matomo.jsonl",
        [
            {
                "idVisit": "7",
                "visitorId": "abc",
                "serverTimestamp": 1714557600,
                "visitIp": "10.0.0.0",
                "actions": "5",
            }
        ],
        "{field: at, from: serverTimestamp, unit: s}",
        "{who: {kind: key, from: visitorId}, n: {kind: number, from: actions}}",
        [MAY],
        ["abc"],
        [5],
    ),
    "Shopify orders": Shape(
        "shopify.jsonl",
        [
            {
                "id": 450789469,
                "created_at": "2024-05-01T06:00:00-04:00",
                "total_price": "598.94",
                "customer": {"id": 207119551},
                "client_details": {"browser_ip": "10.0.0.1"},
                "line_items": [{"id": 1}],
            }
        ],
        "{field: at, from: created_at}",
        "{who: {kind: key, from: customer.id}, n: {kind: number, from: total_price},"
        " ip: {kind: key, from: client_details.browser_ip}}",
        [MAY],
        ["207119551"],
        [598.94],
    ),
    "PayPal webhooks": Shape(
        "paypal.jsonl",
        [
            {
                "id": "WH-1",
                "create_time": "2024-05-01T10:00:00Z",
                "event_type": "PAYMENT.CAPTURE.COMPLETED",
                "resource": {
                    "amount": {"value": "7.47", "currency_code": "USD"},
                    "payer": {"payer_id": "P1"},
                },
            }
        ],
        "{field: at, from: create_time}",
        "{who: {kind: key, from: resource.payer.payer_id}, n: {kind: number, from: resource.amount.value}}",
        [MAY],
        ["P1"],
        [7.47],
    ),
    "Plaid transactions": Shape(
        "plaid.jsonl",
        [
            {
                "account_id": "acc",
                "amount": 89.4,
                "date": "2024-05-01",
                "location": {"city": None},
                "pending": False,
            }
        ],
        "{field: at, from: date}",
        "{who: {kind: key, from: account_id}, n: {kind: number, from: amount}, pending: bool}",
        [MAY - 10 * 3_600_000],
        ["acc"],
        [89.4],
    ),
    "Mastodon statuses": Shape(
        "mastodon.jsonl",
        [
            {
                "id": "103254962155278888",
                "created_at": "2024-05-01T10:00:00.000Z",
                "account": {"acct": "a@example.org", "bot": False},
                "replies_count": 7,
                "reblog": None,
            }
        ],
        "{field: at, from: created_at}",
        "{who: {kind: key, from: account.acct}, n: {kind: number, from: replies_count},"
        " bot: {kind: bool, from: account.bot}}",
        [MAY],
        ["a@example.org"],
        [7],
    ),
    "Sentry events": Shape(
        "sentry.jsonl",
        [
            {
                "event_id": "fc6d",
                "timestamp": 1714557600.5,
                "level": "error",
                "user": {"ip_address": "10.0.0.1"},
                "tags": [["release", "1"]],
            }
        ],
        "{field: timestamp, unit: s}",
        "{who: {kind: key, from: user.ip_address}, level: string}",
        [MAY + 500],
        ["10.0.0.1"],
    ),
    "Slack audit (times as text)": Shape(
        "slack.jsonl",
        [{"ts": "1714557600.000216", "user": "U1", "channel": "C1", "text": "hi"}],
        "{field: ts, unit: s}",
        "{who: {kind: key, from: user}, channel: key}",
        [MAY],
        ["U1"],
    ),
    "Kubernetes audit (RFC 3339, micros)": Shape(
        "audit.jsonl",
        [
            {
                "kind": "Event",
                "requestReceivedTimestamp": "2024-05-01t10:00:00.123456z",
                "user": {"username": "system:admin", "groups": ["a"]},
                "sourceIPs": ["10.0.0.1"],
                "responseStatus": {"code": 403},
            }
        ],
        "{field: at, from: requestReceivedTimestamp}",
        "{who: {kind: key, from: user.username}, n: {kind: number, from: responseStatus.code}}",
        [MAY + 123],
        ["system:admin"],
        [403],
    ),
    "GA4 in BigQuery (Parquet)": Shape(
        "ga4.parquet",
        [
            {
                "event_timestamp": 1714557600000000,
                "user_pseudo_id": "p1",
                "geo": {"country": "FR", "city": "Lyon"},
                "ecommerce": {"purchase_revenue": 12.5},
            },
            {
                "event_timestamp": 1714557601000000,
                "user_pseudo_id": "p2",
                "geo": None,
                "ecommerce": {"purchase_revenue": None},
            },
        ],
        "{field: at, from: event_timestamp, unit: us}",
        "{who: {kind: key, from: user_pseudo_id}, n: {kind: number, from: ecommerce.purchase_revenue},"
        " country: {kind: string, from: geo.country}}",
        [MAY, MAY + 1000],
        ["p1", "p2"],
        [12.5, None],
    ),
    "pandas to_csv": Shape(
        "frame.csv",
        ",user_id,amount,when\n0,596.0,12.5,2024-05-01 10:00:00+00:00\n1,,,2024-05-01 10:00:01+00:00\n",
        "when",
        "{who: {kind: key, from: user_id}, n: {kind: number, from: amount}}",
        [MAY, MAY + 1000],
        ["596", None],
        [12.5, None],
    ),
    "US spreadsheet (CSV)": Shape(
        "sheet.csv",
        'Date,"Customer ID",Amount,Paid\n"5/1/2024 10:00 AM",00042,"19.99",TRUE\n',
        '{field: at, from: Date, format: "%m/%d/%Y %I:%M %p"}',
        '{who: {kind: key, from: "Customer ID"}, n: {kind: number, from: Amount},'
        " paid: {kind: bool, from: Paid}}",
        [MAY],
        ["00042"],
        [19.99],
    ),
}

# Not with a schema alone, and what to do.
OUT_OF_REACH = {
    "Spotify endsong.json": "one array: write an object a line (jq -c '.[]')",
    "CloudTrail as it lies in S3": "one object with an array of Records: jq -c '.Records[]'",
    "Zeek conn.log (TSV)": "its header is in #fields and #separator: zeek-cut, or write JSON",
    "AWS ALB": "separated by blanks, and without a header",
}


def content_of(shape: Shape) -> bytes:
    if isinstance(shape.content, str):
        return shape.content.encode()
    if shape.file.endswith(".parquet"):
        sink = pa.BufferOutputStream()
        pq.write_table(pa.Table.from_pylist(shape.content), sink)
        return sink.getvalue().to_pybytes()
    return "".join(json.dumps(one) + "\n" for one in shape.content).encode()


def texts_of(column: TextColumn) -> list[str | None]:
    ends, data = column.offsets.tolist(), column.data.tobytes()
    return [
        data[begin:end].decode() if column.present is None or column.present[i] else None
        for i, (begin, end) in enumerate(itertools.pairwise(ends))
    ]


@pytest.mark.parametrize("name", SHAPES)
def test_a_real_shape_runs_with_a_schema_alone(name, tmp_path):
    shape = SHAPES[name]
    path = tmp_path / shape.file
    path.write_bytes(content_of(shape))
    fields = "      " + shape.fields
    event = compile_schema(SCHEMA.format(time=shape.time, fields=fields)).events[0]
    (chunk,) = read_events(str(path), event)
    times, columns, outcomes = chunk.event_columns(event)
    assert outcomes.tolist() == [0] * len(shape.ms)
    assert times.tolist() == shape.ms
    found = dict(zip((field.name for field in event.fields), columns, strict=True))
    assert texts_of(found["who"]) == shape.who
    if shape.number is not None:
        assert [None if math.isnan(value) else value for value in found["n"].tolist()] == shape.number


def test_at_least_twenty_shapes_run():
    assert len(SHAPES) >= 20
    assert len(OUT_OF_REACH) == 4
