"""The command line: one module a command; `main` dispatches and turns failures into one line."""
