"""The paper's theory in numbers: confidence sets, convergence bounds and a solvable model."""
