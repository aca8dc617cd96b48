"""A tool of your own: arithmetic, which small models do badly.

cd examples/your_tool
bash ../../recipes/train_musique.sh 'research.tools={search: {}, "calculator:calculate": {digits: 6}}' \\
    research.prompt=calculator.txt
"""

import ast
import operator
from collections.abc import Callable

OPERATORS: dict[type, Callable[..., float]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.USub: operator.neg,
}


def calculate(expression: str, digits: int = 4) -> str:
    """Compute an arithmetic expression, for example (1912 - 1876) * 2."""
    return f"{_value(ast.parse(expression.strip(), mode='eval').body):.{digits}g}"


def _value(node: ast.expr) -> float:
    """Raises ValueError for anything but numbers, +, -, *, / and brackets: the model reads that it failed."""
    if isinstance(node, ast.Constant) and type(node.value) in (int, float):
        return float(node.value)
    if isinstance(node, ast.BinOp) and type(node.op) in OPERATORS:
        return OPERATORS[type(node.op)](_value(node.left), _value(node.right))
    if isinstance(node, ast.UnaryOp) and type(node.op) in OPERATORS:
        return OPERATORS[type(node.op)](_value(node.operand))
    raise ValueError("not an arithmetic expression")
