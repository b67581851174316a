"""Patterns: a table of cases for each operator, mistakes with their places, and a naive matcher to agree with."""

import fnmatch
import ipaddress
import json
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.errors import SettingsError
from headrace.event import Event, source_seed
from headrace.journal.block import Block, Lines, seal
from headrace.pattern import Pattern, PatternError, Rows
from headrace.settings_file import load


def line(data: Any = None, **attributes: Any) -> bytes:
    known = {"id": "1", "source": "headrace:s", "type": "headrace.object.created"}
    return Event(data=data, **known | attributes).line()


def leaf(tests: Any, value: Any) -> bool:
    """Whether tests on `data.x` hold for a value there."""
    return Pattern({"data": {"x": tests}}).matches(line({"x": value}))


HUGE = 2**53
EMPTY: list[Any] = [[], None, 3, [3], {}]
CASES: list[tuple[Any, list[Any], list[Any]]] = [
    # tests, what matches, what does not
    ("a", ["a", ["b", "a"], [["a"]]], ["A", "ab", "", 1, None, [], ["b"], {"a": 1}, {}]),
    (["a", "b"], ["a", "b", ["c", "b"]], ["c", [], None]),
    ("", [""], ["a", None, [], False, 0]),
    (1, [1, 1.0, [2, 1]], [True, "1", 1.1, None, 0, [True]]),
    (0, [0, 0.0, -0.0], [False, "0", "", None, []]),
    (True, [True, [False, True]], [1, 1.0, "true", False, None]),
    (False, [False], [0, "", None, True]),
    ([None], [None, [1, None]], [0, "", "null", False, [], {}]),
    ([1, True], [1, True], [0, False, "1"]),
    (HUGE + 1, [HUGE + 1], [HUGE, float(HUGE)]),
    (10**30, [10**30], [10**30 + 1]),
    (0.1, [0.1, 1e-1], [0.2, "0.1"]),
    ("é", ["é"], ["e\u0301", "É"]),
    ('\U0001f30a\u0000\n"\\/', ['\U0001f30a\u0000\n"\\/'], ["\U0001f30a"]),
    ([{"prefix": "in/"}], ["in/", "in/a", ["x", "in/"]], ["in", "In/a", 1, None, {"in/": 1}]),
    ([{"prefix": ""}], ["", "a"], [1, None, []]),
    ([{"prefix": {"equals-ignore-case": "IN/"}}], ["in/a", "In/", "IN/x"], ["on/"]),
    ([{"suffix": ".jpg"}, {"suffix": ".png"}], ["a.jpg", ".png"], ["a.JPG", "jpg", 1]),
    ([{"suffix": {"equals-ignore-case": ".JPG"}}], ["a.jpg", "a.JpG"], ["a.jpeg"]),
    ([{"equals-ignore-case": "Straße"}], ["STRASSE", "straße"], ["strase", 1, None]),
    ([{"wildcard": "*.txt"}], [".txt", "a.txt", "a\nb.txt"], ["a.txt2", "txt", 1]),
    ([{"wildcard": "a*b*c"}], ["abc", "a..b..c", "abcbc"], ["ac", "acb", "abcd"]),
    ([{"wildcard": "a*a"}], ["aa", "aba"], ["a", "ab"]),
    ([{"wildcard": r"a\*b\\*"}], ["a*b\\", "a*b\\c"], ["axb\\", "a*b"]),
    ([{"wildcard": "*"}], ["", "a"], [1, None]),
    ([{"wildcard": "é*\U0001f30a"}], ["é\U0001f30a", "éx\U0001f30a"], ["e\U0001f30a"]),
    ([{"wildcard": "plain[.]"}], ["plain[.]"], ["plain."]),
    ([{"anything-but": "a"}], ["b", 1, None, True, "", ["a", "b"]], ["a", ["a"], [], {}, {"x": 1}]),
    ([{"anything-but": ["a", "b"]}], ["c", 0], ["a", "b", ["a", "b"]]),
    ([{"anything-but": 1}], [2, "1", True, None], [1, 1.0]),
    ([{"anything-but": [0, 1]}], [2, False, True], [0, 1]),
    ([{"anything-but": {"prefix": "a"}}], ["b", 1, None], ["a", "ab"]),
    ([{"anything-but": {"suffix": ["a", "b"]}}], ["c", ""], ["xa", "xb"]),
    ([{"anything-but": {"equals-ignore-case": ["A"]}}], ["b"], ["a", "A"]),
    ([{"anything-but": {"wildcard": "a*z"}}], ["a"], ["az", "a-z"]),
    ([{"numeric": ["=", 300]}], [300, 300.0, 3e2], ["300", 301, None, True]),
    ([{"numeric": [">", 0, "<=", 5]}], [5, 0.1, 1], [0, 5.0000001, "1", True, False, None]),
    ([{"numeric": ["<", 5, ">=", 0]}], [0, 4.9], [5, -1]),
    ([{"numeric": ["<", 0]}], [-0.1, -(10**30), -1.7e308], [0, -0.0, 1]),
    ([{"numeric": [">", HUGE]}], [HUGE + 1, 1e300], [HUGE, float(HUGE)]),
    ([{"numeric": [">=", 1, "<=", 1]}], [1], [0.9, 1.1]),
    ([{"exists": True}], ["", 0, None, False, [1], [[None]]], [{}, {"a": 1}, [], [{}]]),
    ([{"exists": False}], [{}, {"a": 1}, [], [{"a": 1}]], ["", 0, None, False, [1]]),
    ([{"exists": False}, "a"], ["a", {}, []], ["b", None]),
    ([None, {"exists": False}], [None, {}], [0, ""]),
    ([{"cidr": "10.0.0.0/24"}], ["10.0.0.0", "10.0.0.255"], ["10.0.1.0", "10.0.0.256", "1", "", "\u0000", 10, "::1"]),
    ([{"cidr": "10.1.2.3/8"}], ["10.9.9.9"], ["11.0.0.0"]),
    ([{"cidr": "2001:db8::/32"}], ["2001:db8::1", "2001:DB8:0::"], ["2001:db9::", "10.0.0.1", "fe80::1%eth0"]),
    ([{"cidr": "192.0.2.1"}], ["192.0.2.1"], ["192.0.2.2"]),
    ([{"prefix": "a"}, {"numeric": [">", 5]}, "z"], ["ab", 6, "z"], ["b", 5, None]),
]  # fmt: skip


@pytest.mark.parametrize(("tests", "yes", "no"), CASES, ids=[json.dumps(tests) for tests, _, _ in CASES])
def test_tests_of_a_value(tests: Any, yes: list[Any], no: list[Any]) -> None:
    assert [value for value in yes if not leaf(tests, value)] == []
    assert [value for value in no if leaf(tests, value)] == []


@pytest.mark.parametrize(("tests", "yes", "no"), CASES, ids=[json.dumps(tests) for tests, _, _ in CASES])
def test_the_same_inside_a_list_of_objects(tests: Any, yes: list[Any], no: list[Any]) -> None:
    pattern = Pattern({"data": {"rows": {"x": tests}}})
    absent = leaf(tests, [])
    assert all(pattern.matches(line({"rows": [{"x": value}]})) for value in yes)
    assert not any(pattern.matches(line({"rows": [{"x": value}]})) for value in no)
    # Where absence matches, no entry may have another value; else one entry is enough.
    assert all(pattern.matches(line({"rows": [[{"x": value}], {"y": 1}]})) for value in yes)
    assert [pattern.matches(line({"rows": rows})) for rows in EMPTY] == [absent] * 5


@pytest.mark.parametrize(
    ("pattern", "matches"),
    [
        ({"subject": [{"suffix": ".jpg"}]}, True),
        ({"subject": "in/a.jpg", "type": [{"prefix": "headrace.object."}]}, True),
        ({"subject": "in/a.jpg", "type": "other"}, False),
        ({"traceparent": [{"exists": False}]}, True),
        ({"traceparent": [{"exists": True}]}, False),
        ({"myextension": [7]}, True),
        ({"data": {"size": [{"numeric": [">", 0]}], "tags": ["b"]}}, True),
        ({"data": {"after": {"price": {"amount": [{"numeric": ["<", 10]}]}}}}, True),
        ({"data": {"after": {"price": {"missing": {"deep": [{"exists": False}]}}}}}, True),
        ({"data": {"size": {"deep": [{"exists": False}]}}}, True),
        ({"data": {"size": {"deep": ["x"]}}}, False),
        ({"data": [{"exists": True}]}, False),
        ({"data": {"items": {"sku": "a", "n": 1}}}, True),
        ({"data": {"items": {"sku": "a", "n": 2}}}, False),
        ({"data": {"items": {"gone": [{"exists": False}]}}}, True),
        ({"data": {"items": {"n": [{"exists": False}]}}}, False),
        ({"data": {"a-b": {"ü x": ["y"]}}}, True),
        ({"data": {"class": ["k"], "_p": ["q"]}}, True),
        ({"$or": [{"type": "no"}, {"data": {"size": [5]}}]}, True),
        ({"$or": [{"type": "no"}, {"data": {"size": [6]}}]}, False),
        ({"subject": "in/a.jpg", "$or": [{"id": "1"}, {"id": "2"}], "data": {"$or": [{"x": 6}, {"tags": "a"}]}}, True),
        ({"$or": [{"data": {"after": [{"exists": True}]}}, {"data": {"after": {"price": {"amount": 5}}}}]}, True),
        ({"$or": [{"$or": [{"id": "3"}, {"id": "1"}]}, {"id": "4"}]}, True),
    ],
)  # fmt: skip
def test_fields_and_nesting(pattern: dict[str, Any], matches: bool) -> None:
    data = {
        "size": 5,
        "tags": ["a", "b"],
        "after": {"price": {"amount": 5}},
        "items": [{"sku": "a", "n": 1}, {"sku": "b", "n": 2}],
        "a-b": {"ü x": "y"},
        "class": "k",
        "_p": "q",
    }
    event = line(data, subject="in/a.jpg", extensions={"myextension": 7})
    for written in (pattern, json.dumps(pattern)):
        compiled = Pattern(written)
        assert compiled.matches(event) is matches
        assert (compiled.mismatches(event) == []) is matches


def test_data_of_any_kind() -> None:
    assert Pattern({"data": ["x"]}).matches(line("x"))
    assert Pattern({"data": {"x": [{"exists": False}]}}).matches(line())
    assert Pattern({"data": {"x": [1]}}).matches(line([{"x": 1}]))
    assert not Pattern({"data": {"x": [1]}}).matches(line("x"))


@pytest.mark.parametrize("value", ["1e400", '"\\ud800"', "123456789012345678901234567890"])
def test_numbers_and_texts_beyond_the_decoder(value: str) -> None:
    damaged = line({"x": "HERE", "y": 1}).replace(b'"HERE"', value.encode())
    assert Pattern({"data": {"x": [{"exists": True}], "y": 1}}).matches(damaged)
    assert not Pattern({"data": {"y": 2}}).matches(damaged)


def test_a_damaged_line_is_an_event_without_fields() -> None:
    assert not Pattern({"type": "x"}).matches(b'{"type":"x"')
    assert Pattern({"type": [{"exists": False}]}).matches(b"[]")


def test_a_pattern_on_attributes_does_not_decode_data() -> None:
    event = line("HERE", subject="x").replace(b'"HERE"', b'{"n":1e999}')
    assert Pattern({"subject": "x"}).matches(event)


def test_wildcards_take_no_time_that_explodes() -> None:
    pattern = Pattern({"subject": [{"wildcard": "*a" * 20 + "*b"}]})
    start = time.perf_counter()
    assert not pattern.matches(line(subject="a" * 50_000))
    assert time.perf_counter() - start < 1


MISTAKES: list[tuple[Any, str, str]] = [
    ({}, "where", "an empty pattern"),
    ({"subject": []}, "where.subject", "an empty list"),
    ({"subject": {}}, "where.subject", "an empty pattern"),
    ({"subject": [["a"]]}, "where.subject[0]", "a list inside a list"),
    ({"subject": [{}]}, "where.subject[0]", "an empty table"),
    ({"subject": [{"prefix": "a", "suffix": "b"}]}, "where.subject[0]", "one operator, found 2"),
    ({"subject": [{"sufix": "a"}]}, "where.subject[0].sufix", 'did you mean "suffix"?'),
    ({"subject": [{"regex": "a"}]}, "where.subject[0].regex", "the operators are prefix, suffix"),
    ({"subject": [{"prefix": 1}]}, "where.subject[0].prefix", "expected a text, found a whole number"),
    ({"subject": [{"prefix": {"equals": "a"}}]}, "where.subject[0].prefix", "expected a text, found a table"),
    ({"subject": [{"wildcard": "a**b"}]}, "where.subject[0].wildcard", "write one"),
    ({"subject": [{"wildcard": r"a\b"}]}, "where.subject[0].wildcard", "a backslash stands before"),
    ({"subject": [{"wildcard": "a\\"}]}, "where.subject[0].wildcard", "a backslash stands before"),
    ({"subject": [{"anything-but": []}]}, "where.subject[0].anything-but", "an empty list"),
    ({"subject": [{"anything-but": ["a", 1]}]}, "where.subject[0].anything-but", "texts only or numbers only"),
    ({"subject": [{"anything-but": [None]}]}, "where.subject[0].anything-but", "texts only or numbers only"),
    ({"subject": [{"anything-but": {"prefixx": "a"}}]}, "where.subject[0].anything-but", 'did you mean "prefix"?'),
    ({"subject": [{"anything-but": {"prefix": ["a", 1]}}]}, "where.subject[0].anything-but.prefix[1]", "a text"),
    ({"subject": [{"numeric": ["=>", 1]}]}, "where.subject[0].numeric[0]", "expected one of = < <= > >="),
    ({"subject": [{"numeric": [">", "1"]}]}, "where.subject[0].numeric[1]", "expected a number, found a text"),
    ({"subject": [{"numeric": [">", True]}]}, "where.subject[0].numeric[1]", "expected a number"),
    ({"subject": [{"numeric": [">", 1, "<"]}]}, "where.subject[0].numeric", "expected a list"),
    ({"subject": [{"numeric": [">", 1, "<", 1]}]}, "where.subject[0].numeric", "a lower and an upper bound"),
    ({"subject": [{"numeric": [">", 1, ">", 2]}]}, "where.subject[0].numeric", "a lower and an upper bound"),
    ({"subject": [{"exists": "true"}]}, "where.subject[0].exists", "expected true or false, found a text"),
    ({"subject": [{"cidr": "10.0.0.0/33"}]}, "where.subject[0].cidr", "no address block"),
    ({"subject": [float("nan")]}, "where.subject[0]", "NaN and infinities are texts"),
    ({"data": {"size": {"numeric": [">", 1]}}}, "where.data.size.numeric", "write [{ numeric = … }]"),
    ({"data": {"size": {"exists": True}}}, "where.data.size.exists", "write [{ exists = … }]"),
    ({"detail-type": ["x"]}, "where.detail-type", "no attribute of the envelope"),
    ({"$or": [{"id": "1"}]}, "where.$or", "two tables or more"),
    ({"$or": [{"id": "1"}, {"id": [{"prefix": 1}]}]}, "where.$or[1].id[0].prefix", "expected a text"),
    ('{"id": ["1"', "where", "not JSON: line 1 column"),
    ('{"id": 1, "id": 2}', "where", 'the key "id" stands there twice'),
    ('{"id": [NaN]}', "where", "NaN is no number of JSON"),
    ('["id"]', "where", "expected a JSON object, found a list"),
    (3, "where", "expected a table or a JSON text"),
]


@pytest.mark.parametrize(("pattern", "place", "message"), MISTAKES, ids=[json.dumps(one[0]) for one in MISTAKES])
def test_mistakes_have_their_place(pattern: Any, place: str, message: str) -> None:
    with pytest.raises(PatternError) as caught:
        Pattern(pattern)
    assert len(caught.value.mistakes) == 1
    assert str(caught.value).startswith(place + ": ")
    assert message in str(caught.value)


def test_a_pattern_too_deep_is_refused() -> None:
    pattern: dict[str, Any] = {"x": ["y"]}
    for _ in range(40):
        pattern = {"data": pattern}
    with pytest.raises(PatternError, match="nested deeper than 32"):
        Pattern(pattern)
    with pytest.raises(PatternError, match="nested too deeply"):
        Pattern("[" * 100_000)


def test_fields_named_like_operators_may_be_asked_for() -> None:
    assert Pattern({"data": {"prefix": ["a"]}}).matches(line({"prefix": "a"}))
    assert Pattern({"data": {"exists": [True]}}).matches(line({"exists": True}))


SETTINGS = """
[sinks.a]
type = "stdout"
where.subject = [{{ suffix = ".jpg" }}, {{ {} = ".png" }}]
where.data.size = [
  {{ numeric = [">", 0] }},
  {{ numeric = ["<"] }},
]

[sinks.b]
type = "stdout"
where = '{{"data": {{"after": {{"deleted_at": [null]}}, "$or": [{{"a": [1]}}, {{"b": {}}}]}}}}'

[sinks.c]
type = "stdout"
where.env = "prod"
"""


def test_mistakes_in_the_settings_have_line_and_key(tmp_path: Path) -> None:
    file = tmp_path / "headrace.toml"
    file.write_text(SETTINGS.format("sufix", "[]"))
    with pytest.raises(SettingsError) as caught:
        load(file, {})
    found = [str(problem).removeprefix(f"{file}:") for problem in caught.value.problems]
    assert found == [
        '4: sinks.a.where.subject[1].sufix: unknown operator "sufix"; did you mean "suffix"?',
        '7: sinks.a.where.data.size[1].numeric: expected a list as [">", 0] or [">", 0, "<=", 5]',
        '12: sinks.b.where.data."$or"[1].b: an empty list matches nothing',
    ]


def test_settings_take_a_table_and_a_json_text(tmp_path: Path) -> None:
    file = tmp_path / "headrace.toml"
    file.write_text(SETTINGS.format("suffix", "[2]").replace('["<"]', '["<", 5]'))
    consumers = load(file, {}).consumers
    where = {name: consumer.where for name, consumer in consumers.items()}
    assert where["b"] == {"data": {"after": {"deleted_at": [None]}, "$or": [{"a": [1]}, {"b": [2]}]}}
    assert where["c"] == {"env": "prod"}, "no reference: a pattern has keys of its own"
    assert Pattern(where["a"] or {}).matches(line({"size": 3}, subject="x.png"))


# --- blocks ---


def block_of(lines: list[bytes]) -> Block:
    events = [Event(id=str(number), source="s", type="t") for number in range(len(lines))]
    sealed = seal("s", Lines.of(events, source_seed("s"), lines))
    return Block(sealed.head(0, 0, 0), sealed.index, sealed.body)


def test_patterns_that_share_rows_choose_each_their_own() -> None:
    sizes = [*range(50), None, "x", [3, 70], {"deep": 1}, 1e10]
    block = block_of([line({"size": size}, subject=f"f{number}.jpg") for number, size in enumerate(sizes)])
    rows = Rows()
    wanted: list[tuple[Any, list[int]]] = [
        ({"data": {"size": [{"numeric": ["<", 3]}]}}, [0, 1, 2]),
        ({"data": {"size": [{"numeric": [">", 60]}]}}, [52, 54]),
        ({"data": {"size": [{"numeric": ["<", 0]}]}}, []),
        ({"data": {"size": {"deep": [1]}}}, [53]),
        ({"data": {"size": ["x"]}, "subject": [{"suffix": ".jpg"}]}, [51]),
        ({"subject": [{"prefix": "f5"}]}, [5, 50, 51, 52, 53, 54]),
        ({"subject": [{"suffix": "f.jpg"}]}, []),
        ({"subject": ["f7.jpg", "f70.jpg"]}, [7]),
    ]
    patterns = [Pattern(pattern, rows) for pattern, _ in wanted]
    for _ in range(2):
        found = [pattern.indices(block, range(block.count)) for pattern in patterns]
        assert found == [indices for _, indices in wanted]
    assert patterns[5].indices(block, [3, 51, 5]) == [51, 5]
    assert Pattern(wanted[5][0]).indices(block, [5, 6]) == [5], "few wanted: only these are decoded"
    assert patterns[0].indices(block, []) == []


def test_a_damaged_line_disturbs_no_other() -> None:
    block = block_of([line(subject="a"), b'{"subject":"a"\n', line(subject="a"), b'{"subject":"a","n":1e999}\n'])
    assert Pattern({"subject": "a"}).indices(block, range(4)) == [0, 2, 3]


# --- against a naive matcher ---


def naive(pattern: dict[str, Any], value: Any) -> bool:
    """EventBridge's semantics as plainly as they can be written."""
    if isinstance(value, list) and value:
        each = [naive(pattern, one) for one in value]
        return all(each) if naive(pattern, {}) else any(each)
    table = value if isinstance(value, dict) else {}
    for key, wanted in pattern.items():
        if key == "$or":
            ok = any(naive(one, table) for one in wanted)
        elif isinstance(wanted, dict):
            ok = naive(wanted, table.get(key))
        else:
            tests = wanted if isinstance(wanted, list) else [wanted]
            scalars = naive_scalars(table[key]) if key in table else []
            ok = any(naive_test(test, scalar) for test in tests for scalar in scalars) or (
                not scalars and {"exists": False} in [test for test in tests if isinstance(test, dict)]
            )
        if not ok:
            return False
    return True


def naive_scalars(value: Any) -> list[Any]:
    if isinstance(value, list):
        return [scalar for one in value for scalar in naive_scalars(one)]
    return [] if isinstance(value, dict) else [value]


def naive_test(test: Any, value: Any) -> bool:  # noqa: PLR0911 - one for each kind of test
    if not isinstance(test, dict):
        return isinstance(test, bool) == isinstance(value, bool) and bool(test == value)
    ((operator, argument),) = test.items()
    if operator == "exists":
        return bool(argument)
    if operator == "anything-but":
        if isinstance(argument, dict):
            ((inner, given),) = argument.items()
            return not any(naive_test({inner: one}, value) for one in (given if isinstance(given, list) else [given]))
        return not any(naive_test(one, value) for one in (argument if isinstance(argument, list) else [argument]))
    if operator == "numeric":
        if isinstance(value, bool) or not isinstance(value, int | float):
            return False
        pairs = zip(argument[::2], argument[1::2], strict=True)
        compare = {"=": "__eq__", "<": "__lt__", "<=": "__le__", ">": "__gt__", ">=": "__ge__"}
        return all(getattr(float(value), compare[op])(float(bound)) for op, bound in pairs)
    return isinstance(value, str) and naive_text(operator, argument, value)


def naive_text(operator: str, argument: Any, value: str) -> bool:  # noqa: PLR0911 - one for each operator
    if isinstance(argument, dict):
        return naive_text(operator, argument["equals-ignore-case"].casefold(), value.casefold())
    if operator == "prefix":
        return bool(value[: len(argument)] == argument)
    if operator == "suffix":
        return len(value) >= len(argument) and bool(value[len(value) - len(argument) :] == argument)
    if operator == "equals-ignore-case":
        return bool(value.casefold() == argument.casefold())
    if operator == "wildcard":
        return fnmatch.fnmatchcase(value, argument.replace("[", "[[]").replace("?", "[?]"))
    try:
        return ipaddress.ip_address(value) in ipaddress.ip_network(argument)
    except ValueError:
        return False


KEYS = st.sampled_from(["a", "b", "c"])
TEXTS = st.sampled_from(
    ["", "a", "A", "ab", "ba", "aab", "é", "ß", "ss", "10.0.0.1", "10.0.1.1", "[?", "\n"]
) | st.text("ab\u00e9.", max_size=4)
NUMBERS = st.integers(-3, 3) | st.sampled_from([0.5, -0.0, 1.0, 2.5])
LITERALS = TEXTS | NUMBERS | st.booleans() | st.none()
WILDCARDS = st.lists(st.sampled_from(["a", "b", ".", "[", "?"]), max_size=3).map(lambda parts: "*".join(parts) + "*")


def one_key(key: str, values: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return values.map(lambda value: {key: value})


FOLDED = TEXTS | one_key("equals-ignore-case", TEXTS)
NUMERIC = st.tuples(st.sampled_from(["=", "<", "<=", ">", ">="]), NUMBERS).map(list) | st.tuples(
    st.sampled_from([">", ">="]), st.integers(-3, 0), st.sampled_from(["<", "<="]), st.integers(1, 3)
).map(list)
TESTS = st.one_of(
    LITERALS,
    one_key("prefix", FOLDED),
    one_key("suffix", FOLDED),
    one_key("equals-ignore-case", TEXTS),
    one_key("wildcard", WILDCARDS),
    one_key("numeric", NUMERIC),
    one_key("exists", st.booleans()),
    one_key("cidr", st.sampled_from(["10.0.0.0/24", "10.0.0.1/32", "::/0"])),
    one_key("anything-but", TEXTS | NUMBERS | st.lists(TEXTS, min_size=1, max_size=3)),
    one_key(
        "anything-but",
        one_key("prefix", FOLDED) | one_key("suffix", st.lists(TEXTS, min_size=1, max_size=2)),
    ),
)
LEAVES = st.lists(TESTS, min_size=1, max_size=3) | LITERALS


def tables(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    plain = st.dictionaries(KEYS, LEAVES | inner, min_size=1, max_size=3)
    choice = st.lists(inner, min_size=2, max_size=3)
    return plain | st.tuples(plain, choice).map(lambda both: {**both[0], "$or": both[1]})


PATTERNS = st.recursive(st.dictionaries(KEYS, LEAVES, min_size=1, max_size=2), tables, max_leaves=6)
VALUES = st.recursive(
    LITERALS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=3), max_leaves=10
)


@given(PATTERNS, st.lists(VALUES, min_size=1, max_size=12), PATTERNS)
def test_agrees_with_the_naive_matcher(pattern: dict[str, Any], values: list[Any], other: dict[str, Any]) -> None:
    lines = [line(value) for value in values]
    wanted = {"data": pattern}
    expected = [naive(wanted, json.loads(one)) for one in lines]
    alone, rows = Pattern(wanted), Rows()
    assert [alone.matches(one) for one in lines] == expected
    assert [not alone.mismatches(one) for one in lines] == expected
    # With the shapes of others mixed in, and several that name the same fields.
    shared = [Pattern(one, rows) for one in (wanted, {"data": other}, wanted, wanted, {"data": other})]
    block = block_of(lines)
    for compiled in shared[:1] + shared[2:4]:
        assert compiled.indices(block, range(len(lines))) == [i for i, ok in enumerate(expected) if ok]
