"""The language of `where` and of derived features, checked and compiled to stack programs.

A `where` is a condition over one event's fields; a formula is a sum over features, of any entity.

    condition   = condition "or" condition | condition "and" condition | "not" condition | comparison
    comparison  = sum ("==" | "!=" | "<" | "<=" | ">" | ">=") sum
                | sum ["not"] "in" "(" literal {"," literal} ")"
                | field "is" ["not"] "null"
                | "true" | "false" | a field declared bool
    sum         = sum ("+" | "-" | "*" | "/") sum | "-" sum | "(" condition ")" | field | number | text
                | ("min" | "max") "(" sum "," sum {"," sum} ")"
    formula     = sum, of features (view.feature) and numbers

Tightest first: unary minus; * and /; + and -; comparisons, which do not chain; not; and; or. Numbers are
decimal, texts stand in single or double quotes (a quote is doubled inside). Fields declared `key` or
`string` are text: they know ==, !=, in and null, with texts, with each other, or with whole numbers, which
mean their decimal digits (`dst_port == 22`).

Logic is SQL's: whatever touches an absent field is unknown, `unknown or true` is true, and an event matches
only where the whole is true. Arithmetic whose result is not finite (a division by zero) is unknown too.
What a formula makes of a value that is not there, core/derived.pyx says.

The compiler is one pass: precedence climbing where each rule returns a `_Piece`, the program so far with
its type and its canonical text. No tree is built and no Python code is ever evaluated. The canonical text
has one space between tokens and no parenthesis that changes nothing, so that filters that differ in looks
only are one filter; compiling it again gives the same program. What an expression may cost is bounded by
its length, its nesting and the slots of the stack it needs.
"""

from __future__ import annotations

import enum
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NoReturn

from featurestore.errors import SchemaError
from featurestore.plan import Op
from featurestore.schema.document import shown, suggestion

MAX_LENGTH = 4096  # characters
MAX_NESTING = 64
MAX_STACK = 32  # slots of core/program.pyx
MAX_TEXT_BYTES = 4096  # of core/batch.pxd: a longer text equals no field


class FieldType(enum.Enum):
    """A field's type, as the file spells it."""

    KEY = "key"
    STRING = "string"
    NUMBER = "number"
    BOOL = "bool"

    @property
    def is_text(self) -> bool:
        return self in (FieldType.KEY, FieldType.STRING)


@dataclass(frozen=True)
class Condition:
    """A compiled `where`. Equal sources over the same fields are equal conditions."""

    source: str  # canonical
    ops: tuple[Op, ...]


@dataclass(frozen=True)
class Formula:
    """The compiled value of a derived feature."""

    source: str  # canonical
    operands: tuple[str, ...]  # full names of the features in it, in the order of their first use
    ops: tuple[Op, ...]  # their `field` is an index in operands


def compile_condition(
    source: str, fields: Mapping[str, FieldType], *, what: str = "where", line: int | None = None
) -> Condition:
    """The condition `source` over `fields`, whose order gives the indexes in the program.

    Raises SchemaError, with `what`, the column and a picture of the place, where it is not one.
    """
    if len(source) > MAX_LENGTH:
        raise SchemaError(f"{what} is longer than {MAX_LENGTH} characters", line=line)
    compiler = _Compiler(source, fields, _WHERE, what, line)
    compiler.indexes.update((name, index) for index, name in enumerate(fields))
    return compiler.condition()


def compile_formula(
    source: str, features: Mapping[str, FieldType], *, what: str = "formula", line: int | None = None
) -> Formula:
    """The formula `source` over `features`, by full name. Raises SchemaError as `compile_condition` does."""
    if len(source) > MAX_LENGTH:
        raise SchemaError(f"{what} is longer than {MAX_LENGTH} characters", line=line)
    return _Compiler(source, features, _FORMULA, what, line).formula()


def both(one: Condition | None, other: Condition | None) -> Condition | None:
    """The condition that is true where both are; None is true everywhere."""
    if one is None or other is None:
        return one or other
    return Condition(f"({one.source}) and ({other.source})", (*one.ops, *other.ops, Op("and")))


class _Type(enum.Enum):
    NUMBER = "a number"
    TEXT = "text"
    FLAG = "a bool"  # a field declared bool: a number 0 or 1 in memory
    TRUTH = "a condition"


_OR, _AND, _NOT, _COMPARE, _ADD, _MULTIPLY, _MINUS, _ATOM = range(1, 9)  # how tightly an operator binds

_COMPARISONS = {"==": "eq", "!=": "ne", "<": "lt", "<=": "le", ">": "gt", ">=": "ge"}
_ARITHMETIC = {"+": ("add", _ADD), "-": ("sub", _ADD), "*": ("mul", _MULTIPLY), "/": ("div", _MULTIPLY)}
_LEVELS = (
    {"or": _OR, "and": _AND, "in": _COMPARE, "not": _COMPARE, "is": _COMPARE}
    | dict.fromkeys(_COMPARISONS, _COMPARE)
    | {symbol: level for symbol, (_, level) in _ARITHMETIC.items()}
)
_FUNCTIONS = ("min", "max")
_WORDS = frozenset({"and", "or", "not", "in", "is", "null", "true", "false"})
_MEANT = {
    "=": "==",
    "<>": "!=",
    "=>": ">=",
    "=<": "<=",
    "&&": "and",
    "||": "or",
    "&": "and",
    "|": "or",
    "!": "not",
}
_MEANT_WORDS = {"NONE": "null", "NIL": "null"} | {each.upper(): each for each in _WORDS}


def _token(name: str) -> re.Pattern[str]:
    return re.compile(
        rf"""\s*(?:
            (?P<number>(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][-+]?[0-9]+)?)
          | (?P<name>{name})
          | (?P<text>"(?:[^"]|"")*"|'(?:[^']|'')*')
          | (?P<symbol><>|=>|=<|==|!=|<=|>=|&&|\|\||[-<>+*/(),=!&|])
          | (?P<end>\Z)
        )""",
        re.VERBOSE,
    )


@dataclass(frozen=True)
class _Language:
    """What tells the two apart before anything is typed."""

    noun: str  # what a name stands for
    operand: str  # what an expression may begin with
    token: re.Pattern[str]
    foreign: frozenset[str]  # words and symbols of the other, and kinds of tokens


_WHERE = _Language("field", "a field, a number or a text", _token("[A-Za-z_][A-Za-z0-9_]*"), frozenset())
_FORMULA = _Language(
    "feature",
    "a feature or a number",
    _token(r"[A-Za-z_][A-Za-z0-9_]*(?:\.[A-Za-z_][A-Za-z0-9_]*)*"),
    _WORDS | {"text"} | _COMPARISONS.keys() | _MEANT.keys(),
)

_TAIL = re.compile(r"[A-Za-z0-9_.]+")  # after a number: it was none


@dataclass(frozen=True, slots=True)
class _Token:
    kind: str  # a group of _token
    text: str
    at: int  # where it begins in the source


@dataclass(frozen=True, slots=True)
class _Piece:
    """A compiled part of the expression, which leaves one value of type `type` on the stack."""

    type: _Type
    ops: tuple[Op, ...]
    text: str  # canonical
    level: int  # of its outermost operator
    slots: int  # of the stack it needs
    at: int  # where it begins in the source
    literal: float | int | str | bool | None = None

    @property
    def is_field(self) -> bool:
        return self.ops[0].code in ("load_number", "load_text") and len(self.ops) == 1

    def within(self, level: int) -> str:
        """Its canonical text as an operand that must bind at least as tightly as `level`."""
        return self.text if self.level >= level else f"({self.text})"


class _Compiler:
    def __init__(
        self, source: str, fields: Mapping[str, FieldType], language: _Language, what: str, line: int | None
    ) -> None:
        self.indexes: dict[str, int] = {}  # in the program; names that it lacks get theirs at their first use
        self._source = source
        self._fields = fields
        self._language = language
        self._what = what
        self._line = line
        self._nesting = 0
        self._tokens = self._tokenized()
        self._next = 0

    def condition(self) -> Condition:
        if self._peek.kind == "end":
            self._fail("there is no condition; write one or leave `where` out", 0)
        piece = self._truth(self._expression(_OR))
        if self._peek.kind != "end":
            self._unexpected("the end or an operator", self._peek)
        return Condition(piece.text, piece.ops)

    def formula(self) -> Formula:
        piece = self._expression(_ADD)
        if self._peek.kind != "end":
            self._unexpected("the end or an operator", self._peek)
        if not self.indexes:
            self._fail("there is no feature in this formula", piece.at)
        return Formula(piece.text, tuple(self.indexes), self._exact(piece).ops)

    # Tokens

    def _tokenized(self) -> Sequence[_Token]:
        tokens = []
        at = 0
        while True:
            match = self._language.token.match(self._source, at)
            if match is None or match.lastgroup is None:
                at += len(self._source[at:]) - len(self._source[at:].lstrip())
                letter = self._source[at]
                if letter in "\"'":
                    self._fail("this text has no closing quote", at)
                self._fail(f"{shown(letter)} is not part of the language", at)
            kind, text, begin = match.lastgroup, match[match.lastgroup], match.start(match.lastgroup)
            if not self._language.foreign.isdisjoint((kind, text)):
                known = "+ - * /, min(), max(), parentheses, features and numbers"
                self._fail(f"{shown(text)} has no place in a formula, which knows {known}", begin)
            if text in _MEANT:
                self._fail(f"{text} is not an operator; did you mean {_MEANT[text]}?", begin)
            at = match.end()
            if kind == "number" and (tail := _TAIL.match(self._source, at)):
                written = shown(text + tail[0])
                self._fail(f"{written} is neither a number nor a name; texts stand in quotes", begin)
            tokens.append(_Token(kind, text, begin))
            if kind == "end":
                return tokens

    @property
    def _peek(self) -> _Token:
        return self._tokens[self._next]

    def _take(self) -> _Token:
        token = self._tokens[self._next]
        self._next += token.kind != "end"
        return token

    def _took(self, text: str) -> bool:
        """Takes the next token where it is this word or symbol."""
        found = self._peek.kind in ("name", "symbol") and self._peek.text == text
        self._next += found
        return found

    def _expect(self, text: str) -> None:
        if not self._took(text):
            self._unexpected(text, self._peek)

    # Grammar

    def _expression(self, loosest: int) -> _Piece:
        """Everything from here that binds at least as tightly as `loosest`."""
        self._nesting += 1
        if self._nesting > MAX_NESTING:
            self._fail(f"nested more than {MAX_NESTING} levels deep", self._peek.at)
        left = self._operand(loosest)
        compared = False
        while (level := self._level()) >= loosest:
            if level == _COMPARE:
                if compared:
                    self._fail("comparisons do not chain; write a < b and b < c", self._peek.at)
                left = self._comparison(left)
                compared = True
            else:
                operator = self._take()
                right = self._expression(level + 1)
                combine = self._logic if level in (_OR, _AND) else self._arithmetic
                left = combine(operator, left, right)
        self._nesting -= 1
        return left

    def _level(self) -> int:
        token = self._peek
        return _LEVELS.get(token.text, 0) if token.kind in ("name", "symbol") else 0

    def _operand(self, loosest: int) -> _Piece:
        token = self._take()
        if token.kind == "number":
            return self._number(token)
        if token.kind == "text":
            return self._text(token)
        if token.text == "(":
            inner = self._expression(_OR)
            self._expect(")")
            return inner
        if token.text == "-":
            return self._minus(token)
        if token.kind == "name":
            return self._word(token, loosest)
        return self._unexpected(self._language.operand, token)

    def _word(self, token: _Token, loosest: int) -> _Piece:
        if token.text in _FUNCTIONS and self._took("("):
            return self._call(token)
        if token.text not in _WORDS:
            return self._field(token)
        if token.text in ("true", "false"):
            value = token.text == "true"
            return _Piece(_Type.TRUTH, (Op(token.text),), token.text, _ATOM, 1, token.at, value)
        if token.text != "not":
            self._unexpected(self._language.operand, token)
        if loosest > _NOT:
            self._fail("put `not ...` in parentheses here", token.at)
        inner = self._truth(self._expression(_NOT))
        text = f"not {inner.within(_NOT)}"
        return _Piece(_Type.TRUTH, (*inner.ops, Op("not")), text, _NOT, inner.slots, token.at)

    def _call(self, token: _Token) -> _Piece:
        """min and max of two or more, from the left."""
        arguments = [self._expression(_ADD)]
        while self._took(","):
            arguments.append(self._expression(_ADD))
        self._expect(")")
        if len(arguments) == 1:
            self._fail(f"{token.text} takes two values or more, separated by commas", token.at)
        result = self._number_operand(arguments[0])
        for right in arguments[1:]:
            result = self._binary(token.text, ",", _ADD, result, self._number_operand(right))
        text = f"{token.text}({', '.join(argument.text for argument in arguments)})"
        return _Piece(_Type.NUMBER, result.ops, text, _ATOM, result.slots, token.at)

    def _field(self, token: _Token) -> _Piece:
        name = token.text
        if name not in self._fields:
            noun = self._language.noun
            if name.upper() in _MEANT_WORDS:
                self._fail(f"unknown {noun} {name}; did you mean {_MEANT_WORDS[name.upper()]}?", token.at)
            self._fail(f"unknown {noun} {shown(name)}{suggestion(name, self._fields)}", token.at)
        declared, index = self._fields[name], self.indexes.setdefault(name, len(self.indexes))
        if declared.is_text:
            return _Piece(_Type.TEXT, (Op("load_text", field=index),), name, _ATOM, 1, token.at)
        kind = _Type.FLAG if declared is FieldType.BOOL else _Type.NUMBER
        return _Piece(kind, (Op("load_number", field=index),), name, _ATOM, 1, token.at)

    def _number(self, token: _Token) -> _Piece:
        digits = token.text
        if re.match(r"0[0-9]", digits):
            self._fail(f'a number does not begin with 0; as text, write "{digits}"', token.at)
        value = float(digits)
        if value == float("inf"):
            self._fail(f"{digits} is too large for a number", token.at)
        literal = int(digits) if digits.isdigit() else value
        return self._number_piece(literal, token.at)

    def _number_piece(self, literal: float, at: int) -> _Piece:
        # A sign makes its text bind like unary minus; no place where a number can stand binds tighter.
        return _Piece(
            _Type.NUMBER, (Op("number", number=float(literal)),), repr(literal), _ATOM, 1, at, literal
        )

    def _text(self, token: _Token) -> _Piece:
        quote = token.text[0]
        value = token.text[1:-1].replace(quote * 2, quote)
        try:
            n_bytes = len(value.encode())
        except UnicodeEncodeError:
            self._fail("this text holds a lone surrogate, which is no character", token.at)
        if not value:
            self._fail(
                "an empty text is absent, so nothing equals it or differs from it; write `field is null` or "
                "`field is not null`",
                token.at,
            )
        if n_bytes > MAX_TEXT_BYTES:
            self._fail(f"this text is longer than the {MAX_TEXT_BYTES} bytes that a field can hold", token.at)
        return self._text_piece(value, token.at)

    def _text_piece(self, value: str, at: int) -> _Piece:
        canonical = '"' + value.replace('"', '""') + '"'
        return _Piece(_Type.TEXT, (Op("text", texts=(value,)),), canonical, _ATOM, 1, at, value)

    def _minus(self, token: _Token) -> _Piece:
        inner = self._expression(_MINUS)
        self._require(inner, _Type.NUMBER)
        if isinstance(inner.literal, int | float):
            return self._number_piece(-inner.literal, token.at)
        text = f"-{inner.within(_MINUS)}"
        return _Piece(_Type.NUMBER, (*inner.ops, Op("neg")), text, _MINUS, inner.slots, token.at)

    def _arithmetic(self, operator: _Token, left: _Piece, right: _Piece) -> _Piece:
        code, level = _ARITHMETIC[operator.text]
        return self._binary(
            code, operator.text, level, self._number_operand(left), self._number_operand(right)
        )

    def _logic(self, operator: _Token, left: _Piece, right: _Piece) -> _Piece:
        level = _LEVELS[operator.text]
        return self._binary(operator.text, operator.text, level, self._truth(left), self._truth(right))

    def _comparison(self, left: _Piece) -> _Piece:
        operator = self._take()
        if operator.text == "is":
            negated = self._took("not")
            self._expect("null")
            return self._is_null(operator, left, negated)
        if operator.text == "in":
            return self._membership(left, negated=False)
        if operator.text == "not":
            self._expect("in")
            return self._membership(left, negated=True)
        return self._compare(operator, left, self._expression(_COMPARE + 1))

    def _is_null(self, operator: _Token, left: _Piece, negated: bool) -> _Piece:
        if not left.is_field:
            self._fail("only a field can be null; write `field is null`", operator.at)
        text = f"{left.text} is not null" if negated else f"{left.text} is null"
        ops = (*left.ops, Op("is_null"), *([Op("not")] if negated else []))
        return _Piece(_Type.TRUTH, ops, text, _COMPARE, 1, left.at)

    def _membership(self, left: _Piece, *, negated: bool) -> _Piece:
        self._expect("(")
        members = []
        while True:
            at = self._peek.at
            member = self._expression(_ADD)
            if member.literal is None or isinstance(member.literal, bool):
                self._fail("a list after `in` holds numbers and texts only", at)
            members.append(member)
            if not self._took(","):
                break
        self._expect(")")
        if left.type is _Type.TEXT:
            texts = [self._as_text(member) for member in members]
            names = [text.text for text in texts]
            op = Op("in_texts", texts=tuple(str(text.literal) for text in texts))
        else:
            self._require(left, _Type.NUMBER)
            for member in members:
                self._same_type(left, member)
            names = [member.text for member in members]
            op = Op("in_numbers", numbers=tuple(self._exact(member).ops[0].number for member in members))
        if left.literal is not None:
            self._fail("a list is compared with a field, not with a literal", left.at)
        text = f"{left.within(_ADD)} {'not in' if negated else 'in'} ({', '.join(names)})"
        ops = (*left.ops, op, *([Op("not")] if negated else []))
        return _Piece(_Type.TRUTH, ops, text, _COMPARE, left.slots, left.at)

    def _compare(self, operator: _Token, left: _Piece, right: _Piece) -> _Piece:
        symbol = operator.text
        if _Type.TEXT in (left.type, right.type):
            if left.literal is not None and right.literal is not None:
                self._fail("this compares two literals; one side must be a field", left.at)
            if symbol not in ("==", "!="):
                self._fail(f"text has no order: {symbol} does not apply to it; use ==, != or in", operator.at)
            if left.literal is not None:  # the field first: that is how the program runs it
                left, right = right, left
            self._same_type(left, right)
            right = self._as_text(right) if right.literal is not None else right
            return self._binary(f"text_{_COMPARISONS[symbol]}", symbol, _COMPARE, left, right)
        if _Type.FLAG in (left.type, right.type):
            return self._compare_flags(operator, left, right)
        return self._binary(
            _COMPARISONS[symbol], symbol, _COMPARE, self._number_operand(left), self._number_operand(right)
        )

    def _compare_flags(self, operator: _Token, left: _Piece, right: _Piece) -> _Piece:
        if left.type is not _Type.FLAG:
            left, right = right, left
        if operator.text not in ("==", "!="):
            self._fail(
                f"bools have no order: {operator.text} does not apply to them; use == or !=", operator.at
            )
        if isinstance(right.literal, bool):
            right = _Piece(
                _Type.FLAG,
                (Op("number", number=float(right.literal)),),
                right.text,
                _ATOM,
                1,
                right.at,
                right.literal,
            )
        if right.type is not _Type.FLAG:
            name = left.text
            self._fail(
                f"{name} is a bool, compared with {right.type.value}; "
                f"write {name}, not {name} or {name} == true",
                operator.at,
            )
        return self._binary(_COMPARISONS[operator.text], operator.text, _COMPARE, left, right)

    # Types

    def _binary(self, code: str, symbol: str, level: int, left: _Piece, right: _Piece) -> _Piece:
        slots = max(left.slots, right.slots + 1)
        if slots > MAX_STACK:
            self._fail(f"needs more than {MAX_STACK} values at once; write fewer parentheses", left.at)
        # Left to right: a - (b - c) keeps its parentheses, (a - b) - c loses them. Comparisons do not chain.
        left_text = left.within(level + 1 if level == _COMPARE else level)
        text = f"{left_text} {symbol} {right.within(level + 1)}"
        kind = _Type.NUMBER if level in (_ADD, _MULTIPLY) else _Type.TRUTH
        return _Piece(kind, (*left.ops, *right.ops, Op(code)), text, level, slots, left.at)

    def _truth(self, piece: _Piece) -> _Piece:
        """The piece as a condition: a bool field by itself means that it is true."""
        if piece.type is _Type.FLAG:
            ops = (*piece.ops, Op("number", number=0.0), Op("ne"))
            return _Piece(_Type.TRUTH, ops, piece.text, piece.level, 2, piece.at)
        self._require(piece, _Type.TRUTH)
        return piece

    def _require(self, piece: _Piece, kind: _Type) -> None:
        if piece.type is kind:
            return
        hints = {
            (_Type.NUMBER, _Type.TRUTH): f"; compare it, as in {shown(piece.text)} > 0",
            (_Type.TEXT, _Type.TRUTH): f'; compare it, as in {shown(piece.text)} == "a"',
            (_Type.TRUTH, _Type.NUMBER): "; conditions are combined with and, or and not",
        }
        hint = hints.get((piece.type, kind), "")
        self._fail(f"{shown(piece.text)} is {piece.type.value}, not {kind.value}{hint}", piece.at)

    def _same_type(self, field: _Piece, other: _Piece) -> None:
        """`other` may be compared with `field`: the same type, or a literal that means its decimal text."""
        if other.type is field.type or (field.type is _Type.TEXT and other.literal is not None):
            return
        hint = ""
        if field.type is _Type.NUMBER and isinstance(other.literal, str):
            hint = f"; {other.text} is text, a number stands without quotes"
        left, right = shown(field.text), shown(other.text)
        self._fail(f"{left} is {field.type.value}, {right} is {other.type.value}{hint}", other.at)

    def _as_text(self, piece: _Piece) -> _Piece:
        """A literal as the text that it means for a text field."""
        if isinstance(piece.literal, str):
            return piece
        if isinstance(piece.literal, bool) or not isinstance(piece.literal, int):
            self._fail(f'{piece.text} is compared with text; write it in quotes: "{piece.text}"', piece.at)
        return self._text_piece(str(piece.literal), piece.at)

    def _number_operand(self, piece: _Piece) -> _Piece:
        self._require(piece, _Type.NUMBER)
        return self._exact(piece)

    def _exact(self, piece: _Piece) -> _Piece:
        """A number operand; a whole literal beyond 2**53 would silently be another number."""
        if isinstance(piece.literal, int) and int(float(piece.literal)) != piece.literal:
            self._fail(
                f"{piece.literal} cannot be held exactly; the nearest number is {float(piece.literal):.0f}",
                piece.at,
            )
        return piece

    # Mistakes

    def _unexpected(self, wanted: str, token: _Token) -> NoReturn:
        found = "the end" if token.kind == "end" else shown(token.text)
        meant = _MEANT_WORDS.get(token.text.upper()) if token.kind == "name" else None
        hint = f"; did you mean {meant}?" if meant and meant != token.text else ""
        self._fail(f"expected {wanted}, found {found}{hint}", token.at)

    def _fail(self, problem: str, at: int) -> NoReturn:
        """Points at the place: the line of the expression it is on, cut to what fits, and a caret below."""
        begin = self._source.rfind("\n", 0, at) + 1
        end = self._source.find("\n", at)
        whole = self._source[begin : end if end >= 0 else len(self._source)]
        cut = max(0, at - begin - 40)
        excerpt, caret = shown(whole[cut : cut + 76]), " " * (at - begin - cut) + "^"
        message = f"{self._what}, column {at + 1}: {problem}"
        raise SchemaError(f"{message}\n    {excerpt}\n    {caret}" if whole else message, line=self._line)
